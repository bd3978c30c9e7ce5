"""Recurrent encoders of every kind, and the one over characters: each may be trained."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import CAPTIONS, codes, small_models
from test_pretrained_encoders import run, run_config
from torch import nn

from t2i_ray.config import CharCnnRnn, EncoderConfig, Recurrent, UserError, parse_config
from t2i_ray.encoders import build_encoder, load_encoder
from t2i_ray.encoders.char_cnn_rnn import ALPHABET
from t2i_ray.generate import Pipeline

SIZES = {"vocabulary": 64, "embedding_dim": 8, "hidden_dim": 12, "dim": 10, "max_tokens": 20}
KINDS: dict[str, tuple[type[nn.RNNBase], bool]] = {
    "rnn": (nn.RNN, False),
    "gru": (nn.GRU, False),
    "bigru": (nn.GRU, True),
    "lstm": (nn.LSTM, False),
    "bilstm": (nn.LSTM, True),
}
CHARACTERS = CharCnnRnn(channels=[12, 10, 8], dim=6, max_characters=90)
SMALL: list[EncoderConfig] = [
    *(Recurrent(kind=kind, **SIZES) for kind in KINDS),  # type: ignore[arg-type]
    CHARACTERS,
    CharCnnRnn(channels=[9, 7], kernel=3, pools=[[2, 2], [1, 1]], cell="gru", dim=5),
    CharCnnRnn(channels=[9], pools=[[3, 2]], cell="lstm", dim=5, max_characters=40),
]
each_small = pytest.mark.parametrize(
    "config", SMALL, ids=lambda config: f"{config.kind}-{getattr(config, 'cell', '')}".rstrip("-")
)


@each_small
def test_padding_and_batch_mates_do_not_change_a_code(config: EncoderConfig) -> None:
    encoder = build_encoder(config, CAPTIONS)
    encoder.module.double()
    captions = [*CAPTIONS, "x", "ab", "жж", "a b" * 60]
    together = codes(encoder, captions)
    assert together.shape == (len(captions), encoder.dim)
    alone = torch.cat([codes(encoder, [caption]) for caption in captions])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    wider = nn.functional.pad(torch.from_numpy(encoder.rows(captions)), (0, 9))
    torch.testing.assert_close(encoder.module(wider).detach(), alone, rtol=0, atol=1e-12)
    assert (together[0] - together[2]).abs().max() > 1e-5  # the caption does matter


@each_small
def test_every_parameter_learns_also_beside_empty_captions(config: EncoderConfig) -> None:
    encoder = build_encoder(config, CAPTIONS)
    captions = [*CAPTIONS, ALPHABET]
    encoder.module(torch.from_numpy(encoder.rows(captions))).square().sum().backward()
    for name, parameter in encoder.module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    assert (encoder.trainable, encoder.fingerprint) == (True, None)


@each_small
def test_described_loaded_and_given_its_weights_it_is_the_same(config: EncoderConfig) -> None:
    encoder = build_encoder(config, CAPTIONS)
    again = load_encoder(json.loads(json.dumps(encoder.describe())))
    assert type(again) is type(encoder)
    assert again.describe() == encoder.describe()
    again.module.load_state_dict(encoder.module.state_dict())
    new = ["a purple flower", *CAPTIONS]
    torch.testing.assert_close(codes(again, new), codes(encoder, new), rtol=0, atol=0)


# ------------------------------------------------------------------------------- over words


@pytest.mark.parametrize("kind", KINDS)
def test_code_is_the_mean_of_torchs_own_states(kind: str) -> None:
    cell, both = KINDS[kind]
    config = Recurrent(kind=kind, **SIZES)  # type: ignore[arg-type]
    module = build_encoder(config, CAPTIONS).module.double()
    book = cell(8, 12, bidirectional=both, batch_first=True).double()  # type: ignore[call-arg, arg-type]
    state = {}
    for direction, suffix in enumerate(("", "_reverse")[: 1 + both]):
        for name, value in module.get_submodule(f"recurrent.{direction}").state_dict().items():
            state[name + suffix] = value
    book.load_state_dict(state)
    row = torch.tensor([[5, 3, 9, 4, 7]])
    states = book(module.get_submodule("embedding")(row))[0]
    expected = module.get_submodule("project")(states.mean(1))
    torch.testing.assert_close(module(row), expected, rtol=0, atol=1e-12)


def test_the_bigru_is_what_it_always_was() -> None:
    torch.manual_seed(3)
    encoder = build_encoder(Recurrent(kind="bigru", **SIZES), CAPTIONS)  # type: ignore[arg-type]
    about = hashlib.sha256(json.dumps(encoder.describe()).encode()).hexdigest()
    assert about.startswith("6ea8ac1c1bed294a")
    first = encoder.module.state_dict()["project.weight"][0, :3]
    known = torch.tensor([-0.15106399, 0.05514031, 0.14971203])
    torch.testing.assert_close(first, known, rtol=0, atol=1e-7)
    known = torch.tensor([0.01036992, -0.24358276, -0.29203850])
    torch.testing.assert_close(codes(encoder, CAPTIONS)[0, :3], known, rtol=0, atol=1e-6)


def test_words_that_it_does_not_know() -> None:
    encoder = build_encoder(Recurrent(**SIZES), CAPTIONS)  # type: ignore[arg-type]
    assert encoder.words("A Red-flower!") == ["a", "red", "-", "flower", "!"]
    assert encoder.unreadable("a RED tulip, a red tulip") == ["tulip", "tulip"]
    assert encoder.unreadable("қызыл гүл") == ["қызыл", "гүл"]
    assert encoder.unreadable("a red flower") == encoder.unreadable("") == []


# -------------------------------------------------------------------------- over characters


def test_characters_are_places_in_the_alphabet_of_seventy() -> None:
    assert len(ALPHABET) == 70
    encoder = build_encoder(CharCnnRnn(max_characters=8), [])
    rows = encoder.rows(["Ab  z\té", "", "aaaaaaaaaa", "-"])
    assert rows.shape == (4, 8)
    assert rows[0].tolist() == [1, 2, 70, 26, 70, 71, 0, 0]
    assert rows[1].tolist() == [0] * 8
    assert rows[2].tolist() == [1] * 8
    assert ALPHABET[rows[3, 0] - 1] == "-"
    assert encoder.unreadable("a é rose, ж") == ["é", "ж"]
    assert encoder.words("a b") == ["a", "b"]


def test_a_caption_of_full_length_is_the_plain_network_of_the_paper() -> None:
    """201 characters: convolution, ReLU, pooling, an RNN by hand, mean, linear."""
    config = CharCnnRnn(channels=[12, 10, 8], dim=6)
    encoder = build_encoder(config, [])
    module = encoder.module.double()
    random = np.random.default_rng(0)
    caption = "".join(random.choice(list("abcdefghij,."), 201))
    weights = module.state_dict()
    x = torch.zeros(1, 70, 201, dtype=torch.float64)
    for position, character in enumerate(caption):
        x[0, ALPHABET.rindex(character), position] = 1
    positions = []
    for i, stride in enumerate((3, 3, 2)):
        name = f"convolutions.{i}"
        x = nn.functional.conv1d(x, weights[f"{name}.weight"], weights[f"{name}.bias"]).relu()
        # The last window of three may reach beyond the end, where nothing is.
        x = nn.functional.max_pool1d(x, 3, stride, ceil_mode=True)
        positions.append(x.shape[2])
    assert positions == [66, 21, 9]
    state = torch.zeros(8, dtype=torch.float64)
    total = torch.zeros(8, dtype=torch.float64)
    for step in x[0].T:
        inner = weights["recurrent.weight_ih_l0"] @ step + weights["recurrent.bias_ih_l0"]
        inner += weights["recurrent.weight_hh_l0"] @ state + weights["recurrent.bias_hh_l0"]
        state = inner.relu()
        total += state
    expected = weights["project.weight"] @ (total / 9) + weights["project.bias"]
    torch.testing.assert_close(codes(encoder, [caption])[0], expected, rtol=0, atol=1e-12)


def test_fresh_codes_differ_by_more_than_a_norm_takes_for_noise() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(CharCnnRnn(), [])
    captions = [f"a {colour} flower" for colour in ("red", "white", "purple", "yellow", "pink")]
    assert codes(encoder, captions).std(0).mean() > 0.005  # torch's own first weights: 0.0007


def test_each_character_counts_to_the_last() -> None:
    encoder = build_encoder(CHARACTERS, [])
    encoder.module.double()
    caption = CAPTIONS[1]
    code = codes(encoder, [caption])
    for i in range(len(caption)):
        other = caption[:i] + ("q" if caption[i] != "q" else "w") + caption[i + 1 :]
        assert (codes(encoder, [other]) - code).abs().max() > 1e-9, i


# --------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("encoder", "says"),
    [
        ({"kind": "bilstm", "train": "frozen"}, ["encoder.train=frozen", "bilstm", "init_from"]),
        ({"kind": "char_cnn_rnn", "pools": [[3, 3]]}, ["encoder.pools", "1 entries", "3"]),
        ({"kind": "char_cnn_rnn", "channels": [], "pools": []}, ["encoder.channels"]),
        (
            {"kind": "char_cnn_rnn", "channels": [4], "pools": [[2, 3]]},
            ["encoder.pools", "stride"],
        ),
        ({"kind": "gru", "init_sha256": "0" * 64}, ["encoder.init_sha256", "encoder.init_from"]),
        ({"kind": "huggingface"}, ["encoder.model", "missing"]),
        ({"kind": "bert", "model": "a/b", "init_from": "/x"}, ["encoder.model=a/b", "init_from"]),
        (
            {"kind": "bert", "model": "xlnet/xlnet-base-cased"},
            ["encoder.kind=bert", "encoder.model=xlnet/xlnet-base-cased", "encoder.kind=xlnet"],
        ),
        ({"kind": "custom", "target": "no class"}, ["encoder", "target", "no class"]),
    ],
)
def test_sections_that_make_no_sense(encoder: dict[str, object], says: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse_config({"name": "n", "train": {"steps": 1}, "encoder": encoder})
    assert "\n" not in str(caught.value)
    for part in says:
        assert part in str(caught.value)


# ------------------------------------------------------------------------------ in a GAN


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small_models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("train", ["tuned", "frozen"])
@pytest.mark.parametrize("kind", ["xlnet", "bert", "gpt2"])
def test_a_gan_trains_with_pretrained_models(
    kind: str, train: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    check_short_run(tmp_path, {"kind": kind, "model": str(folders[kind]), "train": train})


@pytest.mark.parametrize("kind", [*KINDS, "char_cnn_rnn"])
def test_a_gan_trains_with_every_kind(kind: str, tmp_path: Path) -> None:
    sizes = {"channels": [8, 6, 4], "dim": 5} if kind == "char_cnn_rnn" else SIZES
    check_short_run(tmp_path, {"kind": kind, **sizes})


def check_short_run(folder: Path, encoder: dict[str, Any]) -> None:
    """It learns on drawn flowers, the encoder as well unless it is frozen, and draws."""
    checkpoint = run(run_config(folder, "short", encoder))
    history = checkpoint.tensors["history"]
    assert all(history[loss].isfinite().all() for loss in ("g_loss", "d_loss"))
    assert len(history["g_loss"]) == 4
    trained, average = checkpoint.tensors.get("encoder"), checkpoint.tensors["encoder_ema"]
    assert (trained is None) == (encoder.get("train") == "frozen")
    assert trained is None or any(not torch.equal(t, average[n]) for n, t in trained.items())
    pictures = Pipeline.from_checkpoint(checkpoint).images(["a red flower", "petals"], [0, 0])
    assert (pictures[0] != pictures[1]).any()
