import csv
import json
import pickle
import shutil
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import raw_png
from PIL import Image

from t2i_ray import config
from t2i_ray.config import UserError
from t2i_ray.data import Batches, Piece, Prepared, counter_rng, open_prepared, prepare
from t2i_ray.data.accept import accept
from t2i_ray.data.images import load_square
from t2i_ray.data.prepare import ShardTask
from t2i_ray.data.record import Rejected
from t2i_ray.data.sources.emoji import EmojiSource
from t2i_ray.launch import with_absolute_paths
from t2i_ray.storage import LocalStore

Make = Callable[[ShardTask], int]
Row = dict[str, Any]
NOTO = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    return LocalStore(tmp_path_factory.mktemp("store"))


def flowers(images: int = 200, seed: int = 0, **more: Any) -> config.Data:
    source = config.SyntheticFlowers(images=images, seed=seed)
    return config.Data(source=source, image_size=28, load_size=32, **more)


@pytest.fixture(scope="module")
def prepared(store: LocalStore) -> Prepared:
    return open_prepared(store, prepare(flowers(), store))


# ------------------------------------------------------------------------------ prepared form


def test_shards_in_any_order_and_size_give_the_same_data(
    tmp_path: Path, prepared: Prepared
) -> None:
    def backwards(function: Make, tasks: list[ShardTask]) -> Iterable[int]:
        return map(function, reversed(list(tasks)))

    store = LocalStore(tmp_path)
    other = open_prepared(store, prepare(flowers(shard_size=37), store, run_tasks=backwards))
    assert len(other.manifest.shards) == 6
    assert other.digest == prepared.digest
    assert other.captions == prepared.captions
    everything = np.arange(200)
    assert (other.images(everything) == prepared.images(everything)).all()
    assert (other.class_ids == prepared.class_ids).all()


def test_other_pictures_have_another_digest_and_place(
    store: LocalStore, prepared: Prepared
) -> None:
    other = open_prepared(store, prepare(flowers(seed=1), store))
    assert other.prefix != prepared.prefix
    assert other.digest != prepared.digest


def test_prepared_again_is_not_made_again(store: LocalStore, prepared: Prepared) -> None:
    def never(function: Make, tasks: list[ShardTask]) -> Iterable[int]:
        raise AssertionError("nothing is to be done")

    assert prepare(flowers(), store, run_tasks=never) == prepared.prefix


def test_a_broken_prepare_is_invisible_and_goes_on_where_it_was(
    tmp_path: Path, prepared: Prepared
) -> None:
    data, store = flowers(shard_size=50), LocalStore(tmp_path)
    made: list[str] = []

    def dies(function: Make, tasks: list[ShardTask]) -> Iterable[int]:
        for task in tasks:
            if len(made) == 2:
                raise KeyboardInterrupt
            made.append(task.name)
            yield function(task)

    with pytest.raises(KeyboardInterrupt):
        prepare(data, store, run_tasks=dies)
    (prefix,) = {key.split("/shards")[0] for key in store.list()}
    with pytest.raises(UserError, match="not prepared; run t2i-ray prepare"):
        open_prepared(store, prefix)

    def counts(function: Make, tasks: list[ShardTask]) -> Iterable[int]:
        made.extend(task.name for task in tasks)
        return map(function, tasks)

    seen: list[tuple[int, int]] = []
    prepare(data, store, run_tasks=counts, progress=lambda done, total: seen.append((done, total)))
    assert made == ["00000", "00001", "00002", "00003"]
    assert seen == [(150, 200), (200, 200)]
    assert open_prepared(store, prefix).digest == prepared.digest


