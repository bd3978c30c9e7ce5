"""Encoders that start from a folder, are frozen, or are the user's own; runs with them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from servers import S3Server
from small_configs import flowers, networks
from small_models import CAPTIONS, codes, small_models

from t2i_ray.checkpoint import Checkpoint, Checkpoints
from t2i_ray.cli.commands import start_sweep
from t2i_ray.cli.pictures import draw
from t2i_ray.config import (
    CharCnnRnn,
    Config,
    Custom,
    EncoderConfig,
    HuggingFace,
    Recurrent,
    Storage,
    UserError,
    allow,
    classes_in,
    identity_hash,
    load_config,
    load_sweep,
    parse_config,
    parse_sweep,
    require_allowed,
)
from t2i_ray.data import prepare
from t2i_ray.encoders import (
    Encoder,
    build_encoder,
    caption_rows,
    load_encoder,
    refusal,
    scripts_of,
    to_document,
    unknown_words,
)
from t2i_ray.encoders.places import local_folder
from t2i_ray.encoders.saved import pin, save_pretrained_encoder, start_from
from t2i_ray.generate import Pipeline, export
from t2i_ray.launch import with_pinned_encoder, worker_environment
from t2i_ray.launch.driver import make_shared
from t2i_ray.runs import run_store
from t2i_ray.storage import open_store
from t2i_ray.sweep.space import settings, trials
from t2i_ray.sweep.tasks import Tasks
from t2i_ray.tracking import describe
from t2i_ray.train import Job, Worker, train

SIZES: dict[str, Any] = {
    "vocabulary": 64,
    "embedding_dim": 8,
    "hidden_dim": 12,
    "dim": 10,
    "max_tokens": 20,
}
WORDS = Recurrent(kind="lstm", **SIZES)
REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small_models(tmp_path_factory.mktemp("models"))


def saved(section: EncoderConfig, folder: Path) -> Encoder:
    """A trained encoder that was saved."""
    torch.manual_seed(5)
    encoder = build_encoder(section, CAPTIONS)
    encoder.scripts = scripts_of(CAPTIONS)
    save_pretrained_encoder(encoder, folder)
    return encoder


def section_of(kind: str, folders: dict[str, Path]) -> EncoderConfig:
    sections: dict[str, EncoderConfig] = {
        "words": WORDS,
        "characters": CharCnnRnn(channels=[9, 8], pools=[[3, 3], [3, 2]], dim=7),
        "bert": HuggingFace(model=str(folders["bert"]), train="tuned", max_tokens=40),
        "gpt2": HuggingFace(model=str(folders["gpt2"]), train="tuned", max_tokens=40),
    }
    return sections[kind]


# ------------------------------------------------------------------- saved, and started from


@pytest.mark.parametrize("kind", ["words", "characters", "bert", "gpt2"])
def test_a_run_starts_from_the_weights_that_were_saved(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    section = section_of(kind, folders)
    encoder = saved(section, tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "encoder.json",
        "encoder.safetensors",
    }
    change = {"init_from": str(tmp_path / "saved"), "model": None}
    start = type(section)(**{
        k: v for k, v in {**section.model_dump(), **change}.items() if k != "model" or v
    })  # fmt: skip
    captions = [*CAPTIONS, "a purple flower"]
    tuned = build_encoder(start, ["other words"])
    assert tuned.trainable
    torch.testing.assert_close(codes(tuned, captions), codes(encoder, captions), rtol=0, atol=0)
    assert all(p.requires_grad for n, p in tuned.module.named_parameters() if "pooler" not in n)

    frozen = build_encoder(start.model_copy(update={"train": "frozen"}), [])
    assert (frozen.trainable, frozen.dim) == (False, encoder.dim)
    rows = frozen.rows(captions)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, codes(encoder, captions).numpy(), rtol=0, atol=1e-6)
    assert not any(p.requires_grad for p in frozen.module.parameters())
    given = torch.from_numpy(rows)
    torch.testing.assert_close(frozen.module(given), given)

    sha256 = pin(start)
    assert tuned.origin == frozen.origin == to_document(tuned)["origin"] == sha256


def test_a_frozen_one_is_cached_and_carries_its_weights(tmp_path: Path) -> None:
    store = open_store(Storage(uri=str(tmp_path / "store")))
    encoder = saved(WORDS, tmp_path / "saved")
    section = WORDS.model_copy(update={"init_from": str(tmp_path / "saved"), "train": "frozen"})
    frozen = build_encoder(section, [])
    first = caption_rows(frozen, CAPTIONS, store)
    assert len(store.list("embeddings")) == 2
    document = json.loads(json.dumps(to_document(frozen)))
    weights = {name: value.clone() for name, value in frozen.module.state_dict().items()}
    shutil.rmtree(tmp_path / "saved")

    again = load_encoder(document)
    assert (again.fingerprint, to_document(again)) == (frozen.fingerprint, document)
    np.testing.assert_array_equal(caption_rows(again, CAPTIONS, store), first)  # from the cache
    with pytest.raises(RuntimeError, match="before its weights were there"):
        again.rows(CAPTIONS)
    again.module.load_state_dict(weights)
    new = ["a white flower", "the petals"]
    np.testing.assert_allclose(again.rows(new), codes(encoder, new).numpy(), rtol=0, atol=1e-6)
    assert len(store.list("embeddings")) == 2


def test_each_content_and_each_cut_has_its_own_cache_entry(tmp_path: Path) -> None:
    saved(WORDS, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    other = build_encoder(WORDS, CAPTIONS)
    save_pretrained_encoder(other, tmp_path / "other")

    def frozen(folder: str, **change: object) -> Encoder:
        update = {"init_from": str(tmp_path / folder), "train": "frozen", **change}
        return build_encoder(WORDS.model_copy(update=update), [])

    one = frozen("one").fingerprint
    assert frozen("copy").fingerprint == one
    assert len({one, frozen("other").fingerprint, frozen("one", max_tokens=3).fingerprint}) == 3
    short = frozen("one", max_tokens=3).rows(["a red flower", "a red flower before leaves"])
    np.testing.assert_array_equal(short[0], short[1])


def test_the_identity_is_the_content_and_not_the_place(tmp_path: Path) -> None:
    saved(WORDS, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")

    def identity(folder: str) -> str:
        encoder = {**WORDS.model_dump(), "init_from": str(tmp_path / folder)}
        config = parse_config({"name": "n", "train": {"steps": 1}, "encoder": encoder})
        pinned = with_pinned_encoder(config)
        assert pinned.encoder.init_sha256 == pin(config.encoder)
        assert with_pinned_encoder(pinned) == pinned
        assert parse_config(pinned.model_dump(mode="json")) == pinned
        return identity_hash(pinned, "data")

    assert identity("one") == identity("copy")
    weights = load_file(tmp_path / "copy/encoder.safetensors")
    weights["project.bias"] += 1
    save_file(weights, tmp_path / "copy/encoder.safetensors")
    assert identity("one") != identity("copy")


def test_other_content_than_was_pinned_is_refused(tmp_path: Path) -> None:
    saved(WORDS, tmp_path / "one")
    update = {"init_from": str(tmp_path / "one"), "init_sha256": "0" * 64}
    with pytest.raises(UserError, match=r"encoder\.init_from=.*sha256 is .* not init_sha256=000"):
        build_encoder(WORDS.model_copy(update=update), [])


def test_a_place_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(WORDS, tmp_path / "one")
    looks = []

    def look(place: str, *more: Any) -> Path:
        looks.append(place)
        return local_folder(place, *more)

    monkeypatch.setattr("t2i_ray.encoders.saved.local_folder", look)
    start_from(WORDS.model_copy(update={"init_from": str(tmp_path / "one")}))
    assert len(looks) == 1  # else the sum may be of other weights


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "gru"}, ["a lstm encoder lies there", "encoder.kind=gru"]),
        ({"dim": 11, "hidden_dim": 3}, ["set encoder.hidden_dim=12 encoder.dim=10"]),
        ({"init_from": "/nowhere"}, ["/nowhere", "no encoder.json", "pretrain-encoder"]),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, Any], says: list[str]
) -> None:
    saved(WORDS, tmp_path)
    section = Recurrent(**{**WORDS.model_dump(), "init_from": str(tmp_path), **change})
    with pytest.raises(UserError) as caught:
        build_encoder(section, [])
    assert str(caught.value).startswith("encoder.init_from=")
    for part in says:
        assert part in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "json", "missing"])
def test_what_is_damaged_is_one_line(tmp_path: Path, damage: str) -> None:
    saved(WORDS, tmp_path)
    weights, document = tmp_path / "encoder.safetensors", tmp_path / "encoder.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif damage == "json":
        document.write_text('{"kind": "lstm"')
    else:
        tensors = load_file(weights)
        del tensors["project.bias"]
        save_file(tensors, weights)
    with pytest.raises(UserError, match=r"encoder\.init_from=.*can't be read: .*save it again$"):
        build_encoder(WORDS.model_copy(update={"init_from": str(tmp_path)}), [])


def test_folders_on_s3(
    s3: S3Server, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**s3.env, "T2I_RAY_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    storage = Storage(uri=f"s3://{s3.bucket}/{tmp_path.name}", endpoint=s3.endpoint)
    store = open_store(storage)
    for path in folders["xlnet"].iterdir():
        store.upload(path, f"models/xlnet/{path.name}")
    store.write("models/xlnet/onnx/model.safetensors", b"of no use")
    section = HuggingFace(model=f"{storage.uri}/models/xlnet")
    encoder = build_encoder(section, [], storage)
    here = build_encoder(HuggingFace(model=str(folders["xlnet"])), [])
    assert encoder.fingerprint == here.fingerprint
    np.testing.assert_array_equal(encoder.rows(CAPTIONS), here.rows(CAPTIONS))
    again = load_encoder(encoder.describe(), storage=storage)
    np.testing.assert_array_equal(again.rows(CAPTIONS), here.rows(CAPTIONS))

    trained = build_encoder(WORDS, CAPTIONS)
    save_pretrained_encoder(trained, store.within("encoders/words"))
    start = WORDS.model_copy(update={"init_from": f"{storage.uri}/encoders/words"})
    assert torch.equal(codes(build_encoder(start, [], storage), CAPTIONS), codes(trained, CAPTIONS))
    other = build_encoder(WORDS, CAPTIONS)
    save_pretrained_encoder(other, store.within("encoders/words"))  # what is there now counts
    assert torch.equal(codes(build_encoder(start, [], storage), CAPTIONS), codes(other, CAPTIONS))

    for uri in ("s3://no-such-bucket-here/x", f"{storage.uri}/empty"):
        with pytest.raises(UserError, match=rf"encoder\.model={uri}: "):
            build_encoder(section.model_copy(update={"model": uri}), [], storage)
    with pytest.raises(UserError, match=r"^encoder\.model: must not hold credentials"):
        build_encoder(section.model_copy(update={"model": "s3://id:sesame@b/x"}), [], storage)


# ------------------------------------------------------------------------------ the user's own

MINE = '''
import numpy as np
import torch
from t2i_ray.encoders import Encoder


class Letters(Encoder):
    """Counts of letters, through a linear layer."""

    trainable = True
    fingerprint = None

    def __init__(self, dim):
        self.dim = dim
        self.module = torch.nn.Sequential(Float(), torch.nn.Linear(26, dim))

    @classmethod
    def build(cls, options, captions):
        return cls(**options)

    @classmethod
    def load(cls, description):
        return cls(description["dim"])

    def rows(self, captions):
        return np.array([[text.count(chr(97 + i)) for i in range(26)] for text in captions])

    def describe(self):
        return {"dim": self.dim}


class Float(torch.nn.Module):
    def forward(self, rows):
        return rows.to(torch.get_default_dtype())


class Counts(Letters):
    """The counts themselves."""

    trainable = False
    fingerprint = "counts 1"

    def __init__(self, dim):
        self.dim = dim
        self.module = torch.nn.Identity()

    def rows(self, captions):
        return super().rows(captions)[:, :self.dim].astype(np.float32)


class Lacking(Encoder):
    def rows(self, captions):
        return None


class Unmade(Encoder):
    def rows(self, captions):
        return None

    def describe(self):
        return {}


class Nameless(Counts):
    fingerprint = None


class NotOne:
    pass
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's; its name."""
    name = f"mine_{abs(hash(tmp_path))}"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / f"{name}.py").write_text(MINE)
    (tmp_path / "code" / f"{name}_broken.py").write_text("import no_such_module_at_all")
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.delenv("T2I_RAY_TARGETS", raising=False)
    return name


