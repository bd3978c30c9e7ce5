"""Hugging Face models that are trained with the GAN: same codes, gradients, no hub to load them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_gan import make_config
from small_models import CAPTIONS, codes, small_models
from torch.multiprocessing.spawn import spawn

from t2i_ray.config import HuggingFace, UserError, parse_config
from t2i_ray.encoders import Encoder, build_encoder, load_encoder, to_document
from t2i_ray.family import Piece
from t2i_ray.gan_cls import GanCls

FAMILIES = ["bert", "gpt2", "xlnet", "t5"]
each_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small_models(tmp_path_factory.mktemp("models"))


def made(folder: Path, train: str = "tuned", **fields: object) -> Encoder:
    section = HuggingFace(model=str(folder), train=train, max_tokens=40, **fields)  # type: ignore[arg-type]
    return build_encoder(section, [])


# ---------------------------------------------------------------------------- what a code is


@each_family
def test_it_starts_with_the_codes_of_the_frozen_model(folders: dict[str, Path], name: str) -> None:
    tuned, frozen = made(folders[name]), made(folders[name], "frozen")
    assert (tuned.trainable, tuned.fingerprint, tuned.dim) == (True, None, frozen.dim)
    found = codes(tuned, CAPTIONS)
    np.testing.assert_allclose(found.numpy(), frozen.rows(CAPTIONS), rtol=0, atol=1e-5)


@each_family
def test_padding_does_not_change_a_code(folders: dict[str, Path], name: str) -> None:
    encoder = made(folders[name])
    encoder.module.double()
    together = codes(encoder, CAPTIONS)
    alone = torch.cat([codes(encoder, [caption]) for caption in CAPTIONS])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)
    padded = torch.nn.functional.pad(torch.from_numpy(encoder.rows(CAPTIONS)), (0, 9), value=-1)
    padded[:, 1:] = padded[:, 1:].clamp(min=0)
    torch.testing.assert_close(encoder.module(padded).detach(), alone, rtol=0, atol=1e-10)
    distances = torch.cdist(together, together)[~torch.eye(len(CAPTIONS), dtype=torch.bool)]
    assert distances.min() > 0.01  # the captions do matter


@each_family
def test_gradients_reach_all_weights_that_a_caption_reaches(
    folders: dict[str, Path], name: str
) -> None:
    encoder = made(folders[name])
    weight = torch.randn(len(CAPTIONS), encoder.dim)
    (encoder.module(torch.from_numpy(encoder.rows(CAPTIONS))) * weight).sum().backward()
    learning = {n: p for n, p in encoder.module.named_parameters() if p.requires_grad}
    for parameter_name, parameter in learning.items():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
    # Constants: a shift of all attention scores, of an axis that a norm takes out again.
    still = [n for n, p in learning.items() if p.grad is not None and p.grad.abs().max() == 0]
    assert len(still) < len(learning) / 4, still
    idle = [n for n, p in encoder.module.named_parameters() if not p.requires_grad]
    assert all("pooler" in n or "mask_emb" in n or "seg" in n or "r_s" in n for n in idle), idle


@each_family
def test_nothing_is_drawn_while_training(folders: dict[str, Path], name: str) -> None:
    encoder = made(folders[name])
    encoder.module.train()
    torch.testing.assert_close(codes(encoder, CAPTIONS), codes(encoder, CAPTIONS), rtol=0, atol=0)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_encoder(made(folders[name]).describe())
    torch.testing.assert_close(torch.rand(2), expected, rtol=0, atol=0)


def test_types_of_tokens_are_read(folders: dict[str, Path]) -> None:
    encoder = made(folders["bert"])
    rows = torch.from_numpy(encoder.rows(CAPTIONS))
    assert rows.shape == (len(CAPTIONS), 2, 40)  # ids and types
    other = rows.clone()
    other[0, 1, 1] = 1
    difference = (encoder.module(other) - encoder.module(rows)).abs().amax(1)
    assert difference[0] > 1e-3
    assert difference[1:].max() < 1e-6


# ------------------------------------------------------------------------- from a checkpoint


@each_family
def test_it_needs_no_model_but_its_own(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(folders[name], tmp_path / "model"))
    encoder = made(folder)
    with torch.no_grad():
        for parameter in encoder.module.parameters():
            parameter.add_(0.01)
    document = json.loads(json.dumps(to_document(encoder)))
    shutil.rmtree(folder)
    again = load_encoder(document)
    assert to_document(again) == document
    again.module.load_state_dict(encoder.module.state_dict())
    new = ["a purple flower", *CAPTIONS]
    np.testing.assert_array_equal(again.rows(new), encoder.rows(new))
    torch.testing.assert_close(codes(again, new), codes(encoder, new), rtol=0, atol=0)
    assert document["source"]["files"]
    assert {n for n, p in again.module.named_parameters() if p.requires_grad} == {
        n for n, p in encoder.module.named_parameters() if p.requires_grad
    }


def test_a_tokenizer_that_would_leave_its_folder_is_refused(folders: dict[str, Path]) -> None:
    document = made(folders["bert"]).describe()
    document["tokenizer"]["../evil.json"] = document["tokenizer"]["tokenizer.json"]
    with pytest.raises(UserError, match=r"'\.\./evil\.json' is no tokenizer's file"):
        load_encoder(document)


def test_kinds_named_after_a_model_are_that_model() -> None:
    def model(**encoder: object) -> tuple[str | None, str]:
        config = parse_config({"name": "n", "train": {"steps": 1}, "encoder": encoder})
        assert parse_config(config.model_dump(mode="json")) == config
        assert isinstance(config.encoder, HuggingFace)
        return config.encoder.model, config.encoder.train

    assert model(kind="xlnet") == ("xlnet/xlnet-base-cased", "frozen")
    assert model(kind="bert", train="tuned") == ("google-bert/bert-base-uncased", "tuned")
    assert model(kind="gpt2") == ("openai-community/gpt2", "frozen")
    assert model(kind="gpt2", model="/mine") == ("/mine", "frozen")
    assert model(kind="bert", init_from="/mine") == (None, "frozen")


def test_too_long_for_the_model_is_refused(folders: dict[str, Path]) -> None:
    section = HuggingFace(model=str(folders["gpt2"]), train="tuned", max_tokens=65)
    with pytest.raises(UserError, match=r"encoder\.max_tokens=65: .* reads 64 tokens at most"):
        build_encoder(section, [])


def test_words_that_a_tokenizer_does_not_know(folders: dict[str, Path]) -> None:
    for train in ("tuned", "frozen"):
        encoder = made(folders["bert"], train)
        assert encoder.unreadable("a red tulip , a blue tulip") == ["tulip", "tulip"]
        assert encoder.unreadable("A Red flower,") == []


# ------------------------------------------------------------------------ within the training


def make_gan(encoder: Encoder, micro: int) -> GanCls:
    config = make_config(
        optim={"lr_d": 1e-3, "lr_encoder": 1e-4},
        steps=9,
        micro_batches=micro,
        update="simultaneous",
        matching=0.5,
    )
    return GanCls(config, encoder.module, encoder.dim)


def make_pieces(encoder: Encoder, count: int) -> list[Piece]:
    random = torch.Generator().manual_seed(0)
    words = ("red", "blue", "purple", "white")
    rows = torch.from_numpy(encoder.rows([f"a {word} flower" for word in words]))
    size = 16 // count
    pieces = []
    for _ in range(count):
        images = torch.randn(size, 3, 16, 16, generator=random, dtype=torch.float64)
        noise = torch.randn(size, 3, generator=random, dtype=torch.float64)
        right = rows[torch.randint(4, (size,), generator=random)]
        wrong = rows[torch.randint(4, (size,), generator=random)]
        pieces.append(Piece(images.tanh(), right, wrong, noise))
    return pieces


def three_steps(folder: Path, rank: int, world: int) -> dict[str, torch.Tensor]:
    encoder = made(folder)
    gan = make_gan(encoder, 4)
    gan.distribute()
    for step in range(3):
        gan.step(make_pieces(encoder, 4)[rank::world], step, 4, world)
    return {f"{part}.{n}": t for part, ts in gan.state().items() for n, t in ts.items()}


def one_rank(rank: int, world: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world
    )
    for name in ("bert", "xlnet"):
        save_file(three_steps(Path(folder) / name, rank, world), f"{store}.{name}.{rank}")
    torch.distributed.destroy_process_group()


def test_two_workers_train_as_one_does(folders: dict[str, Path], tmp_path: Path) -> None:
    """With weights that get no gradient, and BERT's buffers."""
    store = str(tmp_path / "store")
    folder = str(folders["bert"].parent)
    spawn(one_rank, (2, store, folder), nprocs=2)  # type: ignore[no-untyped-call]
    for name in ("bert", "xlnet"):
        ranks = [load_file(f"{store}.{name}.{rank}") for rank in range(2)]
        wanted = three_steps(folders[name], 0, 1)
        start = made(folders[name]).module.state_dict()
        moved = [n for n, t in start.items() if not torch.equal(ranks[0][f"encoder.{n}"], t)]
        assert len(moved) > len(start) / 2
        for key, value in wanted.items():
            assert torch.equal(ranks[0][key], ranks[1][key]), key
            torch.testing.assert_close(ranks[0][key], value, rtol=1e-7, atol=1e-9, msg=key)