def test_ground_truth_and_splits(prepared: Prepared) -> None:
    splits = {split: prepared.ids(split) for split in ("train", "val", "test")}
    assert sorted(np.concatenate(list(splits.values()))) == list(range(200))
    assert {split: len(ids) for split, ids in splits.items()} == prepared.manifest.splits
    assert len(prepared.captions) == prepared.manifest.captions == 1000
    assert prepared.class_ids.min() >= 0
    assert [len(prepared.captions_of(sample)) for sample in range(200)] == [5] * 200
    for sample in range(0, 200, 20):
        colour = prepared.attribute_values["petal_colour"][
            prepared.attributes["petal_colour"][sample]
        ]
        assert prepared.manifest.classes[prepared.class_ids[sample]].startswith(colour)
        told = [colour in prepared.captions[c] for c in prepared.captions_of(sample)]
        assert any(told) or colour in ("red", "orange", "purple", "turquoise")
    for named in prepared.named.values():
        assert named.shape == (1000,)
        assert named.dtype == bool
    assert prepared.named["petal_colour"].all()


@pytest.mark.parametrize("damage", ["manifest", "truncated", "table", "pictures", "digest"])
def test_damage_is_named(
    tmp_path: Path, store: LocalStore, prepared: Prepared, damage: str
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(store.uri, root)
    folder = root / prepared.prefix
    manifest = folder / "manifest.json"
    if damage == "manifest":
        manifest.write_text('{"format": 1}')
    elif damage == "truncated":
        manifest.write_bytes(manifest.read_bytes()[:100])
    elif damage == "digest":
        manifest.write_text(manifest.read_text().replace('"load_size": 32', '"load_size": 33'))
    elif damage == "table":
        (folder / "shards/00000.parquet").write_bytes(b"PAR1")
    else:
        pictures = folder / "shards/00000.npy"
        pictures.write_bytes(pictures.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"delete the folder .* prepare again"):
        open_prepared(LocalStore(root), prepared.prefix).images(np.arange(2))


# ------------------------------------------------------------------------------------ batches


def batches(prepared: Prepared, micro_batches: int = 2) -> Batches:
    return Batches(prepared, flowers(), seed=3, batch_size=24, micro_batches=micro_batches)


def same(one: Piece, other: Piece) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one[:4], other[:4], strict=True))


def test_a_piece_is_a_function_of_step_and_micro(prepared: Prepared) -> None:
    one, other = batches(prepared), batches(prepared)
    pieces = {(step, micro): one.piece(step, micro) for step in range(4) for micro in range(2)}
    for place in reversed(pieces):
        assert same(pieces[place], other.piece(*place))
    assert not same(pieces[0, 0], pieces[1, 0])
    piece = pieces[0, 0]
    assert piece.images.shape == (12, 28, 28, 3)
    assert piece.images.dtype == np.uint8


def sample_of(prepared: Prepared, captions: np.ndarray) -> np.ndarray:
    return np.searchsorted(prepared.first_caption, captions, side="right") - 1


