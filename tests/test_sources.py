import io
import json
import os
import pickle
import shutil
import struct
import sys
import tarfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import layouts
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import show_sources
from layouts import LAYOUTS, Layout, Row
from PIL import Image
from scipy.io import savemat
from servers import S3Server

from t2i_ray import config
from t2i_ray.config import UserError
from t2i_ray.data import open_prepared, prepare
from t2i_ray.data.accept import accept
from t2i_ray.data.captions import LONGEST, clean
from t2i_ray.data.prepare import ShardTask
from t2i_ray.data.record import SPLITS, Rejected, split_in_name
from t2i_ray.data.sources import Source, open_source
from t2i_ray.data.sources.place import read_picture
from t2i_ray.storage import LocalStore, StorageError, open_store
from t2i_ray.storage.s3 import _client

HERE = config.Storage()


def data_of(source: config.Source, **more: Any) -> config.Data:
    return config.Data(source=source, image_size=16, load_size=16, **more)


class Result:
    """What prepare made: rows by key, pictures by key, rejects."""

    def __init__(self, data: config.Data, folder: Path, **more: Any) -> None:
        store = LocalStore(folder)
        prefix = prepare(data, store, **more)
        prepared = open_prepared(store, prefix)
        self.manifest, self.digest = prepared.manifest, prepared.digest
        names = [shard.name for shard in prepared.manifest.shards]
        tables = [pq.read_table(folder / prefix / f"shards/{name}.parquet") for name in names]
        table = pa.concat_tables(tables).to_pylist()
        self.images = {
            row["key"]: prepared.images(np.array([rank]))[0] for rank, row in enumerate(table)
        }
        classes = [*prepared.manifest.classes, None]
        self.rows: dict[str, Row] = {
            row["key"]: (SPLITS[row["split"]], classes[row["class"]], row["captions"])
            for row in table
        }
        lines = (folder / prefix / "rejected.jsonl").read_text().splitlines()
        self.rejected = {line["key"]: line["reason"] for line in map(json.loads, lines)}


def check(result: Result, layout: Layout) -> None:
    assert result.rows == layout.rows
    assert result.rejected == {}
    for key, number in layout.pictures.items():
        off = np.abs(result.images[key].astype(int) - layouts.shade(number))
        assert off.max() <= 6, key


def made(name: str, folder: Path) -> Layout:
    if name == "hdf5":
        pytest.importorskip("h5py")
    return LAYOUTS[name](folder)


# ------------------------------------------------------------------------------- each layout


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read_as_it_lies_on_disk(tmp_path: Path, name: str) -> None:
    layout = made(name, tmp_path / "in")
    result = Result(data_of(layout.source), tmp_path / "out")
    check(result, layout)
    assert list(result.rows) == sorted(layout.rows)
    assert result.manifest.licence == layout.source.licence  # type: ignore[union-attr]
    classes = {row[1] for row in layout.rows.values()} - {None}
    assert result.manifest.classes == sorted(classes, key=str)
    assert result.manifest.captions_cut == result.manifest.captions_empty == 0


@pytest.mark.parametrize("name", LAYOUTS)
def test_tasks_elsewhere_in_any_order_make_the_same(tmp_path: Path, name: str) -> None:
    """Each task gets its part only, and reads its pictures by random access."""
    layout = made(name, tmp_path / "in")

    def elsewhere(function: Callable[[ShardTask], int], tasks: list[ShardTask]) -> Iterable[int]:
        assert all(len(task.source.entries) <= 3 for task in tasks)
        sent = [pickle.dumps(task) for task in tasks]
        assert max(map(len, sent)) < 4000, "small"
        return [function(pickle.loads(task)) for task in reversed(sent)]

    whole = Result(data_of(layout.source), tmp_path / "one")
    parts = Result(data_of(layout.source, shard_size=3), tmp_path / "two", run_tasks=elsewhere)
    check(parts, layout)
    assert parts.digest == whole.digest


@pytest.mark.parametrize("name", LAYOUTS)
def test_keys_may_be_read_backwards(tmp_path: Path, name: str) -> None:
    layout = made(name, tmp_path)
    source = opened(layout.source)
    for key in [*reversed(source.keys), *source.keys[::3]]:
        assert accept(source.read(key), 16).captions == layout.rows[key][2]