def test_a_class_of_the_users_own(mine: str, tmp_path: Path) -> None:
    section = Custom(target=f"{mine}:Letters", options={"dim": 4})
    encoder = build_encoder(section, CAPTIONS)
    assert (encoder.dim, encoder.trainable, encoder.fingerprint) == (4, True, None)
    document = json.loads(json.dumps(to_document(encoder)))
    assert mine not in json.dumps(document)
    again = load_encoder(document, section.target)
    again.module.load_state_dict(encoder.module.state_dict())
    assert torch.equal(codes(again, CAPTIONS), codes(encoder, CAPTIONS))
    with pytest.raises(UserError, match=r"encoder\.target"):
        load_encoder(document)

    save_pretrained_encoder(encoder, tmp_path / "saved")
    update = {"init_from": str(tmp_path / "saved"), "train": "frozen"}
    frozen = build_encoder(section.model_copy(update=update), [])
    np.testing.assert_allclose(frozen.rows(CAPTIONS), codes(encoder, CAPTIONS), atol=1e-6)

    store = open_store(Storage(uri=str(tmp_path / "store")))
    counts = build_encoder(Custom(target=f"{mine}:Counts", options={"dim": 3}, train="frozen"), [])
    rows = caption_rows(counts, CAPTIONS, store)
    assert rows[0].tolist() == [1, 0, 0]
    assert len(store.list("embeddings")) == 2