def test_an_epoch_takes_every_sample_once(prepared: Prepared) -> None:
    feed, train = batches(prepared, 1), prepared.ids("train")
    steps = -(-2 * len(train) // 24)
    right = np.concatenate([feed.piece(step, 0).right for step in range(steps)])
    samples = sample_of(prepared, right)
    first, second = samples[: len(train)], samples[len(train) : 2 * len(train)]
    assert sorted(first) == sorted(second) == train.tolist()
    assert (first != second).any()


def test_the_pieces_of_a_step_are_its_batch_however_it_is_cut(prepared: Prepared) -> None:
    for step in (0, 5, 11):
        whole = sample_of(prepared, batches(prepared, 1).piece(step, 0).right)
        for micros in (2, 4):
            cut = batches(prepared, micros)
            parts = [cut.piece(step, micro).right for micro in range(micros)]
            assert (sample_of(prepared, np.concatenate(parts)) == whole).all()


def test_a_split_smaller_than_a_batch_is_gone_through_several_times(prepared: Prepared) -> None:
    feed = Batches(prepared, flowers(), seed=0, batch_size=100, micro_batches=1, split="test")
    samples = sample_of(prepared, feed.piece(0, 0).right)
    counts = np.bincount(samples, minlength=200)[prepared.ids("test")]
    assert counts.min() >= 100 // len(counts)
    assert counts.sum() == 100


def test_wrong_captions_are_of_another_class_and_never_the_samples_own(prepared: Prepared) -> None:
    feed, train = batches(prepared), set(prepared.ids("train").tolist())
    for step in range(40):
        piece = feed.piece(step, step % 2)
        right, wrong = sample_of(prepared, piece.right), sample_of(prepared, piece.wrong)
        assert (prepared.class_ids[right] != prepared.class_ids[wrong]).all()
        assert set(wrong.tolist()) <= train


def test_every_other_class_and_caption_is_used_as_wrong(prepared: Prepared) -> None:
    feed = batches(prepared)
    wrong = np.concatenate([feed.piece(step, 0).wrong for step in range(400)])
    train = set(prepared.ids("train").tolist())
    assert set(sample_of(prepared, wrong).tolist()) == train
    counts = np.bincount(wrong % 5, minlength=5)
    assert counts.min() > 0.8 * counts.max()


def test_pictures_are_cropped_and_mirrored(prepared: Prepared) -> None:
    feed = batches(prepared, 1)
    piece = feed.piece(0, 0)
    whole = prepared.images(sample_of(prepared, piece.right))
    mirrored = 0
    places: set[tuple[int, int]] = set()
    for picture, original in zip(piece.images, whole, strict=True):
        fits = [
            (y, x, flip)
            for y in range(5)
            for x in range(5)
            for flip in (1, -1)
            if (original[y : y + 28, x : x + 28][:, ::flip] == picture).all()
        ]
        assert len(fits) == 1
        mirrored += fits[0][2] == -1
        places.add(fits[0][:2])
    assert 4 <= mirrored <= 20
    assert len(places) > 8
    still = Batches(prepared, flowers(flip=False), seed=3, batch_size=24, micro_batches=1).piece(
        0, 0
    )
    assert (still.right == piece.right).all()


def test_counter_rng_separates_seed_purpose_and_counters() -> None:
    keys = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 0, 1), (0, "a", 1, 0)]
    draws = {counter_rng(*key).integers(2**63) for key in keys}  # type: ignore[arg-type]
    assert len(draws) == 6
    assert counter_rng(5, "x", 2).integers(2**63) == counter_rng(5, "x", 2).integers(2**63)


# ------------------------------------------------------------------------------------- folder


def picture(colour: Any = "red", size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, colour)


def make_folder(
    path: Path, rows: list[Row], name: str = "captions.jsonl", text: str | None = None
) -> config.Data:
    path.mkdir(exist_ok=True)
    if text is None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    (path / name).write_text(text, encoding="utf8")
    source = config.Folder(path=str(path), captions=name)
    return config.Data(source=source, image_size=16, load_size=16)


def colours(path: Path, **columns: Callable[[int], str]) -> list[Row]:
    path.mkdir()
    rows = []
    for i in range(40):
        picture((6 * i, 10, 10)).save(path / f"{i:02d}.png")
        row = {"image": f"{i:02d}.png", "caption": f"shade {i}"}
        rows.append(row | {name: value(i) for name, value in columns.items()})
    return rows


def test_folder_of_jsonl(tmp_path: Path) -> None:
    rows = colours(tmp_path / "in")
    for row in rows[:20]:
        row["captions"] = [row.pop("caption"), "another"]
    store = LocalStore(tmp_path / "out")
    got = open_prepared(store, prepare(make_folder(tmp_path / "in", rows), store))
    assert got.manifest.count == 40
    assert [got.captions[c] for c in got.captions_of(3)] == ["shade 3", "another"]
    assert [got.captions[c] for c in got.captions_of(30)] == ["shade 30"]
    assert (got.images(np.array([7]))[0] == (42, 10, 10)).all()
    assert (got.class_ids == -1).all()
    assert got.attributes == {}
    assert sum(got.manifest.splits.values()) == 40
    assert got.manifest.splits["train"] > 20


