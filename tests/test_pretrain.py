"""What a text encoder is pretrained on, and the command that does it."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runner import Runner
from small_gan import DIM, WORDS, TinyEncoder, assert_pieces_add_up, make_config, make_pieces
from small_models import CAPTIONS, codes, small_models
from test_pretrained_encoders import SIZES, run, run_config
from torch import Tensor
from torch.nn.functional import cosine_similarity

from t2i_ray.batch_norm import estimate_statistics
from t2i_ray.config import Recurrent, UserError, parse_config
from t2i_ray.data import open_prepared, prepare
from t2i_ray.encoders import build_encoder, load_encoder
from t2i_ray.encoders.saved import save_pretrained_encoder, tower_files
from t2i_ray.evaluate.matching import of_pretrained
from t2i_ray.evaluate.pictures import batches
from t2i_ray.families import family_of, objective_of
from t2i_ray.family import Objective, Piece
from t2i_ray.losses import structured_loss
from t2i_ray.pretrain import Tower, make_tower, rebuilding_loss, words_of
from t2i_ray.runs import run_store
from t2i_ray.storage import open_store
from t2i_ray.train import load_pair


def make(name: str, **train: Any) -> Objective:
    config = make_config({"family": name}, {"lr_d": 0.01, "lr_encoder": 0.01}, **train)
    return objective_of(config)(config, TinyEncoder(), DIM, words=WORDS)


STRUCTURED = {"pretraining_loss": "structured"}
OBJECTIVES: list[tuple[str, dict[str, Any]]] = [
    ("matching", {}),
    ("matching", {"data": {"wrong": "hard"}}),
    ("matching", STRUCTURED),
    ("autoencode", {}),
]


def classed(pieces: list[Piece]) -> list[Piece]:
    """With pictures 0 and 1 of one class, and so on."""
    return [piece._replace(classes=torch.arange(len(piece.images)) // 2) for piece in pieces]


@pytest.mark.parametrize(("name", "more"), OBJECTIVES)
def test_an_objective_is_learnt_and_goes_on_bit_for_bit(name: str, more: dict[str, Any]) -> None:
    measure = {"matching": "found", "autoencode": "rebuilt"}[name]
    objective = make(name, steps=150, **more)
    pieces = make_pieces(1)
    before = objective.measure(pieces)[measure]
    for step in range(150):
        logged = objective.step(pieces, step, 1, 1)
    assert objective.measure(pieces)[measure] > max(0.3, 2 * before)
    assert logged["loss"].isfinite()
    resumed = make(name, steps=150, **more)
    resumed.load_state(objective.state())
    for one in (objective, resumed):
        one.step(pieces, 150, 1, 1)
    wanted, found = objective.state(), resumed.state()
    for part in wanted:
        assert all(torch.equal(wanted[part][key], found[part][key]) for key in wanted[part]), part


def test_what_is_rebuilt_is_measured_by_averages_alone() -> None:
    autoencode = make("autoencode", steps=9)
    pieces = make_pieces(1)
    for step in range(9):
        autoencode.step(pieces, step, 1, 1)
    before = autoencode.measure(pieces)
    assert before["rebuilt"] > 0
    for name in ("encoder", "decoder"):
        for parameter in autoencode.networks[name].parameters():
            torch.nn.init.zeros_(parameter)
    assert autoencode.measure(pieces) == before


def test_a_word_that_the_data_has_not_is_not_asked_for() -> None:
    """data.wrong=one_word may put one before the place where captions are cut."""
    config = make_config({"family": "autoencode"})
    autoencode = objective_of(config)(config, TinyEncoder(), DIM, words=10)
    pieces = make_pieces(1)
    assert pieces[0].wrong.max() > 11
    assert autoencode.step(pieces, 0, 1, 1)["loss"].isfinite()


@pytest.mark.parametrize(("name", "more"), OBJECTIVES)
def test_pieces_add_up(name: str, more: dict[str, Any]) -> None:
    assert_pieces_add_up(lambda: make(name, **more), classed(make_pieces(2)))


@pytest.mark.parametrize("known", [True, False])
def test_the_structured_loss_by_its_definition(known: bool) -> None:
    random = torch.Generator().manual_seed(5)
    images, texts = torch.randn(2, 7, 3, generator=random, dtype=torch.float64)
    classes = [4, 0, 4, -3, 0, 4, -8] if known else list(range(7))
    total, counted = 0.0, 0
    by_images, by_texts = torch.zeros(7, 3).double(), torch.zeros(7, 3).double()
    for n, m in itertools.permutations(range(7), 2):
        if classes[n] == classes[m]:
            continue
        finds_caption = 1 + images[n] @ texts[m] - images[n] @ texts[n]
        if finds_caption > 0:
            total, counted = total + finds_caption.item() / 49, counted + 1
            by_images[n] += (texts[m] - texts[n]) / 49
            by_texts[m] += images[n] / 49
            by_texts[n] -= images[n] / 49
        finds_picture = 1 + images[m] @ texts[n] - images[n] @ texts[n]
        if finds_picture > 0:
            total, counted = total + finds_picture.item() / 49, counted + 1
            by_texts[n] += (images[m] - images[n]) / 49
            by_images[m] += texts[n] / 49
            by_images[n] -= texts[n] / 49
    assert 10 < counted < 60  # some are violated, some are not
    images.requires_grad_()
    texts.requires_grad_()
    loss = structured_loss(images @ texts.T, torch.tensor(classes) if known else None)
    assert loss.item() == pytest.approx(total, rel=1e-12)
    gradients = torch.autograd.grad(loss, [images, texts])
    for found, wanted in zip(gradients, (by_images, by_texts), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


def test_what_the_structured_loss_does_not_ask_for() -> None:
    """Nothing of a piece of one class; else the step is by other classes' pairs alone."""
    (piece,) = make_pieces(1)
    alike = piece._replace(classes=torch.zeros(16, dtype=torch.int64))
    logged = make("matching", **STRUCTURED).step([alike], 0, 1, 1)
    assert logged["loss"] == 0
    losses = [
        make("matching", **more).step([each], 0, 1, 1)["loss"].item()
        for more in ({}, STRUCTURED)
        for each in (piece, *classed([piece]))
    ]
    assert losses[0] == losses[1]  # to the contrastive loss classes are nothing
    assert losses[2] > losses[3] > 0