@pytest.mark.parametrize(
    ("target", "train", "says"),
    [
        ("nowhere.at_all:X", "tuned", ["can't be imported", "nowhere", "PYTHONPATH"]),
        ("{mine}_broken:X", "tuned", ["can't be imported", "no_such_module_at_all"]),
        ("{mine}:Absent", "tuned", ["no such class"]),
        ("{mine}:NotOne", "tuned", ["no Encoder", "Encoder"]),
        ("{mine}:Lacking", "tuned", ["it has no describe", "add"]),
        ("{mine}:Unmade", "tuned", ["it has no build, no load", "add"]),
        ("{mine}:Nameless", "frozen", ["fingerprint"]),
        ("{mine}:Letters", "frozen", ["encoder.train=frozen", "set it to tuned"]),
        ("{mine}:Counts", "tuned", ["encoder.train=tuned", "set it to frozen"]),
    ],
)
def test_a_class_that_will_not_do(mine: str, target: str, train: Any, says: list[str]) -> None:
    section = Custom(target=target.format(mine=mine), options={"dim": 2}, train=train)
    with pytest.raises(UserError) as caught:
        build_encoder(section, CAPTIONS)
    assert "\n" not in str(caught.value)
    for part in says:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "stored",
    [
        {"space": {"encoder": {"grid": {"a": {"kind": "custom", "target": "{mine}:Letters"}}}}},
        {"space": {"model.family": {"choice": ["gan_cls", "{mine}:Letters"]}}},
        {"model": {"family": "{mine}:Letters"}, "encoder": {"kind": "gru"}},
    ],
)
def test_what_is_stored_is_not_reason_enough_to_import(
    mine: str, tmp_path: Path, stored: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = json.dumps(stored).replace("{mine}", mine)
    store = open_store(Storage(uri=str(tmp_path / "store")))
    store.write("sweeps/s/config.json", text.encode())
    says = r"not imported only because a stored config says so"
    with pytest.raises(UserError, match=says):
        start_sweep(None, [], "s", store.uri, None)
    with pytest.raises(UserError, match=says):
        Pipeline.from_parts({}, {"config": json.loads(text)})
    require_allowed({"model": {"family": "cgan"}, "encoder": {"options": {"ratio": "a:b"}}})
    allow([f"{mine}:Letters"])
    require_allowed(json.loads(text))
    monkeypatch.delenv("T2I_RAY_TARGETS")
    assert mine not in sys.modules


def test_options_of_a_users_encoder_name_no_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"kind": "custom", "target": "a:B", "options": {"target": "c:D", "family": ["e:F"]}}
    space = {
        "encoder": {"grid": {"options": own}},
        "encoder.options.target": {"grid": ["c:D"]},
        "model.family": {"choice": {"options": "g:H"}},  # a label
    }
    assert [*classes_in({"encoder": own})] == [("encoder.target", "a:B")]
    assert [name for _, name in classes_in({"space": space})] == ["a:B", "g:H"]
    config = parse_config({"name": "n", "train": {"steps": 1}, "encoder": own})
    monkeypatch.delenv("T2I_RAY_TARGETS", raising=False)
    assert worker_environment(config)["T2I_RAY_TARGETS"] == "a:B"
    monkeypatch.setenv("T2I_RAY_TARGETS", "i:J a:B")  # what the driver may import, workers may
    assert worker_environment(config)["T2I_RAY_TARGETS"] == "i:J a:B"


