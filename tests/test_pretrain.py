"""What a text encoder is pretrained on, and the command that does it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from runner import Runner
from small_gan import DIM, WORDS, TinyEncoder, assert_pieces_add_up, make_config, make_pieces

from t2i_ray.config import UserError, parse_config
from t2i_ray.families import family_of, objective_of
from t2i_ray.family import Objective
from t2i_ray.pretrain import rebuilding_loss, words_of


def make(name: str, **train: Any) -> Objective:
    config = make_config({"family": name}, {"lr_d": 0.01, "lr_encoder": 0.01}, **train)
    return objective_of(config)(config, TinyEncoder(), DIM, words=WORDS)


@pytest.mark.parametrize(("name", "measure"), [("matching", "found"), ("autoencode", "rebuilt")])
def test_an_objective_is_learnt_and_goes_on_bit_for_bit(name: str, measure: str) -> None:
    objective = make(name, steps=150)
    pieces = make_pieces(1)
    before = objective.measure(pieces)[measure]
    for step in range(150):
        logged = objective.step(pieces, step, 1, 1)
    assert objective.measure(pieces)[measure] > max(0.3, 2 * before)
    assert logged["loss"].isfinite()
    resumed = make(name, steps=150)
    resumed.load_state(objective.state())
    for one in (objective, resumed):
        one.step(pieces, 150, 1, 1)
    wanted, found = objective.state(), resumed.state()
    for part in wanted:
        assert all(torch.equal(wanted[part][key], found[part][key]) for key in wanted[part]), part


@pytest.mark.parametrize("name", ["matching", "autoencode"])
def test_pieces_add_up(name: str) -> None:
    assert_pieces_add_up(lambda: make(name))


def test_paddings_are_nothing_to_rebuild() -> None:
    logits = torch.zeros(1, 3, 4)
    logits[0, 0, 2] = math.log(3)  # three times as likely as each of the other three: one half
    words = torch.tensor([[2, 1, 0]])
    expected = (math.log(2) + math.log(4)) / 2
    assert rebuilding_loss(logits, words).item() == pytest.approx(expected)
    assert torch.equal(words_of(words.to(torch.uint8)), words)
    tokens = torch.tensor([[[5, 0, -1], [0, 0, 0]]])  # a text model's: ids, and token types
    assert words_of(tokens).tolist() == [[6, 1, 0]]


def test_it_draws_nothing_and_a_frozen_encoder_learns_nothing() -> None:
    document = make_config().model_dump(mode="json")
    document["model"]["family"] = "matching"
    with pytest.raises(UserError, match=r"model\.family=matching.*draws nothing"):
        family_of(parse_config(document))
    document["encoder"] |= {"train": "frozen", "init_from": "somewhere"}
    with pytest.raises(UserError, match=r"encoder\.train=frozen with model\.family=matching"):
        parse_config(document)


@pytest.mark.parametrize("objective", ["matching", "autoencode"])
def test_a_gan_begins_with_the_pretrained_encoder(
    runner: Runner, unbroken: str, objective: str
) -> None:
    """Two workers pretrain; a run goes on training that encoder, another one keeps it as it is."""
    name = f"pre-{objective}"
    evaluation = ("evaluation.every=20", "evaluation.samples=32", "cluster.workers=2")
    arguments = [str(runner.config(name)), *evaluation, "--objective", objective]
    output = runner.run("pretrain-encoder", *arguments)
    place = runner.folder / f"store/runs/{name}/encoder"
    assert f"encoder.init_from={place}" in output
    run = runner.mlflow_run(name)
    assert run.info.status == "FINISHED"
    measure = {"matching": "val/found", "autoencode": "val/rebuilt"}[objective]
    assert 0 < run.data.metrics[measure] <= 1
    files = {file.path for file in runner.mlflow().list_artifacts(run.info.run_id, "encoder")}
    assert files == {"encoder/encoder.json", "encoder/encoder.safetensors"}
    error = runner.run("generate", name, "a red flower", "-s", str(runner.folder / "store"), code=2)
    assert "draws nothing" in error

    if objective == "matching":
        judge = ["--matcher", name, "--measures", "r_precision", "--count", "32"]
        output = runner.run(
            "evaluate", unbroken, *judge, "-s", str(runner.folder / "store"), env={"COLUMNS": "200"}
        )
        assert "r_precision_matching" in output
        settings = {
            "evaluation.every": "10",
            "evaluation.samples": "32",
            "evaluation.measures": "[frechet, r_precision]",
            "evaluation.matcher": name,
        }
        judged = [f"{key}={value}" for key, value in settings.items()]
        runner.train_without_ray("judged", unbroken, *judged, "train.steps=10")
        measured = runner.checkpoint("judged").documents["state"]["measured"]
        names = {"val/frechet_reader", "val/frechet_matching", "val/r_precision_matching"}
        assert names == {key for key in measured if key.startswith("val/")}

    for kind in ("tuned", "frozen"):
        start = [f"encoder.init_from={place}", f"encoder.train={kind}", "train.steps=10"]
        runner.train_without_ray(f"{name}-{kind}", unbroken, *start, "tracking.enabled=false")
        encoder = runner.checkpoint(f"{name}-{kind}").documents["encoder"]
        assert encoder["origin"]
    assert json.loads((place / "encoder.json").read_text())["kind"] == "bigru"
    assert Path(place / "encoder.safetensors").stat().st_size > 1000