def floats(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1


@pytest.mark.parametrize("loss", ["contrastive", "structured"])
def test_a_tower_judges_by_what_it_was_trained_with(tmp_path: Path, loss: str) -> None:
    """Without Ray, on data with classes; then loaded as R-precision's matcher."""
    config = run_config(tmp_path, "pre", {"kind": "gru", **SIZES}, pretraining_loss=loss)
    document = config.model_dump(mode="json")
    document["model"]["family"] = "matching"
    document["evaluation"] = {"every": 4, "samples": 16}
    config = parse_config(document)
    checkpoint = run(config)
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    captions = ["a red flower", "a white one", "petals", "blue"]
    store = open_store(config.storage)
    prepared = open_prepared(store, prepare(config.data, store))
    judge = of_pretrained("pre", checkpoint, prepared, config.data)
    scores = judge.similarity(images, captions)
    np.testing.assert_allclose(judge.similarity(images[2:3], captions), scores[2:3], rtol=1e-4)

    encoder = load_encoder(checkpoint.documents["encoder"])
    encoder.module.load_state_dict(checkpoint.tensors["encoder_ema"])
    tower = make_tower(config, encoder.dim)
    tower.load_state_dict(checkpoint.tensors["tower_ema"])
    seen = batches(prepared, config.data, "train", 64)
    estimate_statistics(tower.trunk, ((floats(seen.piece(i, 0).images),) for i in range(16)))
    with torch.inference_mode():
        pixels = floats(images)
        image = tower.matcher.image(tower.trunk(pixels).flatten(1))
        text = tower.matcher.text(encoder.module(torch.from_numpy(encoder.rows(captions))))
        wanted = {
            "contrastive": 10 * cosine_similarity(image[:, None], text, dim=2),
            "structured": (image[:, None] * text).sum(2),
        }
    np.testing.assert_allclose(scores, wanted[loss].numpy(), rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def xlnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_models(tmp_path_factory.mktemp("models"))["xlnet"])


@pytest.mark.parametrize("objective", ["matching", "autoencode"])
@pytest.mark.parametrize("kind", ["xlnet", "char_cnn_rnn"])
def test_every_kind_is_pretrained_and_read_again(
    kind: str, objective: str, xlnet: str, tmp_path: Path
) -> None:
    """Without Ray. All of the encoder learns, and what lies there has the codes it ended with."""
    sections: dict[str, dict[str, Any]] = {
        "xlnet": {"kind": kind, "model": xlnet, "train": "tuned", "max_tokens": 40},
        "char_cnn_rnn": {"kind": kind, "channels": [8, 6, 4], "dim": 5},
    }
    document = run_config(tmp_path, "pre", sections[kind]).model_dump(mode="json")
    document["model"]["family"] = objective
    config = parse_config(document)
    checkpoint = run(config)
    average, learning = checkpoint.tensors["encoder_ema"], checkpoint.tensors["encoder"]
    trained = load_encoder(checkpoint.documents["encoder"])
    trained.module.load_state_dict(average)
    names = [name for name, p in trained.module.named_parameters() if p.requires_grad]
    still = [name for name in names if average[name].equal(learning[name])]
    assert len(still) < len(names) / 4, still

    place = run_store(open_store(config.storage), "pre").uri + "/encoder"
    start = {key: value for key, value in sections[kind].items() if key != "model"}
    document["encoder"] = {**start, "init_from": place}
    again = build_encoder(parse_config(document).encoder, ["other words"])
    torch.testing.assert_close(codes(again, CAPTIONS), codes(trained, CAPTIONS), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"encoder": {"kind": "gru"}}, "by which pair? give encoder.init_from"),
        ({"model": {"family": "cvae"}}, "with model.family=cvae"),
        ({"model": {"family": "matching"}}, "with model.family=matching"),
    ],
)
def test_a_pair_that_is_asked_for_must_be_given(changes: dict[str, Any], says: str) -> None:
    document = {
        "name": "run",
        "encoder": {"kind": "gru", "init_from": "somewhere"},
        "train": {"steps": 1, "pretrained_matching": 0.5},
    }
    with pytest.raises(UserError, match=r"train\.pretrained_matching=0\.5") as error:
        parse_config({**document, **changes})
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"channels": [8, 8, 8]}, "its tower sees pictures of 32 pixels"),
        ({"cosine": False}, "pretraining_loss=structured"),
        (None, "its tower can't be read"),
    ],
)
def test_a_pair_that_does_not_fit(sizes: dict[str, Any] | None, says: str, tmp_path: Path) -> None:
    words = Recurrent(kind="gru", **SIZES)
    save_pretrained_encoder(build_encoder(words, ["a red flower"]), tmp_path)
    tower = Tower(**{"channels": [8, 8], "text_in": 32, "dim": 4, "cosine": True, **(sizes or {})})
    for name, data in tower_files(tower.sizes, tower.state_dict()).items():
        (tmp_path / name).write_bytes(data if sizes else data[:20])
    document = {
        "name": "run",
        "data": {"image_size": 16, "load_size": 16},
        "model": {"g_channels": [8, 8], "d_channels": [8, 8]},
        "encoder": {"kind": "gru", "init_from": str(tmp_path), **SIZES},
        "train": {"steps": 1, "pretrained_matching": 1},
    }
    with pytest.raises(UserError, match=says):
        load_pair(parse_config(document))


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
    made = ["encoder", "tower"] if objective == "matching" else ["encoder"]
    assert files == {f"encoder/{one}.{kind}" for one in made for kind in ("json", "safetensors")}
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
    pleasing = [f"encoder.init_from={place}", "train.pretrained_matching=1", "train.steps=10"]
    if objective == "matching":
        runner.train_without_ray("pleasing", unbroken, *pleasing, "data.wrong=one_word")
        tags = runner.mlflow_run("pleasing", key="pleasing").data.tags
        assert tags["t2i_ray.wrong_fallbacks"] == "0"  # every caption has a word to change
        assert len(runner.checkpoint("pleasing").tensors["history"]["g_pretrained_match"]) == 10
    else:
        error = runner.train("pleasing-words", *pleasing, code=2)
        assert "there is no tower.json" in error
        assert "train.pretrained_matching" in error
    assert json.loads((place / "encoder.json").read_text())["kind"] == "bigru"
    assert Path(place / "encoder.safetensors").stat().st_size > 1000