# ---------------------------------------------------------------------- captions that are read


def test_scripts_are_those_of_letters_and_symbols() -> None:
    assert scripts_of(["A red flower, 12 petals! ½ ℃", "ﬁne"]) == ["LATIN"]
    assert scripts_of(["қызыл гүл", "red"]) == ["CYRILLIC", "LATIN"]
    assert scripts_of(["赤い花", "ピンク", "ﾋﾟﾝｸ"]) == ["CJK"]
    assert scripts_of(["", "12 ?!", "\u0301", "20°", "©"]) == []
    assert scripts_of(["🌹", "a ★"]) == ["LATIN", "SYMBOLS"]
    assert scripts_of(["a red flower"] * 200 + ["я"], least=0.001) == ["LATIN"]
    assert scripts_of(["a red flower"] * 200 + ["я"] * 3, least=0.001) == ["CYRILLIC", "LATIN"]


def test_what_is_refused_and_what_is_only_half_read() -> None:
    encoder = build_encoder(WORDS, CAPTIONS)
    encoder.scripts = scripts_of(CAPTIONS)
    assert refusal(encoder, "a red flower") is None
    assert refusal(encoder, "") == refusal(encoder, "!!! ...") == "it has no words"
    assert refusal(encoder, "🌹") == "it is written in SYMBOLS, and the training captions in LATIN"
    assert unknown_words(encoder, "a red 🌹 !") == (["🌹"], 3)
    assert unknown_words(encoder, "a crimson flower; crimson!") == (["crimson", "crimson"], 4)
    assert refusal(encoder, "a crimson thing") is None
    assert refusal(encoder, "rote Blume, weiß") == "the encoder knows none of its 3 words"
    assert refusal(encoder, "қызыл гүл, white") is None  # some of it can be read
    told = refusal(encoder, "қызыл гүл")
    assert told == "it is written in CYRILLIC, and the training captions in LATIN"


