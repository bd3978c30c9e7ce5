"""Whatever is in a file: one line for the user, nothing written elsewhere, and nothing run.

The examples are drawn by hypothesis, the same ones in every run of the tests.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject, SearchStrategy
from layouts import LAYOUTS, image
from small_configs import TINY, flowers

from t2i_ray import config
from t2i_ray.checkpoint import Checkpoints, DamagedCheckpoint
from t2i_ray.config import UserError, load_config, load_sweep, parse_config
from t2i_ray.data import open_prepared, prepare
from t2i_ray.data.captions import clean
from t2i_ray.encoders import build_encoder, caption_rows
from t2i_ray.runs import is_lost, read_progress, read_run
from t2i_ray.storage import LocalStore, StorageError

TOLD = (UserError, StorageError)
PHASES = (Phase.explicit, Phase.generate)  # what fails is not made smaller: that takes minutes


def examples(count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """So many, the same in every run."""
    slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(
        max_examples=count, derandomize=True, deadline=None, database=None, phases=PHASES,
        suppress_health_check=slow,
    )  # fmt: skip


# ------------------------------------------------------------------------------- the watch

FORBIDDEN = {
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen",
    "pickle.find_class", "socket.connect", "ctypes.dlopen", "os.symlink", "os.link",
}  # fmt: skip
CHANGING = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"}
_inside: list[Path] = []  # where the code that is watched may write
_seen: list[str] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _inside:
        return
    if event in FORBIDDEN and event not in ("os.link",):
        _seen.append(f"{event} {arguments}")
    if event in CHANGING or event == "os.link":
        paths = arguments[:2] if event in ("os.rename", "os.link") else arguments[:1]
    elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
        paths = arguments[:1]
    else:
        return
    for path in paths:
        if isinstance(path, str | bytes | os.PathLike):
            place = Path(os.path.realpath(os.fsdecode(path)))
            if not place.is_relative_to(_inside[0]) and place.suffix != ".pyc":
                _seen.append(f"{event} {place}")


_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
sys.addaudithook(_hook)  # for good: Python knows no way to take one away


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """What runs in here writes below the folder alone, and starts nothing."""
    _seen.clear()
    _inside.append(folder.resolve())
    try:
        yield
    finally:
        _inside.clear()
    assert not _seen


def test_the_watch_sees(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    with watched(inside):
        (inside / "a").write_text("a")
    for act in (
        lambda: (tmp_path / "b").write_text("b"),
        lambda: (inside / "a").rename(tmp_path / "c"),
        lambda: os.system("true"),
    ):
        with pytest.raises(AssertionError), watched(inside):
            act()


# ------------------------------------------------------------------------------ strategies

ODD = ["", "../x", "/etc/passwd", "s3://b/p", "a\x00b", "\ud800", "nan", "1e999", "~", "x" * 300]
TEXTS = st.text(max_size=20) | st.sampled_from(ODD)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
    | st.sampled_from([-1, 0, 2**31, 2**64, 10**400])
)  # fmt: skip
VALUES: SearchStrategy[Any] = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3)
)
DEEP = b"[" * 1500  # beyond what Python nests


def paths_of(document: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested mappings and lists."""
    inner: Any = ()
    if isinstance(document, dict):
        inner = document.items()
    elif isinstance(document, list):
        inner = enumerate(document)
    return [prefix, *(path for key, value in inner for path in paths_of(value, (*prefix, key)))]


def changed(data: DataObject, document: Any) -> Any:
    """The document with something else in one place, or with one place less or more."""
    *way, last = data.draw(st.sampled_from(paths_of(document)[1:]))
    document = json.loads(json.dumps(document))
    place = document
    for key in way:
        place = place[key]
    how = data.draw(st.sampled_from(["other", "gone", "more"]))
    if how == "other":
        place[last] = data.draw(VALUES)
    elif how == "gone":
        del place[last]
    elif isinstance(place, dict):
        place[data.draw(TEXTS)] = data.draw(VALUES)
    else:
        place.append(data.draw(VALUES))
    return document


def damaged(data: DataObject, content: bytes) -> bytes:
    """The bytes cut, with some others in the middle, or others altogether."""
    at = data.draw(st.integers(0, len(content)))
    how = data.draw(st.sampled_from(["cut", "overwritten", "inserted", "other"]))
    new = data.draw(st.binary(max_size=16) | st.sampled_from([DEEP, b"\x00" * 600, b"\xff\xfe{"]))
    if how == "cut":
        return content[:at]
    if how == "other":
        return new
    return content[:at] + new + content[at + (len(new) if how == "overwritten" else 0) :]


# --------------------------------------------------------------------------------- configs