def test_however_a_place_is_named_it_is_prepared_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path / "out")
    data = make_folder(tmp_path / "in", colours(tmp_path / "in"))
    (tmp_path / "link").symlink_to(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    places = [str(tmp_path / "in"), "in", "link", "~/in", "./in/"]
    sources = [data.source.model_copy(update={"path": place}) for place in places]
    (prefix,) = {prepare(data.model_copy(update={"source": each}), store) for each in sources}
    run = {"name": "n", "train": {"steps": 1}, "storage": {"uri": store.uri}}
    section = {**data.model_dump(mode="json"), "image_size": 64, "load_size": 64}
    section["source"]["path"] = "in"
    trained = with_absolute_paths(config.parse_config({**run, "data": section}))
    assert trained.data.source == data.source
    assert len(store.list("data")) == len(store.list(prefix))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UserError, match=r"data\.source\.path=in: .*absolute"):
        prepare(data.model_copy(update={"source": sources[1]}), store)


def test_folder_of_csv_with_class_split_and_attributes(tmp_path: Path) -> None:
    rows = colours(
        tmp_path / "in",
        **{
            "class": lambda i: "dark" if i < 20 else "light",
            "split": lambda i: "Validation" if i % 10 == 0 else "train",
            "tone": lambda i: "deep red" if i < 5 else "red",
        },
    )
    for row in rows:
        row["caption"] = f"a {row['tone']} shade, number {row['image']}"
    data = make_folder(tmp_path / "in", [], "captions.csv")
    with (tmp_path / "in/captions.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows([*rows, rows[0] | {"caption": "a second one"}])
    store = LocalStore(tmp_path / "out")
    got = open_prepared(store, prepare(data, store))
    assert got.manifest.classes == ["dark", "light"]
    assert got.class_ids.tolist() == [0] * 20 + [1] * 20
    assert got.ids("val").tolist() == [0, 10, 20, 30]
    assert got.attribute_values == {"tone": ["deep red", "red"]}
    assert got.attributes["tone"].tolist() == [0] * 5 + [1] * 35
    assert got.captions[:2] == ["a deep red shade, number 00.png", "a second one"]
    assert got.named["tone"].tolist()[:3] == [True, False, True]


def test_a_nameless_csv_column_is_no_attribute(tmp_path: Path) -> None:
    rows = colours(tmp_path / "in")
    lines = [f"{i},{row['image']},{row['caption']}\n" for i, row in enumerate(rows)]
    data = make_folder(tmp_path / "in", [], "c.csv", ",image,caption\n" + "".join(lines))
    store = LocalStore(tmp_path / "out")
    assert open_prepared(store, prepare(data, store)).attributes == {}


def test_wrong_captions_without_classes_are_never_texts_of_the_sample(tmp_path: Path) -> None:
    rows = colours(tmp_path / "in", split=lambda i: "train")
    for i, row in enumerate(rows):
        row["caption"] = "rare" if i == 5 else "common"
    rows[7]["captions"] = ["rare too"]
    store = LocalStore(tmp_path / "out")
    data = make_folder(tmp_path / "in", rows)
    got = open_prepared(store, prepare(data, store))
    feed = Batches(got, data, seed=0, batch_size=40, micro_batches=1)
    for step in range(10):
        piece = feed.piece(step, 0)
        for right, wrong in zip(piece.right, piece.wrong, strict=True):
            own = got.captions_of(int(sample_of(got, right)))
            assert got.captions[wrong] not in [got.captions[c] for c in own]


def test_one_class_only_counts_as_none(tmp_path: Path) -> None:
    rows = colours(tmp_path / "in", split=lambda i: "train", **{"class": lambda i: "all"})
    store = LocalStore(tmp_path / "out")
    data = make_folder(tmp_path / "in", rows)
    got = open_prepared(store, prepare(data, store))
    piece = Batches(got, data, seed=0, batch_size=40, micro_batches=1).piece(0, 0)
    assert (piece.right != piece.wrong).all()


def test_captions_that_all_say_the_same_are_refused(tmp_path: Path) -> None:
    rows = [row | {"caption": "one"} for row in colours(tmp_path / "in", split=lambda i: "train")]
    store = LocalStore(tmp_path / "out")
    data = make_folder(tmp_path / "in", rows)
    got = open_prepared(store, prepare(data, store))
    with pytest.raises(UserError, match="all captions of the split train are the same"):
        Batches(got, data, seed=0, batch_size=8, micro_batches=1)


def test_rejects_are_listed_and_can_be_mended(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    rows = colours(folder)
    rows[3]["caption"] = "  "
    rows[4]["image"] = "gone.png"
    rows[5]["image"] = "../in/05.png"
    (folder / "06.png").write_bytes(b"not a picture")
    rows.append({"image": "00.png", "caption": "x", "split": "val"})
    store, data = LocalStore(tmp_path / "out"), make_folder(folder, rows)
    data = data.model_copy(update={"shard_size": 8})
    with pytest.raises(UserError, match=r"data.max_rejected=0.05: 5 of 40 .*rejected.jsonl"):
        prepare(data, store)
    (listing,) = [key for key in store.list() if key.endswith("rejected.jsonl")]
    lines = [json.loads(line) for line in store.read(listing).splitlines()]
    reasons = {line["key"]: line["reason"] for line in lines}
    assert reasons == {
        "../in/05.png": "path leads out of the folder",
        "00.png": "its rows disagree on split: , val",
        "03.png": "no caption",
        "06.png": "not an image in one of the formats JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM, AVIF",
        "gone.png": "no such file",
    }
    picture().save(folder / "06.png")
    picture().save(folder / "gone.png")
    made: list[str] = []

    def counts(function: Make, tasks: list[ShardTask]) -> Iterable[int]:
        made.extend(task.name for task in tasks)
        return map(function, tasks)

    allowed = data.model_copy(update={"max_rejected": 0.1})
    got = open_prepared(store, prepare(allowed, store, run_tasks=counts))
    assert got.manifest.count == 37
    assert got.manifest.rejected == 3
    assert made == ["00000", "00004"], "only shards with rejects are made again"
    assert (got.images(np.array([0]))[0] == (6, 10, 10)).all(), "ids are ranks of the accepted"


def test_changed_captions_are_other_data(tmp_path: Path) -> None:
    rows = colours(tmp_path / "in")
    store = LocalStore(tmp_path / "out")
    before = prepare(make_folder(tmp_path / "in", rows), store)
    rows[0]["caption"] = "changed"
    after = prepare(make_folder(tmp_path / "in", rows), store)
    assert before != after
    assert open_prepared(store, after).captions[0] == "changed"


BAD_FOLDERS: dict[str, Any] = {
    "line 1 is not a JSON object": {"text": "nonsense\n"},
    r"line 2 has no image .*it has: file, caption.*name the keys": {
        "rows": [{"image": "a.png", "caption": "x"}, {"file": "b.png", "caption": "x"}]
    },
    "line 1 has no caption or captions": {"rows": [{"image": "a.png"}]},
    "line 1: captions must be text": {"rows": [{"image": "a.png", "caption": 5}]},
    "line 1: split=dev; it must be one of train, val, test": {
        "rows": [{"image": "a.png", "caption": "x", "split": "dev"}]
    },
    "line 1: tags must be one word": {"rows": [{"image": "a.png", "caption": "x", "tags": ["y"]}]},
    "line 1: image is empty": {"rows": [{"image": "", "caption": "x"}]},
    r"no column image \(there are: file, caption\)": {
        "name": "c.csv",
        "text": "file,caption\na.png,x\n",
    },
    "no column caption or captions": {"name": "c.csv", "text": "image,words\na.png,x\n"},
    "line 2 has not 2 fields; quote": {"name": "c.csv", "text": "image,caption\na.png,red, big\n"},
    "line 3 has not 2 fields": {"name": "c.csv", "text": "image,caption\na.png,x\nb.png\n"},
    "two columns are named image": {
        "name": "c.csv",
        "text": "image,caption,image\na.png,x,b.png\n",
    },
    "line 2: unexpected end of data; write it as RFC 4180": {
        "name": "c.csv",
        "text": 'image,caption\na.png,"red\n',
    },
    "it holds no picture at all": {"rows": []},
    "1 of 1 pictures cannot be used": {"rows": [{"image": "a.png", "caption": "x"}]},
}


@pytest.mark.parametrize("message", BAD_FOLDERS)
def test_a_bad_folder_is_a_user_error(tmp_path: Path, message: str) -> None:
    data = make_folder(tmp_path / "in", **{"rows": [], **BAD_FOLDERS[message]})
    with pytest.raises(UserError, match=message) as caught:
        prepare(data, LocalStore(tmp_path / "out"))
    assert "\n" not in str(caught.value)


def test_no_train_split_is_a_user_error(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "in", colours(tmp_path / "in", split=lambda i: "val"))
    with pytest.raises(UserError, match="no picture is in the split train"):
        prepare(data, LocalStore(tmp_path / "out"))


def test_missing_folder_and_captions(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "out")
    data = config.Data(source=config.Folder(path=str(tmp_path / "gone")))
    with pytest.raises(UserError, match=r"data.source.path=.*gone: no such folder"):
        prepare(data, store)
    data = config.Data(source=config.Folder(path=str(tmp_path), captions="c.jsonl"))
    with pytest.raises(
        UserError, match=r"data.source.captions=c.jsonl: no such file in .*; give a .jsonl"
    ):
        prepare(data, store)
    (tmp_path / "c.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not UTF-8"):
        prepare(data, store)


# ------------------------------------------------------------------------------------- images


def save(path: Path, image: Image.Image, **more: Any) -> np.ndarray:
    image.save(path, **more)
    return load_square(path.read_bytes(), 16)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA", "LA", "YCbCr", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = 204 if mode != "1" else 255
    if mode == "I;16":
        image = Image.fromarray(np.full((30, 40), grey * 256 + 77, np.uint16))
    else:
        image = Image.new("RGB", (40, 30), (grey,) * 3).convert(mode)
    name = "a.jpg" if mode in ("CMYK", "YCbCr") else "a.png"
    got = save(tmp_path / name, image)
    assert got.shape == (16, 16, 3)
    assert np.abs(got.astype(int) - grey).max() <= 4


def test_transparency_becomes_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (20, 20), (10, 20, 30, 0))
    assert (save(tmp_path / "a.png", clear) == 255).all()
    palette = picture(size=(20, 20)).convert("P")
    hole = palette.getpixel((0, 0))
    assert (save(tmp_path / "b.png", palette, transparency=hole) == 255).all()


def test_exif_orientation_is_followed(tmp_path: Path) -> None:
    image = Image.new("RGB", (60, 40), "white")
    image.paste("black", (0, 0, 30, 40))  # left half, which orientation 6 turns to the top
    exif = Image.Exif()
    exif[0x0112] = 6
    got = save(tmp_path / "a.png", image, exif=exif)
    assert got[:6].max() < 60
    assert got[-6:].min() > 200


def test_the_middle_square_is_kept(tmp_path: Path) -> None:
    image = Image.new("RGB", (90, 30), "black")
    image.paste("white", (30, 0, 60, 30))
    assert save(tmp_path / "a.png", image).min() > 120
    assert save(tmp_path / "tiny.png", Image.new("RGB", (3, 5), "red")).shape == (16, 16, 3)


@pytest.mark.parametrize("size", [(20000, 5000), (60000, 60000)])
def test_decompression_bombs_are_rejected_unopened(size: tuple[int, int]) -> None:
    with pytest.raises(Rejected, match=r"more than \d+ pixels"):
        load_square(raw_png(*size, 8), 16)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.webp"])
def test_truncated_images_are_rejected(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / name
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(Rejected, match=r"damaged image|not an image"):
        load_square(path.read_bytes(), 16)


def test_pixels_of_unknown_range_are_rejected(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 20), 0.5, np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(Rejected, match="floating-point"):
        load_square((tmp_path / "f.tiff").read_bytes(), 16)
    for value in (200, 60_000, 10**6):  # white may be 255, 65,535 or more
        Image.fromarray(np.full((20, 20), value, np.int32)).save(tmp_path / "i.tiff")
        with pytest.raises(Rejected, match="32 bits"):
            load_square((tmp_path / "i.tiff").read_bytes(), 16)
    dark = Image.fromarray(np.full((20, 20), 200, np.uint16))  # of 16 bits white is 65,535
    assert (save(tmp_path / "dark.tiff", dark) == 0).all()
    content = (tmp_path / "dark.tiff").read_bytes()
    short, bits = 3, 258  # how a directory says how many bits a sample has
    of_16, of_12 = (struct.pack("<HHIHH", bits, short, 1, each, 0) for each in (16, 12))
    assert content.count(of_16) == 1
    with pytest.raises(Rejected, match="12 bits"):
        load_square(content.replace(of_16, of_12), 16)
    with pytest.raises(Rejected, match="with signs"):
        save(tmp_path / "signed.tiff", dark, tiffinfo={339: 2})
    pgm = b"P5 20 20 65535 " + np.full((20, 20), 0xCC4D, ">u2").tobytes()
    assert (load_square(pgm, 16) == 0xCC).all()


# -------------------------------------------------------------------------------------- emoji

needs_font = pytest.mark.skipif(not NOTO.exists(), reason=f"no colour-emoji font at {NOTO}")


@needs_font
def test_emoji(tmp_path: Path) -> None:
    pytest.importorskip("emoji")
    source = EmojiSource(config.Emoji(font=str(NOTO)), 32)
    assert len(source.keys) > 1000
    assert source.keys == sorted(source.keys)
    smile, thumb, plain = (
        accept(source.read(key), 32) for key in ("1f600", "1f44d-1f3fd", "1f44d")
    )
    assert smile.captions[:2] == ["grinning face", "an emoji of grinning face"]
    assert np.ptp(smile.image.astype(int), axis=-1).max() > 100, "it has colours"
    assert (smile.image[0, 0] == 255).all()
    assert "thumbs up medium skin tone" in thumb.captions
    assert thumb.class_name == plain.class_name
    assert thumb.split == plain.split
    assert thumb.class_name in source.classes
    assert (thumb.image != plain.image).any()
    drawn = {accept(source.read(key), 32).image.tobytes() for key in source.keys[:300]}
    assert len(drawn) > 290, "none is the sign of a missing glyph"
    part = pickle.loads(pickle.dumps(source.part(["1f44d"])))
    assert part.keys == ["1f44d"]
    assert (accept(part.read("1f44d"), 32).image == plain.image).all()


@needs_font
def test_emoji_in_another_language() -> None:
    pytest.importorskip("emoji")
    source = EmojiSource(config.Emoji(font=str(NOTO), language="de"), 32)
    assert source.read("1f600").captions == ["grinsendes gesicht"]
    with pytest.raises(UserError, match=r"data.source.language=xx: not known; use one of ar, de"):
        EmojiSource(config.Emoji(font=str(NOTO), language="xx"), 32)


def test_bad_fonts_are_user_errors(tmp_path: Path) -> None:
    pytest.importorskip("emoji")
    with pytest.raises(UserError, match=r"data.source.font=.*gone.ttf: no such file; give a"):
        EmojiSource(config.Emoji(font=str(tmp_path / "gone.ttf")), 32)
    (tmp_path / "bad.ttf").write_bytes(b"no font")
    with pytest.raises(UserError, match=r"data.source.font=.*bad.ttf: .*; give a colour-emoji"):
        EmojiSource(config.Emoji(font=str(tmp_path / "bad.ttf")), 32)


def test_without_the_emoji_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "emoji", None)
    with pytest.raises(UserError, match=r"pip install t2i-ray\[emoji\]"):
        EmojiSource(config.Emoji(), 32)