def test_a_model_that_reads_every_script_was_trained_on_one(folders: dict[str, Path]) -> None:
    encoder = build_encoder(HuggingFace(model=str(folders["gpt2"])), [])
    assert refusal(encoder, "red flower") is None
    encoder.scripts = ["LATIN"]
    assert "CYRILLIC" in str(refusal(encoder, "красный цветок"))
    encoder.scripts = ["CYRILLIC", "LATIN"]
    encoder.unreadable = lambda caption: []  # type: ignore[method-assign] # as byte-level ones do
    assert refusal(encoder, "красный цветок") is None
    encoder.scripts = ["LATIN"]
    assert unknown_words(encoder, "қызыл гүл x") == (["қызыл", "гүл"], 3)
    assert unknown_words(encoder, "x 🌹") == (["🌹"], 2)
    assert "SYMBOLS" in str(refusal(encoder, "🌹"))
    assert refusal(encoder, "қызыл гүл x") is None


# ------------------------------------------------------------------ whole runs, without Ray


def run_config(tmp_path: Path, name: str, encoder: dict[str, Any], **train: Any) -> Config:
    return parse_config(
        {
            "name": name,
            "data": flowers(images=64),
            "model": networks(4, 6, [8, 6], ema=0.5),
            "encoder": encoder,
            "train": {"steps": 4, "batch_size": 8, "micro_batches": 2, "sample_every": 4, **train},
            "checkpoint": {"every": 2},
            "storage": {"uri": str(tmp_path / "store")},
            "tracking": {"enabled": False},
        }
    )