RUN = {**TINY, "name": "a", "guard": {"action": "stop"}, "storage": {"uri": "here"}}
SWEEP = {
    **RUN,
    "evaluation": {"every": 20},
    "space": {"optim.lr_g": {"loguniform": [1e-4, 1e-2]}, "train.matching": {"grid": [0.0, 1.0]}},
    "search": {"method": "random", "trials": 2, "scheduler": {"kind": "asha", "grace": 20}},
}


@examples(150)
@given(st.data())
def test_any_config_is_read_or_refused_in_one_line(tmp_path: Path, data: DataObject) -> None:
    document, load = data.draw(
        st.sampled_from([(RUN, load_config), (SWEEP, load_sweep), (RUN, load_config)])
    )
    path = tmp_path / "run.yaml"
    if data.draw(st.booleans()):
        document = changed(data, document)
        content = yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "surrogatepass")
    else:
        content = damaged(data, yaml.safe_dump(document).encode())
    path.write_bytes(content)
    refuses_in_one_line(tmp_path, lambda: load(path))


def refuses_in_one_line(folder: Path, act: Callable[[], Any]) -> None:
    with watched(folder):
        try:
            act()
        except UserError as error:
            said = str(error)
        else:
            return
    assert len(said.splitlines()) == 1


@examples(150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "",
                    "train",
                    "train.steps",
                    "train..steps",
                    "encoder.kind",
                    "data.source",
                    "name",
                    "x.y",
                    ".",
                ]
            )
            | TEXTS,
            TEXTS | VALUES.map(repr),
        ).map(lambda pair: f"{pair[0]}={pair[1]}")
        | TEXTS,
        max_size=3,
    )
)
def test_any_override_is_taken_or_refused_in_one_line(tmp_path: Path, given: list[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(RUN))
    refuses_in_one_line(tmp_path, lambda: load_config(path, given))


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['true']",
        "name: !!python/name:os.system",
        "a: &a [*a]",
        "name: a\ntrain: &t {steps: *t}",
        "when: 2001-99-99",
        f"n: {'9' * 5000}",
        "[" * 1000,
        "? {a: b}\n: c",
        "a: !!binary '*'",
        "a: !!float x",
        "a: 1:99:x",
        "<<: 3",
    ],
)
def test_yaml_that_is_none_or_wants_to_run_something(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    for load in (load_config, load_sweep):
        with watched(tmp_path), pytest.raises(UserError):
            load(path)
    with watched(tmp_path), suppress(UserError):
        parse_config({"name": "a", "train": {"steps": 1}, "storage": {"uri": text}})
    path.write_text(yaml.safe_dump(RUN))
    refuses_in_one_line(tmp_path, lambda: load_config(path, [f"train.steps={text}"]))


# -------------------------------------------------------------------------------- captions


@examples(150)
@given(st.text(max_size=300))
def test_any_caption_is_cleaned_once_and_for_all(text: str) -> None:
    kept, _ = clean(text)
    assert clean(kept) == (kept, False)
    kept.encode()
    assert "\n" not in kept


@examples(20)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_any_captions_make_a_vocabulary(tmp_path: Path, texts: list[str]) -> None:
    run = parse_config({**RUN, "storage": {"uri": str(tmp_path)}})
    captions = [kept for text in texts if (kept := clean(text)[0])] or ["a"]
    with watched(tmp_path):
        encoder = build_encoder(run.encoder, captions, run.storage)
        rows = caption_rows(encoder, [*captions, "𓀀 unheard of"], LocalStore(tmp_path))
    assert len(rows) == len(captions) + 1


# ------------------------------------------------------------------- manifests and records


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("prepared")
    section = config.Data.model_validate(flowers(64))
    return folder, prepare(section, LocalStore(folder))


@examples(100)
@given(st.data())
def test_any_manifest_is_read_or_refused(
    tmp_path: Path, prepared: tuple[Path, str], data: DataObject
) -> None:
    folder, prefix = prepared
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    place = tmp_path / prefix
    (table,) = place.glob("shards/*.parquet")
    (pictures,) = place.glob("shards/*.npy")
    manifest = json.loads((place / "manifest.json").read_text())
    which = data.draw(st.sampled_from(["values", "bytes", "table", "pictures"]))
    if which == "values":
        manifest = changed(data, manifest)
    if which in ("table", "pictures"):
        path, name = (table, "table") if which == "table" else (pictures, "images")
        content = damaged(data, path.read_bytes())
        path.write_bytes(content)
        # The sum may be right all the same: whoever wrote the one wrote the other.
        if data.draw(st.booleans()):
            manifest["shards"][0][f"{name}_sha256"] = hashlib.sha256(content).hexdigest()
    text = json.dumps(manifest).encode()
    (place / "manifest.json").write_bytes(damaged(data, text) if which == "bytes" else text)
    with watched(tmp_path), suppress(*TOLD):
        found = open_prepared(LocalStore(tmp_path), prefix)
        found.images(found.ids("train")[:2])


@examples(100)
@given(st.data())
def test_any_record_of_a_run_is_read_or_refused(tmp_path: Path, data: DataObject) -> None:
    store = LocalStore(tmp_path)
    identity = {"name": "a", "hash": "h", "identity": {}, "data": "d", "steps": 3}
    attempt = {"number": 1, "started": "2026-01-01T00:00:00+00:00"}
    record = {**identity, "status": "RUNNING", "attempts": [attempt]}
    progress = {"step": 3, "time": "2026-01-01T00:00:00+00:00", "pid": 3}
    lease = {"attempt": 1, "time": "2026-01-01T00:00:00+00:00"}
    whole = {"run": record, "progress": progress, "lease": lease}
    broken = data.draw(st.sampled_from(sorted(whole)))
    for name, document in whole.items():
        content = json.dumps(document).encode()
        if name == broken and data.draw(st.booleans()):
            content = json.dumps(changed(data, document)).encode()
        elif name == broken:
            content = damaged(data, content)
        store.write(f"runs/a/{name}.json", content)
    with watched(tmp_path), suppress(*TOLD):
        found = read_run(store, "a")
        assert found
        is_lost(store, found)
        read_progress(store, "a")


# ------------------------------------------------------------------------------ checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    kept = Checkpoints(LocalStore(folder), keep=3)
    for step in (1, 2):
        kept.save(step, {"generator": {"w": torch.ones(3)}}, {"state": {"step": step, "x": [1]}})
        kept.wait()
    return folder


@examples(120)
@given(st.data())
def test_any_checkpoint_is_sound_or_named_and_passed_over(
    tmp_path: Path, checkpoint: Path, data: DataObject
) -> None:
    shutil.rmtree(tmp_path)
    shutil.copytree(checkpoint, tmp_path)
    place = tmp_path / "step_00000002"
    name = data.draw(st.sampled_from(["manifest.json", "state.json", "generator.safetensors"]))
    content = (place / name).read_bytes()
    if name == "manifest.json" and data.draw(st.booleans()):
        content = json.dumps(changed(data, json.loads(content))).encode()
    else:
        content = damaged(data, content)
    (place / name).write_bytes(content)
    if name != "manifest.json" and data.draw(st.booleans()):  # with sums that are right
        manifest = json.loads((place / "manifest.json").read_text())
        sums = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        manifest["files"][name] = sums
        (place / "manifest.json").write_text(json.dumps(manifest))
    kept = Checkpoints(LocalStore(tmp_path), keep=1)
    with watched(tmp_path):
        with suppress(DamagedCheckpoint):
            kept.load(2)
        newest = kept.latest()
        assert newest
        assert newest.step in (1, 2)
        kept.best()


# ---------------------------------------------------------------------------------- sources

FILES = {
    "webdataset": "train-00000.tar", "hdf5": "flowers.hdf5", "parquet": "*.parquet",
    "coco": "annotations/captions_train2017.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    for name in FILES:
        LAYOUTS[name](folder / name)
    return folder


def prepares_or_refuses(folder: Path, source: Any) -> None:
    """Every picture is kept, or rejected with a reason, or all of it is refused."""
    section = config.Data(source=source, image_size=16, load_size=18, max_rejected=1.0)
    with watched(folder), suppress(*TOLD):
        store = LocalStore(folder / "store")
        found = open_prepared(store, prepare(section, store))
        found.images(found.ids("train")[:1])


@examples(120)
@given(st.data())
def test_any_damage_to_a_source_is_told(tmp_path: Path, layouts: Path, data: DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(FILES)))
    shutil.rmtree(tmp_path)
    shutil.copytree(layouts / name, tmp_path / name)
    path = sorted((tmp_path / name).rglob(FILES[name]))[0]
    path.write_bytes(damaged(data, path.read_bytes()))
    source = LAYOUTS[name](tmp_path / "again").source
    place = str(getattr(source, "path")).replace("/again", f"/{name}")  # noqa: B009
    prepares_or_refuses(tmp_path, source.model_copy(update={"path": place}))


ENDINGS = st.sampled_from([".jpg", ".txt", ".json", ".cls", ".png", "", ".tar", "/"])
NAMES = st.sampled_from(["a", "b", "c/a", "../a", "/a", "./a", "a" * 150, "ä"]) | TEXTS
TYPES = st.sampled_from([
    tarfile.REGTYPE, tarfile.REGTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE,
    tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, b"Z",
])  # fmt: skip
CONTENTS = (
    st.binary(max_size=40) | VALUES.map(lambda value: json.dumps(value).encode())
    | st.sampled_from([image(1), b'{"caption": "a flower"}', b"a flower", DEEP])
)  # fmt: skip


@examples(80)
@given(st.lists(st.tuples(NAMES, ENDINGS, TYPES, CONTENTS, TEXTS), max_size=6))
def test_any_members_of_a_tar(
    tmp_path: Path, members: list[tuple[str, str, bytes, bytes, str]]
) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", errors="surrogateescape") as archive:
        archive.addfile(*member("0000.jpg", tarfile.REGTYPE, image(2), ""))
        archive.addfile(*member("0000.txt", tarfile.REGTYPE, b"a flower", ""))
        for name, ending, kind, content, link in members:
            with suppress(ValueError, UnicodeError):  # what no tar can hold
                archive.addfile(*member(name + ending, kind, content, link))
    (tmp_path / "train.tar").write_bytes(packed.getvalue())
    prepares_or_refuses(tmp_path, config.WebDataset(path=str(tmp_path)))


def member(name: str, kind: bytes, content: bytes, link: str) -> tuple[tarfile.TarInfo, Any]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(content), link
    return info, io.BytesIO(content)


H5_NAMES = st.sampled_from(["a_0", "a_1", "b_0", "_0", "0", "ä_1", "a b_2"])
H5_VALUES = (
    st.integers(-(2**60), 2**60) | st.floats() | st.sampled_from(["a flower", b"\xff\x00x", ""])
    | st.sampled_from(["external", "soft", "dangling", "virtual", "group", "picture", "own"])
)  # fmt: skip


@examples(80)
@given(st.lists(st.tuples(
    st.sampled_from(["train", "valid", "test", "other"]), H5_NAMES,
    st.dictionaries(st.sampled_from(["img", "txt", "class", "name"]), H5_VALUES),
), max_size=5))  # fmt: skip
def test_any_records_of_an_hdf5_file(
    tmp_path: Path, records: list[tuple[str, str, dict[str, Any]]]
) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    secret = tmp_path / "secret"
    secret.write_bytes(b"nobody is to read this")
    path = tmp_path / "flowers.hdf5"
    with h5py.File(path, "w") as file:
        for group, name, fields in [("train", "z_0", {"img": "picture", "txt": "fine"}), *records]:
            record = file.require_group(f"{group}/{name}")
            for field, value in fields.items():
                with suppress(ValueError, OSError):  # what no file can hold
                    put(record, field, value, secret)
    prepares_or_refuses(tmp_path, config.Hdf5(path=str(path)))
    for kept in (tmp_path / "store").rglob("*"):
        assert not kept.is_file() or b"nobody is to read" not in kept.read_bytes()


def put(record: Any, field: str, value: Any, secret: Path) -> None:
    if value == "external":
        where = [(str(secret), 0, 22)]
        record.create_dataset(field, (22,), "u1", external=where)
    elif value == "soft":
        record[field] = h5py.SoftLink("/train")
    elif value == "dangling":
        record[field] = h5py.ExternalLink(str(secret), "/nothing")
    elif value == "virtual":
        layout = h5py.VirtualLayout(shape=(4,), dtype="u1")
        layout[:] = h5py.VirtualSource(str(secret), "x", shape=(4,))
        record.create_virtual_dataset(field, layout)
    elif value == "group":
        record.create_group(field)
    elif value == "picture":
        record[field] = bytearray(image(3))
    else:
        record[field] = value


CELLS = TEXTS | st.sampled_from(["a.png", "image", "caption", "split", "a flower", '"', ",", "\n"])


@examples(100)
@given(
    st.sampled_from([".jsonl", ".csv", ".tsv"]),
    st.binary(max_size=60) | st.lists(st.lists(CELLS, max_size=4), max_size=4)
    | st.lists(st.dictionaries(st.sampled_from(["image", "caption", "split", "x"]), VALUES)),
)  # fmt: skip
def test_any_table_of_captions(tmp_path: Path, ending: str, content: Any) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    (tmp_path / "a.png").write_bytes(image(4, "PNG"))
    if isinstance(content, list):
        if ending == ".jsonl":
            lines = ['{"image": "a.png", "caption": "a flower"}', *map(json.dumps, content)]
        else:
            between = "," if ending == ".csv" else "\t"
            rows = [
                list(map(str, row.values() if isinstance(row, dict) else row)) for row in content
            ]
            lines = ["image,caption".replace(",", between), *map(between.join, rows)]
        content = "\n".join(lines).encode("utf-8", "surrogatepass")
    (tmp_path / f"captions{ending}").write_bytes(content)
    prepares_or_refuses(tmp_path, config.Folder(path=str(tmp_path), captions=f"captions{ending}"))