def test_every_kind_of_source_is_in_the_docs_picture(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    every = list(show_sources.sources(tmp_path))
    sections = get_args(get_args(config.Source)[0])
    kinds = [section.model_fields["kind"].default for section in sections]
    assert [source.kind for source in every] == kinds
    store = LocalStore(tmp_path / "out")
    drawable = [source for source in every if source.kind != "emoji"]
    found: dict[str, show_sources.Shown] = {
        source.kind: show_sources.shown(source, store) for source in drawable
    }
    nothing = np.zeros((2, show_sources.SIZE, show_sources.SIZE, 3), np.uint8)
    found["emoji"] = ("emoji", nothing, ["", ""])  # preparing them all takes long

    def cells(png: Path | io.BytesIO) -> np.ndarray:
        picture = np.asarray(Image.open(png).convert("RGB"), np.int16)
        rows = np.split(picture, -(-len(kinds) // 3))
        return np.stack([cell for row in rows for cell in np.split(row, 3, axis=1)])[: len(kinds)]

    anew = cells(io.BytesIO(show_sources.drawn([found[kind] for kind in kinds])))
    in_docs = cells(Path(__file__).parent.parent / "docs/sources.png")
    alike = np.abs(anew - in_docs).mean((1, 2, 3)) < 1
    assert alike.tolist() == [kind != "emoji" for kind in kinds]


def opened(source: config.Source) -> Source:
    looked = open_source(source, 16, HERE)
    looked.look_through()
    return looked


@pytest.fixture
def bucket(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[config.Storage]:
    """A place on S3, and credentials for it."""
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    _client.cache_clear()  # a client keeps the credentials it was made with
    yield config.Storage(uri=f"s3://{s3.bucket}/{tmp_path.name}", endpoint=s3.endpoint)
    _client.cache_clear()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_on_s3_is_read_alike(tmp_path: Path, bucket: config.Storage, name: str) -> None:
    layout = made(name, tmp_path / "in")
    store = open_store(bucket)
    for path in (tmp_path / "in").rglob("*"):
        if path.is_file():
            store.upload(path, path.relative_to(tmp_path / "in").as_posix())
    document = json.dumps(layout.source.model_dump()).replace(str(tmp_path / "in"), bucket.uri)
    source = type(layout.source).model_validate_json(document)
    result = Result(data_of(source, shard_size=4), tmp_path / "out", reach=bucket)
    check(result, layout)
    assert result.digest == Result(data_of(layout.source), tmp_path / "out").digest


def test_a_folder_on_s3(tmp_path: Path, bucket: config.Storage) -> None:
    store = open_store(bucket)
    store.write("birds/a b/1.jpg", layouts.image(1))
    lines = ["image,caption", "a b/1.jpg,one", "gone.jpg,two", "../x.jpg,three"]
    store.write("birds/captions.csv", "\n".join(lines).encode())
    source = config.Folder(path=f"{bucket.uri}/birds/", captions="captions.csv")
    result = Result(data_of(source, max_rejected=0.9), tmp_path, reach=bucket)
    assert [row[2] for row in result.rows.values()] == [["one"]]
    assert result.rejected == {
        "gone.jpg": "no such file",
        "../x.jpg": "path leads out of the folder",
    }


def test_s3_that_refuses_is_one_line(tmp_path: Path, bucket: config.Storage) -> None:
    for uri, said in (
        ("s3://no-such-bucket/x", r"data.source.path: .*NoSuchBucket"),
        (bucket.uri, r"data.source.path: no file \*.parquet in s3://"),
        ("s3://id:sesame@bucket/x", r"data.source.path: must not hold credentials"),
        ("gs://bucket/x", r"data.source.path=gs://bucket/x: give a local folder, or s3://"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            open_source(config.Parquet(path=uri), 16, bucket)
        assert "\n" not in str(caught.value)
        assert "sesame" not in str(caught.value)


# ----------------------------------------------------------------------------------- splits


def splits(source: config.Source) -> dict[str, str]:
    return {key: opened(source).read(key).split for key in opened(source).keys}


def test_oxford_by_setid_and_by_trainval(tmp_path: Path) -> None:
    layout = layouts.oxford(tmp_path)
    assert isinstance(layout.source, config.Oxford102)
    official = splits(layout.source.model_copy(update={"split": "official"}))
    numbers = {int(key[-9:-4]): split for key, split in official.items()}
    assert [n for n, split in numbers.items() if split == "train"] == [2, 4, 6]
    assert [n for n, split in numbers.items() if split == "val"] == [1, 3]
    trainval = splits(layout.source.model_copy(update={"split": "trainval"}))
    for key, (split, _, _) in layout.rows.items():
        assert (trainval[key] == "test") == (split == "test")
    (tmp_path / "trainvalclasses.txt").unlink()
    assert splits(layout.source.model_copy(update={"split": "trainval"})) == trainval


def test_cub_by_its_own_split(tmp_path: Path) -> None:
    layout = layouts.cub(tmp_path)
    assert isinstance(layout.source, config.Cub200)
    official = splits(layout.source.model_copy(update={"split": "official"}))
    tested = {layouts_number(key) for key, split in official.items() if split == "test"}
    assert tested == {3, 6, 9}


def layouts_number(key: str) -> int:
    return int(key.rpartition("_")[2].removesuffix(".jpg")) - 700


def test_a_class_in_no_list_is_rejected(tmp_path: Path) -> None:
    layout = layouts.oxford(tmp_path / "in")
    (tmp_path / "in/testclasses.txt").write_text("")
    result = Result(data_of(layout.source, max_rejected=0.5), tmp_path / "out")
    reason = "in none of the sets of the lists of classes (class_00005)"
    assert result.rejected == {f"jpg/image_{n:05d}.jpg": reason for n in (7, 10)}


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("default/validation/0000.parquet", "val"),
        ("partial-train/0000.parquet", "train"),
        ("train/shard-test-3.tar", "test"),
        ("Valid_01.tar", "val"),
        ("val2017.tar", "val"),
        ("00001.tar", None),
        ("training_values/contest-latest.tar", None),
    ],
)
def test_splits_in_names(path: str, split: str | None) -> None:
    assert split_in_name(path) == split


def test_shards_that_name_no_split_are_split_by_hash(tmp_path: Path) -> None:
    members: list[layouts.Member] = []
    for number in range(60):
        members += [(f"{number}.jpg", layouts.image(1)), (f"{number}.txt", b"one")]
    layouts.tar(tmp_path / "00000.tar", members)
    found = list(splits(config.WebDataset(path=str(tmp_path / "00000.tar"))).values())
    assert 36 <= found.count("train") <= 56
    assert found.count("val") > 0
    assert found.count("test") > 0


# ------------------------------------------------------------------------------ wrong layouts


def gone(*names: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def put(name: str, content: bytes | str) -> Callable[[Path], None]:
    return lambda folder: layouts.write(folder / name, content)


def cut(name: str, size: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:size])

    return spoil


def matrix(name: str, **matrices: Any) -> Callable[[Path], None]:
    return lambda folder: savemat(folder / name, matrices)


SPOILT: list[tuple[str, Callable[[Path], None], str]] = [
    ("oxford", gone("jpg", "imagelabels.mat"), r"/in has not the layout of oxford-102: no jpg/, "),
    ("oxford", put("imagelabels.mat", b"nonsense"), r"imagelabels.mat: no matrix labels of MATLAB"),
    ("oxford", matrix("imagelabels.mat", x=[1]), r"no matrix labels .*'labels'.*; fetch it anew"),
    ("oxford", matrix("imagelabels.mat", labels=np.array([["a"]], object)), "no matrix labels"),
    ("oxford", gone("text_c10"), r"data.source.captions=.*/in/text_c10: no such folder"),
    ("oxford", gone("valclasses.txt"), r"no valclasses.txt in .*/in; .* another data.source.split"),
    (
        "oxford",
        gone("trainclasses.txt", "testclasses.txt"),
        r"no trainclasses.txt, testclasses.txt in .*/in; ",
    ),
    ("oxford", put("testclasses.txt", "class_00004"), "class_00004 is listed for val and, in test"),
    (
        "oxford",
        put("testclasses.txt", "class_00200"),
        "testclasses.txt lists class_00200, of which",
    ),
    (
        "cub",
        gone("CUB_200_2011/images.txt", "CUB_200_2011/classes.txt"),
        r"CUB_200_2011 has not the layout of cub-200: no images.txt, classes.txt in it",
    ),
    ("cub", put("CUB_200_2011/classes.txt", "1 001.A\n2"), r"classes.txt: line 2 is not a number"),
    ("cub", put("CUB_200_2011/classes.txt", "1 001.A"), r"classes.txt has no line for 2; fetch"),
    (
        "cub",
        gone("cvpr2016_cub/trainclasses.txt"),
        r"no trainclasses.txt in .*CUB_200_2011 or .*cvpr2016_cub; ",
    ),
    ("cub", put("CUB_200_2011/images.txt", "1 other/x.jpg"), r"captions of these pictures"),
    ("coco", gone("annotations"), r"not the layout of coco: no annotations/captions_train\*.json"),
    ("coco", gone("annotations/captions_val2017.json"), r"captions_val\*.json in it; name the"),
    (
        "coco",
        put("annotations/captions_val2014.json", "{}"),
        r"captions_val2014.json and annotations/captions_val2017.json; name one in data.source.val",
    ),
    (
        "coco",
        put("annotations/captions_val2017.json", "[1"),
        r"data.source.val=.*: not COCO's JSON",
    ),
    (
        "coco",
        put(
            "annotations/captions_val2017.json",
            '{"images": [], "annotations": [{"image_id": 77, "caption": "x"}]}',
        ),
        r"names an image that is not in it \(no 77\)",
    ),
    ("parquet", gone("data"), r"data.source.path: no file \*.parquet in .*/in; give a file, a "),
    ("parquet", put("data/x.parquet", b"PAR1"), r"data/x.parquet: no Parquet that can be read"),
    ("webdataset", gone("val-00000.tar", "train-00000.tar", "train-00001.tar"), r"no file \*.tar"),
    ("webdataset", put("x.tar", b"nonsense" * 100), r"x.tar: no tar that can be read .*unpack it"),
    ("webdataset", put("x.tar", b""), r"x.tar: no tar that can be read \(empty file\)"),
    ("hdf5", put("flowers.hdf5", b"nonsense"), r"flowers.hdf5: no HDF5 file that can be read"),
    ("hdf5", cut("flowers.hdf5", 20_000), r"no HDF5 file that can be read .*truncated"),
    ("parquet", cut("data/train-00001-of-00002.parquet", 3000), r"00001-of-00002.parquet: no Parq"),
    ("hdf5", gone("flowers.hdf5"), r"data.source.path=.*flowers.hdf5: no such file in .*/in; mend"),
]


@pytest.mark.parametrize(("name", "spoil", "said"), SPOILT, ids=[s[0] + s[2][:40] for s in SPOILT])
def test_a_wrong_layout_says_what_is_missing_and_where(
    tmp_path: Path, name: str, spoil: Callable[[Path], None], said: str
) -> None:
    layout = made(name, tmp_path / "in")
    spoil(tmp_path / "in")
    with pytest.raises(UserError, match=said) as caught:
        prepare(data_of(layout.source), LocalStore(tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("data.source.")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_path_that_is_not_there(tmp_path: Path, name: str) -> None:
    source = made(name, tmp_path / "in").source.model_copy(
        update={"path": str(tmp_path / "gone/away")}
    )
    with pytest.raises(UserError, match=r"data.source.path=.*/gone.*: no such folder on this"):
        opened(source)


def test_a_folder_that_a_task_does_not_see_is_not_a_heap_of_rejects(tmp_path: Path) -> None:
    layout = layouts.coco(tmp_path / "in")

    def elsewhere(function: Callable[[ShardTask], int], tasks: list[ShardTask]) -> Iterable[int]:
        shutil.rmtree(tmp_path / "in")
        return map(function, tasks)

    with pytest.raises(UserError, match=r"no such folder on this machine; .* every node must see"):
        prepare(data_of(layout.source), LocalStore(tmp_path / "out"), run_tasks=elsewhere)


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_prepared_is_not_looked_through_again(tmp_path: Path, name: str) -> None:
    layout = made(name, tmp_path / "in")
    data, store = data_of(layout.source), LocalStore(tmp_path / "out")
    first = prepare(data, store)

    def fails(_: object) -> None:
        raise AssertionError("looked through")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("t2i_ray.data.sources.base.Catalogue.look_through", fails)
        assert prepare(data, store) == first
    texts = [path for path in (tmp_path / "in").rglob("*") if path.is_file()]
    for path in texts:  # captions that changed behind the same names are other data
        if path.suffix in (".csv", ".txt", ".json", ".parquet", ".tar", ".hdf5"):
            os.utime(path, (1, 1))
            if name in ("coco", "folder"):
                path.write_bytes(path.read_bytes() + b" ")
    assert prepare(data, store) != first


@pytest.mark.parametrize("name", ["parquet", "webdataset", "hdf5"])
def test_a_file_that_changes_between_opening_and_reading_is_named(
    tmp_path: Path, name: str
) -> None:
    layout = made(name, tmp_path / "in")

    def elsewhere(function: Callable[[ShardTask], int], tasks: list[ShardTask]) -> Iterable[int]:
        tasks = pickle.loads(pickle.dumps(tasks))
        for path in (tmp_path / "in").rglob("*.*"):
            path.write_bytes(path.read_bytes() + b"more")
        return map(function, tasks)

    with pytest.raises(UserError, match="differs between machines or changed meanwhile"):
        prepare(data_of(layout.source), LocalStore(tmp_path / "out"), run_tasks=elsewhere)


# ------------------------------------------------------------------------------- bad content


def file_of(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **more)
    return content.getvalue()


def plain(mode: str) -> Image.Image:
    return Image.new("RGB", (40, 30), (200, 100, 50)).convert(mode)


def turned() -> bytes:
    """Black on the left as it is stored, on top as EXIF says it is to be seen."""
    image = Image.new("RGB", (60, 60), "white")
    image.paste("black", (0, 0, 30, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    return file_of(image, "JPEG", exif=exif)


def deep() -> bytes:
    """A PNG of 16 bits a channel, which Pillow itself cannot write."""
    line = b"\0" + struct.pack(">HHH", 200 << 8 | 77, 100 << 8 | 3, 50 << 8 | 250) * 20
    return layouts.raw_png(20, 20, 16, line * 20)


GOOD = {
    "cmyk.jpg": file_of(plain("CMYK"), "JPEG"),
    "deep.png": deep(),
    "palette.png": file_of(plain("RGB").quantize(4)),
    "right.png": file_of(plain("RGB")),
}
BAD = {
    "bomb.png": (layouts.raw_png(60000, 60000, 8), "more than 89478485 pixels"),
    "document.eps": (file_of(plain("RGB"), "EPS"), "not an image in one of the formats JPEG, "),
    "empty.jpg": (b"", "not an image in one of the formats JPEG, "),
    "truncated.jpg": (layouts.image(1)[:-300], "damaged image: "),
}


ALL = {**GOOD, "turned.jpg": turned(), **{name: bad for name, (bad, _) in BAD.items()}}


def mixed_folder(folder: Path) -> config.Data:
    rows = []
    for name, content in ALL.items():
        layouts.write(folder / name, content)
        rows.append(json.dumps({"image": name, "caption": f"it is {name}", "split": "train"}))
    layouts.write(folder / "captions.jsonl", "\n".join(rows))
    return data_of(config.Folder(path=str(folder)), max_rejected=0.9)


def mixed_tar(folder: Path) -> config.Data:
    members: list[layouts.Member] = []
    for name, content in ALL.items():
        stem = name.partition(".")[0]
        members += [(f"{stem}.jpg", content), (f"{stem}.txt", f"it is {name}".encode())]
    layouts.tar(folder / "train.tar", members)
    return data_of(config.WebDataset(path=str(folder)), max_rejected=0.9)


@pytest.mark.parametrize("mixed", [mixed_folder, mixed_tar])
def test_pictures_of_any_kind_are_made_alike_or_rejected(
    tmp_path: Path, mixed: Callable[[Path], config.Data]
) -> None:
    result = Result(mixed(tmp_path / "in"), tmp_path / "out")
    stems = {Path(key).stem: image for key, image in result.images.items()}
    for name in GOOD:
        off = np.abs(stems[Path(name).stem].astype(int) - (200, 100, 50))
        assert off.max() <= 8, name
    seen = stems["turned"]
    assert seen[:6].max() < 60
    assert seen[-6:].min() > 200
    rejected = {Path(key).stem: reason for key, reason in result.rejected.items()}
    assert set(rejected) == {Path(name).stem for name in BAD}
    for name, (_, reason) in BAD.items():
        assert rejected[Path(name).stem].startswith(reason), name
    assert result.manifest.rejected == len(BAD)


def test_files_too_large_or_of_impossible_names_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t2i_ray.data.sources.place.LARGEST", 1 << 20)
    monkeypatch.setattr("t2i_ray.data.sources.webdataset.LARGEST", 1 << 20)
    large = layouts.image(1) + bytes(1 << 20)
    layouts.write(tmp_path / "in/large.jpg", large)
    long = "x" * 300 + ".jpg"
    rows = [{"image": name, "caption": "x"} for name in ("large.jpg", long, "in.jpg/a.jpg")]
    layouts.write(tmp_path / "in/captions.jsonl", "\n".join(map(json.dumps, rows)))
    layouts.tar(tmp_path / "in/x.tar", [("large.jpg", large), ("large.txt", b"x")])
    layouts.write(tmp_path / "in/in.jpg", b"a file where a folder is asked for")
    folder = opened(config.Folder(path=str(tmp_path / "in")))
    said = {"large.jpg": "more than 1 MiB", long: "name too long", "in.jpg/a.jpg": "no such file"}
    for key, reason in said.items():
        with pytest.raises(Rejected, match=reason):
            folder.read(key)
    with pytest.raises(Rejected, match="more than 1 MiB"):
        opened(config.WebDataset(path=str(tmp_path / "in"))).read("x.tar/large")


def test_a_store_that_is_away_rejects_nothing(
    s3_away: config.Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t2i_ray.storage.s3._ATTEMPTS", 1)
    with pytest.raises(StorageError, match="EndpointConnectionError"):
        read_picture(open_store(s3_away), "a.jpg")


def test_captions_are_cleaned_and_counted(tmp_path: Path) -> None:
    cafe = unicodedata.normalize("NFD", "café")
    kazakh = "қызыл күлтелері бар әдемі гүл, ұзын өркен"
    russian = "жёлтый цветок с чёрной серединой — «ёлочка»"
    persian = "گل می\u200cروید"
    rows = {
        "a.jpg": [" two\twords\r\n", "nul\0 and bell\a and\u202e back", cafe, "\ud800lone"],
        "b.jpg": [kazakh, russian, unicodedata.normalize("NFD", russian), persian],
        "c.jpg": ["", " \n\0 ", "kept"],
        "d.jpg": ["", "\u200b\ufeff", None],
        "e.jpg": ["word " * 10_000, "x" * 200_000, "short"],
    }
    lines = []
    for name, captions in rows.items():
        layouts.write(tmp_path / "in" / name, layouts.image(1))
        lines.append(json.dumps({"image": name, "captions": captions, "split": "train"}))
    layouts.write(tmp_path / "in/captions.jsonl", "\n".join(lines))
    data = data_of(config.Folder(path=str(tmp_path / "in")), max_rejected=0.5)
    result = Result(data, tmp_path / "out")
    kept = {key: row[2] for key, row in result.rows.items()}
    assert kept["a.jpg"] == ["two words", "nul and bell and back", "café", "lone"]
    assert kept["b.jpg"] == [kazakh, russian, russian, persian]
    assert kept["c.jpg"] == ["kept"]
    assert result.rejected == {"d.jpg": "no caption"}
    assert kept["e.jpg"] == [" ".join(["word"] * LONGEST), "x" * 16 * LONGEST, "short"]
    assert result.manifest.captions_cut == 2
    assert result.manifest.captions_empty == 2
    assert result.manifest.captions == 12


def test_what_is_clean_stays_as_it_is() -> None:
    for text in ("a flower", "Гүл 🌷 👩\u200d🌾 x²", "word " * (LONGEST - 1) + "word"):
        assert clean(text) == (text, False)
        assert clean(clean(text)[0]) == clean(text)
    assert clean("a " * (LONGEST + 1))[1]


def test_a_long_caption_of_a_table(tmp_path: Path) -> None:
    layouts.write(tmp_path / "in/a.jpg", layouts.image(1))
    for name, gap in (("c.csv", ","), ("c.tsv", "\t")):
        text = f'image{gap}caption{gap}split\na.jpg{gap}"{"long, " * 50_000}"{gap}train\n'
        layouts.write(tmp_path / "in" / name, text)
        source = config.Folder(path=str(tmp_path / "in"), captions=name)
        result = Result(data_of(source), tmp_path / "out")
        assert len(result.rows["a.jpg"][2][0].split()) == LONGEST


def test_a_folder_as_hugging_face_has_it(tmp_path: Path) -> None:
    layouts.write(tmp_path / "in/train/a.jpg", layouts.image(1))
    layouts.write(tmp_path / "in/train/metadata.csv", "file_name, text\n./a.jpg,a red one\n")
    source = config.Folder(path=str(tmp_path / "in/train"), captions="metadata.csv")
    rows = opened(source).read("a.jpg")
    assert (rows.captions, rows.attributes) == (["a red one"], {})


def test_keys_that_no_terminal_should_show(tmp_path: Path) -> None:
    rows = [{"image": "\x1b[31m.jpg", "caption": "x"}, {"image": "\ud800.jpg", "caption": "x"}]
    layouts.write(tmp_path / "in/captions.jsonl", "\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match="2 of 2 pictures cannot be used") as caught:
        prepare(data_of(config.Folder(path=str(tmp_path / "in"))), LocalStore(tmp_path / "out"))
    assert str(caught.value).isprintable()
    assert r"\x1b[31m.jpg: no such file" in str(caught.value)


# -------------------------------------------------------------------------------- webdataset


def member(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_hostile_members_of_a_tar_are_rejected_and_nothing_is_unpacked(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(layouts.image(2))
    good = layouts.image(1)
    layouts.tar(
        tmp_path / "in/train.tar",
        [
            ("fine.jpg", good),
            ("fine.txt", b"a good one"),
            ("../climbs.jpg", good),
            ("../climbs.txt", b"out"),
            ("/absolute.jpg", good),
            member("symlink.jpg", tarfile.SYMTYPE, str(secret)),
            ("symlink.txt", b"x"),
            member("hardlink.jpg", tarfile.LNKTYPE, "fine.jpg"),
            ("hardlink.txt", b"x"),
            member("device.jpg", tarfile.CHRTYPE),
            member("pipe", tarfile.FIFOTYPE),
            member("folder", tarfile.DIRTYPE),
            ("folder/deep.jpg", good),
            ("folder/deep.json", b'{"caption": ["one", 5, "two"]}'),
            ("wordless.jpg", good),
            ("pictureless.txt", b"x"),
            ("odd.jpg", good),
            ("odd.json", b"[1]"),
            ("endless.jpg", good),
            ("endless.txt", b"x" * (1 << 21)),
            ("README", b"ignored"),
            ("._fine.jpg", b"ignored"),
        ],
    )
    before = sorted(tmp_path.rglob("*"))
    source = config.WebDataset(path=str(tmp_path / "in"))
    result = Result(data_of(source, max_rejected=0.9), tmp_path / "out")
    assert result.rows == {
        "train.tar/fine": ("train", None, ["a good one"]),
        "train.tar/folder/deep": ("train", None, ["one", "two"]),
    }
    assert result.rejected == {
        "train.tar/../climbs": "path leads out of the archive",
        "train.tar//absolute": "path leads out of the archive",
        "train.tar/symlink": "a link, not a file",
        "train.tar/hardlink": "a link, not a file",
        "train.tar/device": "a device or the like, not a file",
        "train.tar/pipe": "a device or the like, not a file",
        "train.tar/wordless": "no caption",
        "train.tar/pictureless": "no .jpg, .jpeg, .png, .webp",
        "train.tar/odd": "its .json is not a JSON object",
        "train.tar/endless": "a .txt of more than 1 MiB",
    }
    after = [path for path in sorted(tmp_path.rglob("*")) if "out" not in path.parts]
    assert after == before


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_a_damaged_tar_is_named_and_not_taken_for_a_shorter_one(
    tmp_path: Path, damage: str
) -> None:
    layout = layouts.webdataset(tmp_path)
    path = tmp_path / "train-00001.tar"
    content = path.read_bytes()
    with tarfile.open(path) as archive:
        third = archive.getmembers()[6]
    if damage == "cut":
        path.write_bytes(content[: third.offset_data + 10])
    else:
        path.write_bytes(content[: third.offset] + b"?" * 512 + content[third.offset + 512 :])
    with pytest.raises(UserError, match=r"train-00001.tar: no tar that can be read \("):
        opened(layout.source)


def test_webdataset_keys_by_option(tmp_path: Path) -> None:
    told = {"long": "from another key", "kind": "rose"}
    layouts.tar(
        tmp_path / "x.tar",
        [("1.PNG", layouts.image(1, "PNG")), ("1.json", json.dumps(told).encode())],
    )
    source = config.WebDataset(path=str(tmp_path / "*.tar"), caption_key="long", class_key="kind")
    sample = opened(source).read("x.tar/1")
    assert (sample.captions, sample.class_name) == (["from another key"], "rose")


# ----------------------------------------------------------------------------------- parquet


def one_parquet(path: Path, **columns: pa.Array) -> config.Parquet:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return config.Parquet(path=str(path))


PNG = layouts.image(1, "PNG")


@pytest.mark.parametrize(
    "captions",
    [
        pa.array(["red", "blue"]),
        pa.array(["red", "blue"], pa.large_string()),
        pa.array(["red", "blue"]).dictionary_encode(),
        pa.array([["red"], ["blue"]]),
        pa.array([["red", None], ["blue"]], pa.large_list(pa.large_string())),
    ],
    ids=lambda array: str(array.type)[:30],
)
def test_captions_of_any_type_of_text(tmp_path: Path, captions: pa.Array) -> None:
    source = one_parquet(tmp_path / "x.parquet", jpg=pa.array([PNG, PNG]), caption=captions)
    read = [opened(source).read(key).captions for key in opened(source).keys]
    assert read == [["red"], ["blue"]]


def test_rows_of_parquet_that_cannot_be_used(tmp_path: Path) -> None:
    kind = pa.struct({"bytes": pa.large_binary(), "path": pa.string()})
    pictures = [
        {"bytes": PNG, "path": None},
        {"bytes": None, "path": "/etc/passwd"},
        {"bytes": None, "path": None},
        None,
        {"bytes": PNG, "path": "x"},
        {"bytes": PNG, "path": "x"},
        {"bytes": PNG, "path": "x"},
    ]
    no_utf8 = pa.array([b"a \xff flower", *[b"text"] * 4, None, b"text"]).view(pa.string())
    splits = ["train", *["validation"] * 3, "holdout", "test", "test"]
    source = one_parquet(
        tmp_path / "in/x.parquet",
        img=pa.array(pictures, kind),
        words=no_utf8,
        part=pa.array(splits),
    ).model_copy(update={"caption_column": "words", "split_column": "part"})
    result = Result(data_of(source, max_rejected=0.9), tmp_path / "out")
    assert result.rows == {
        "x.parquet/00000000": ("train", None, ["a flower"]),
        "x.parquet/00000006": ("test", None, ["text"]),
    }
    assert result.rejected == {
        "x.parquet/00000001": "only a path of a picture, and paths are not followed",
        "x.parquet/00000002": "no picture",
        "x.parquet/00000003": "no picture",
        "x.parquet/00000004": "part=holdout; it must be one of train, val, test",
        "x.parquet/00000005": "no caption",
    }


@pytest.mark.parametrize(
    ("columns", "update", "said"),
    [
        ({"picture": [PNG]}, {}, r"no column caption or captions or text \(there are: picture\)"),
        ({"x": [PNG], "text": ["x"]}, {}, r"no column image or img .* in data.source.image_column"),
        ({"image": ["x"], "text": ["x"]}, {}, "column image holds string, not the bytes of"),
        ({"image": [PNG], "text": [5]}, {}, "column text holds int64, neither text nor lists"),
        ({"image": [PNG], "text": ["x"]}, {"class_column": "label"}, "no column label"),
    ],
)
def test_columns_that_do_not_fit(
    tmp_path: Path, columns: dict[str, list[Any]], update: dict[str, str], said: str
) -> None:
    arrays = {name: pa.array(values) for name, values in columns.items()}
    source = one_parquet(tmp_path / "x.parquet", **arrays).model_copy(update=update)
    with pytest.raises(UserError, match=said):
        opened(source)


def test_a_pattern_chooses_files(tmp_path: Path) -> None:
    layout = layouts.parquet(tmp_path)
    source = layout.source.model_copy(update={"path": str(tmp_path / "data/t*-of-00002.parquet")})
    keys = opened(source).keys
    assert len(keys) == 9
    assert keys[0] == "train-00000-of-00002.parquet/00000000"


# -------------------------------------------------------------------------------------- hdf5


def test_hostile_records_of_hdf5_are_rejected(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    layout = layouts.hdf5(tmp_path / "in")
    (tmp_path / "raw").write_bytes(layouts.image(3))
    with h5py.File(tmp_path / "other.hdf5", "w") as other:
        other["img"] = np.void(layouts.image(3))
    with h5py.File(tmp_path / "in/flowers.hdf5", "a") as file:
        train = file["train"]
        for number in (1, 2, 3, 4):
            del train[f"image_0000{number}_0/img"]
        train["image_00002_0/img"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/img")
        external = [(str(tmp_path / "raw"), 0, (tmp_path / "raw").stat().st_size)]
        size = (tmp_path / "raw").stat().st_size
        train["image_00003_0"].create_dataset("img", (size,), np.uint8, external=external)
        train["image_00004_0/img"] = np.zeros(5)
        del train["image_00005_3/txt"]
        train["linked_0"] = h5py.SoftLink("/test/image_00007_0")
        train["plain_0"] = np.arange(3)
        train["as_numbers_0/img"] = np.frombuffer(layouts.image(9), np.uint8)
        train["as_numbers_0/txt"] = np.bytes_(b"caf\xc3\xa9")
    result = Result(data_of(layout.source, max_rejected=0.9), tmp_path / "out")
    assert result.rejected == {
        "train/image_00001": "no img in its record",
        "train/image_00002": "no img in its record",
        "train/image_00003": "img is kept in another file",
        "train/image_00004": "/train/image_00004_0/img holds float64, not bytes",
        "train/image_00005": "no txt in its record",
        "train/linked": "its record is a link or a data set, not a group",
        "train/plain": "its record is a link or a data set, not a group",
    }
    assert result.rows["train/as_numbers"] == ("train", None, ["café"])


def test_hdf5_of_another_layout(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["pictures"] = np.zeros(3)
    with pytest.raises(UserError, match=r"none of the groups train, .* \(there are: pictures\)"):
        opened(config.Hdf5(path=str(tmp_path / "x.hdf5")))


def test_without_the_h5py_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"pip install t2i-ray\[hdf5\]"):
        opened(config.Hdf5(path="/x.hdf5"))