def run(config: Config, until: int | None = None, *, begins: bool = True) -> Checkpoint:
    """Train as one worker, given what the driver makes at the start; the newest checkpoint."""
    store = open_store(config.storage)
    data = prepare(config.data, store)
    about = describe(config, key=config.name).to_json()
    document = config.model_dump(mode="json")
    shared = make_shared(document, data) if begins else None
    job = Job(document, data, shared, about, quiet=True, until=until)
    assert train(job, Worker()).status == ("RUNNING" if until else "FINISHED")
    place = run_store(store, config.name).within("checkpoints")
    checkpoint = Checkpoints(place, keep=1).latest()
    assert checkpoint is not None
    return checkpoint


def encoders_of_runs(folders: dict[str, Path], tmp_path: Path, mine: str) -> dict[str, Any]:
    saved(WORDS, tmp_path / "saved")
    bert = Path(shutil.copytree(folders["bert"], tmp_path / "bert"))
    return {
        "tuned": {"kind": "bert", "model": str(bert), "train": "tuned", "max_tokens": 40},
        "named": {"kind": "bert", "model": str(folders["bert"]), "max_tokens": 40},
        "frozen": {**WORDS.model_dump(), "init_from": str(tmp_path / "saved"), "train": "frozen"},
        "started": {**WORDS.model_dump(), "init_from": str(tmp_path / "saved")},
        "custom": {"kind": "custom", "target": f"{mine}:Letters", "options": {"dim": 4}},
        "characters": {"kind": "char_cnn_rnn", "channels": [8, 6, 4], "dim": 5},
    }


@pytest.mark.parametrize("kind", ["tuned", "named", "frozen", "started", "custom", "characters"])
def test_a_run_goes_on_bit_for_bit_and_draws_without_what_it_began_with(
    kind: str,
    folders: dict[str, Path],
    tmp_path: Path,
    mine: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = encoders_of_runs(folders, tmp_path, mine)[kind]
    unbroken = run(run_config(tmp_path, "unbroken", encoder))
    broken = run_config(tmp_path, "broken", encoder)
    run(broken, until=2)
    for gone in ("saved", "bert"):
        shutil.rmtree(tmp_path / gone)
    checkpoint = run(broken, begins=False)
    assert checkpoint.step == unbroken.step == 4
    for part, tensors in unbroken.tensors.items():
        for name, value in tensors.items():
            assert torch.equal(checkpoint.tensors[part][name], value), f"{part} {name}"
    assert checkpoint.documents["encoder"]["scripts"] == ["LATIN"]
    trained = checkpoint.tensors.get("encoder")  # a frozen one is its own average, saved once
    assert (trained is None) == (kind in ("named", "frozen"))
    average = checkpoint.tensors["encoder_ema"]
    assert trained is None or any(not torch.equal(trained[name], average[name]) for name in average)

    folder = tmp_path / "exported"
    folder.mkdir()
    export(checkpoint, folder)
    if kind == "custom":
        with pytest.raises(UserError, match=r"encoder\.target=.*--allow-target"):
            Pipeline.from_folder(folder)
        monkeypatch.setenv("T2I_RAY_TARGETS", f"other:Class {mine}:Letters")
    pipeline = Pipeline.from_folder(folder)
    captions = ["a red flower", "the petals are white"]
    assert pipeline.images(captions, [0, 0]).shape == (2, 16, 16, 3)
    one, other = pipeline.encode(captions)
    assert not torch.equal(one, other)


def test_generate_warns_of_unknown_words_and_refuses_another_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "exported"
    folder.mkdir()
    export(run(run_config(tmp_path, "reads", {"kind": "gru", **SIZES})), folder)
    capsys.readouterr()

    def drawn(*captions: str, force: bool = False) -> str:
        """What was said on standard error."""
        output = tmp_path / "grid.png"
        output.unlink(missing_ok=True)
        draw(str(folder), [*captions], None, output, 1, 0, None, force, str(tmp_path), None)
        assert output.is_file()
        return capsys.readouterr().err

    assert drawn("a flower with white petals") == ""
    assert drawn("a zebra with a flower", "a zebra", "petals") == (
        "warning: caption 'a zebra with a flower': 1 unknown to this model's text encoder: zebra\n"
        "warning: caption 'a zebra': 1 unknown to this model's text encoder: zebra\n"
    )
    with pytest.raises(UserError) as caught:
        drawn("a flower", "қызыл гүл", "красный цветок", "zebra")
    assert "\n" not in str(caught.value)
    for part in ("'қызыл гүл'", "CYRILLIC", "LATIN", "and 2 more", "--force"):
        assert part in str(caught.value)
    assert "қызыл, гүл" in drawn("қызыл гүл", force=True)


def test_a_config_file_may_name_every_kind(tmp_path: Path) -> None:
    kinds = ["rnn", "gru", "bigru", "lstm", "bilstm", "char_cnn_rnn", "xlnet", "bert", "gpt2"]
    for kind in kinds:
        text = yaml.safe_dump({"name": "n", "train": {"steps": 1}, "encoder": {"kind": kind}})
        config = parse_config(yaml.safe_load(text))
        assert config.encoder.kind == kind
        assert config.encoder.frozen == (kind in ("xlnet", "bert", "gpt2"))
        assert config.encoder.outside == config.encoder.frozen


# ----------------------------------------------------------------- before the workers start


def test_what_a_run_takes_from_outside_is_looked_for_before_it_starts(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    saved(WORDS, tmp_path / "saved")
    pretrained = {**WORDS.model_dump(), "init_from": str(tmp_path / "saved")}
    bert = {"kind": "bert", "model": str(folders["bert"]), "max_tokens": 40}

    def shared(encoder: dict[str, Any]) -> dict[str, Any] | None:
        config = run_config(tmp_path, "n", encoder)
        data = prepare(config.data, open_store(config.storage))
        return make_shared(config.model_dump(mode="json"), data)

    store = open_store(Storage(uri=str(tmp_path / "store")))
    assert shared({"kind": "gru"}) is None
    assert shared({**bert, "train": "tuned"}) is None
    assert shared(pretrained) is None
    assert store.list("embeddings") == []
    description = shared(bert)
    assert description is not None
    assert description["kind"] == "huggingface"  # workers need the embeddings alone
    assert shared({**pretrained, "train": "frozen"}) is None  # and here its weights as well
    assert len(store.list("embeddings")) == 4
    for missing in (
        {"kind": "bert", "model": "/nowhere/at/all", "train": "tuned"},
        {"kind": "gru", "init_from": "/nowhere"},
        {"kind": "custom", "target": "nowhere:X"},
    ):
        with pytest.raises(UserError, match=r"^encoder\.(model|init_from|target)=.*nowhere"):
            shared(missing)


def test_a_sweeps_encoders_are_pinned_and_their_paths_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(WORDS, tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    run = run_config(tmp_path, "s", {"kind": "gru"}).model_dump(mode="json")
    run["evaluation"] = {"every": 4}
    grid = {"here": {**WORDS.model_dump(), "init_from": "saved"}, "new": {"kind": "gru"}}
    sweep = parse_sweep({**run, "space": {"encoder": {"grid": grid}}})
    tasks = Tasks(open_store(sweep.run.storage), sweep, "commit")
    found = trials(sweep, settings(sweep), [0])
    first, second = (tasks._settled(trial.config).encoder for trial in found)
    assert (second.init_from, second.init_sha256) == (None, None)
    assert first.init_from == str(tmp_path / "saved")
    assert first.init_sha256 == pin(first)


def encoders_of(name: str) -> dict[str, dict[str, Any]]:
    """The encoders that a comparison as shipped compares."""
    found = load_sweep(REPOSITORY / f"tune_configs/{name}.yaml").space["encoder"].grid
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("sweep", "config"),
    [
        ("published_comparison_autoencoders", "pretrain_16"),
        ("published_comparison_oxford", "gan_cls_64"),
    ],
)
def test_the_comparisons_start_from_what_their_pretraining_makes(
    folders: dict[str, Path], tmp_path: Path, sweep: str, config: str
) -> None:
    made: dict[str, EncoderConfig] = {
        "bigru-autoencoder": load_config(REPOSITORY / f"configs/{config}.yaml").encoder,
        "xlnet-autoencoder": HuggingFace(train="tuned", model=str(folders["xlnet"])),
    }
    for name, section in made.items():
        save_pretrained_encoder(build_encoder(section, CAPTIONS), tmp_path / name)
        encoder = encoders_of(sweep)[name]
        assert encoder["train"] == "frozen"
        assert encoder["init_from"].startswith(f"~/t2i_ray/runs/{name}")
        given = type(section).model_validate({**encoder, "init_from": str(tmp_path / name)})
        build_encoder(given, [])  # refuses other kinds and sizes


def test_the_comparison_with_autoencoders_differs_in_nothing_else() -> None:
    names = ("published_comparison", "published_comparison_autoencoders")
    plain, auto = (
        yaml.safe_load((REPOSITORY / f"tune_configs/{name}.yaml").read_text()) for name in names
    )
    for document in (plain, auto):
        del document["name"], document["space"]["encoder"]
    assert plain == auto
    assert [*encoders_of(names[0])] == ["bigru", "xlnet"]
    assert [*encoders_of(names[1])] == ["bigru-autoencoder", "xlnet-autoencoder"]


def test_a_sweep_over_places_pins_what_lies_at_each(tmp_path: Path) -> None:
    for name in ("a", "b"):
        encoder = build_encoder(WORDS, CAPTIONS)  # with other first weights each time
        save_pretrained_encoder(encoder, tmp_path / name)
    section = {**WORDS.model_dump(), "init_from": str(tmp_path / "a")}
    run = with_pinned_encoder(run_config(tmp_path, "s", section))
    grid = {"grid": [str(tmp_path / "a"), str(tmp_path / "b"), None]}
    document = {**run.model_dump(mode="json"), "evaluation": {"every": 4}}
    sweep = parse_sweep({**document, "space": {"encoder.init_from": grid}})
    tasks = Tasks(open_store(sweep.run.storage), sweep, "commit")
    found = [tasks._settled(trial.config).encoder for trial in trials(sweep, settings(sweep), [0])]
    sums = [each.init_from and pin(each) for each in found]
    assert [each.init_sha256 for each in found] == sums
    assert len({*sums}) == 3
