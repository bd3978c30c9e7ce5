"""Small true copies of the layouts in which data sets lie on disk, each with what it holds."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.io import savemat

from t2i_ray import config

Row = tuple[str, str | None, list[str]]  # split, class, captions


@dataclass
class Layout:
    """A source's config, and what prepare must find: key -> split, class, captions.

    The pictures are of one colour each: ``shade(rank of the key)``.
    """

    source: config.Source
    rows: dict[str, Row]
    pictures: dict[str, int]  # key -> which picture


def shade(number: int) -> tuple[int, int, int]:
    """A colour of its own for each of the first twenty pictures."""
    return (12 * number, 200 - 9 * number, 90)


def image(number: int, kind: str = "JPEG", **more: Any) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (50 + number, 40), shade(number)).save(content, kind, **more)
    return content.getvalue()


def raw_png(width: int, height: int, depth: int, lines: bytes = b"") -> bytes:
    """A PNG of what its header says, true or not; lines as the format has them, unpacked."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checked = kind + body
        return struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(lines) if lines else b"")
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def ten(number: int, what: str) -> list[str]:
    """Ten captions in the manner of text_c10."""
    return [f"this {what} number {number} has petals, said {word}." for word in "abcdefghij"]


def lists(folder: Path, classes: Mapping[str, list[str]]) -> None:
    """Lists of classes, the combined one of train and val included."""
    for name, several in {**classes, "trainval": classes["train"] + classes["val"]}.items():
        write(folder / f"{name}classes.txt", "".join(f"{one}\n" for one in several))


def folder(place: Path) -> Layout:
    """A folder of a user's own with a CSV file, in which a picture has a row for each caption."""
    rows: dict[str, Row] = {}
    pictures = {}
    lines = ["image,caption,class,split"]
    for number in range(1, 9):
        kind, split = ("daisy", "rose")[number % 2], {7: "val", 8: "test"}.get(number, "train")
        key = f"{kind}/{number}.png"
        write(place / key, image(number, "PNG"))
        captions = [f"the number {number} on a plain ground", f"a {kind}, number {number}"]
        lines += [f'{key},"{caption}",{kind},{split}' for caption in captions]
        rows[key], pictures[key] = (split, kind, captions), number
    write(place / "captions.csv", "\n".join(lines))
    return Layout(config.Folder(path=str(place), captions="captions.csv"), rows, pictures)


# Picture number -> label; as in the data set, the numbers do not run along the labels.
LABELS = [3, 1, 1, 2, 4, 3, 5, 2, 1, 5]


def oxford(folder: Path) -> Layout:
    """Oxford-102 as it is unpacked, five classes of it, with cvpr2016_flowers beside it."""
    classes = {"train": [1, 2, 3], "val": [4], "test": [5]}
    split_of = {label: split for split, labels in classes.items() for label in labels}
    rows: dict[str, Row] = {}
    for number, label in enumerate(LABELS, start=1):
        name, class_name = f"image_{number:05d}", f"class_{label:05d}"
        write(folder / f"jpg/{name}.jpg", image(number))
        captions = ten(number, "flower")
        write(folder / f"text_c10/{class_name}/{name}.txt", "\n".join(captions) + "\n")
        rows[f"jpg/{name}.jpg"] = (split_of[label], class_name, captions)
    savemat(folder / "imagelabels.mat", {"labels": np.array([LABELS], np.uint8)})
    sets = {"trnid": [[2, 4, 6]], "valid": [[1, 3]], "tstid": [[5, 7, 8, 9, 10]]}
    savemat(folder / "setid.mat", {name: np.array(ids, np.uint16) for name, ids in sets.items()})
    lists(folder, {k: [f"class_{label:05d}" for label in v] for k, v in classes.items()})
    source = config.Oxford102(path=str(folder))
    return Layout(source, rows, {key: i for i, key in enumerate(sorted(rows), start=1)})


BIRDS = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross"]


def cub(folder: Path) -> Layout:
    """CUB-200-2011 as it is unpacked, three classes of it; captions and lists in their own."""
    reed = folder / "cvpr2016_cub"
    splits = {"train": [BIRDS[0]], "val": [BIRDS[1]], "test": [BIRDS[2]]}
    split_of = {one: split for split, several in splits.items() for one in several}
    rows: dict[str, Row] = {}
    tables: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    for number in range(1, 10):
        label = (number - 1) // 3
        name = f"{BIRDS[label]}/{BIRDS[label][4:]}_{number:04d}_{700 + number}"
        write(folder / f"CUB_200_2011/images/{name}.jpg", image(number))
        captions = ten(number, "bird")
        write(reed / f"text_c10/{name}.txt", "\n".join(captions))
        rows[f"images/{name}.jpg"] = (split_of[BIRDS[label]], BIRDS[label], captions)
        tables["images"].append(f"{number} {name}.jpg")
        tables["image_class_labels"].append(f"{number} {label + 1}")
        tables["train_test_split"].append(f"{number} {int(number % 3 != 0)}")
    tables["classes"] = [f"{i} {name}" for i, name in enumerate(BIRDS, start=1)]
    for name, lines in tables.items():
        write(folder / f"CUB_200_2011/{name}.txt", "".join(f"{line}\n" for line in lines))
    lists(reed, splits)
    source = config.Cub200(path=str(folder / "CUB_200_2011"), captions=str(reed / "text_c10"))
    return Layout(source, rows, {key: i for i, key in enumerate(sorted(rows), start=1)})


def hdf5(folder: Path) -> Layout:
    """As the repository's convert script writes it: five records a picture, captions repeated."""
    import h5py

    rows: dict[str, Row] = {}
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "flowers.hdf5", "w") as file:
        for group in ("train", "valid", "test"):
            file.create_group(group)
        for number in range(1, 9):
            group = {6: "valid", 7: "test", 8: "test"}.get(number, "train")
            name, class_name = f"image_{number:05d}", f"class_{number % 3:05d}"
            captions = [ten(number, "flower")[i] for i in (7, 2, 7, 0, 2)]
            for k, caption in enumerate(captions):
                record = file[group].create_group(f"{name}_{k}")
                record["name"] = name
                record["img"] = np.void(image(number))
                record["embeddings"] = np.zeros(1024, np.float32)
                record["class"] = class_name
                text = h5py.string_dtype()
                record.create_dataset("txt", data=np.array(caption + "\n", object), dtype=text)
            rows[f"{group}/{name}"] = (
                "val" if group == "valid" else group,
                class_name,
                list(dict.fromkeys(captions)),
            )
    source = config.Hdf5(path=str(folder / "flowers.hdf5"))
    return Layout(source, rows, {key: int(key[-5:]) for key in rows})


def coco(folder: Path) -> Layout:
    """COCO 2017: annotations/ and a folder of pictures for train and for val; instances as well."""
    rows: dict[str, Row] = {}
    pictures = {}
    for split, numbers in {"train": range(1, 8), "val": range(8, 16)}.items():
        images, annotations = [], []
        for number in numbers:
            name = f"{number * 37:012d}.jpg"
            write(folder / f"{split}2017/{name}", image(number))
            captions = [f"A picture {number} of something.", f"Something, {number}"]
            images.append({"id": number * 37, "file_name": name, "width": 50, "height": 40})
            annotations += [
                {"image_id": number * 37, "id": 10 * number + k, "caption": caption}
                for k, caption in enumerate(captions)
            ]
            key = f"{split}2017/{name}"
            half = split == "val" and hashlib.sha256(key.encode()).digest()[0] % 10 % 2
            rows[key], pictures[key] = ("test" if half else split, None, captions[::-1]), number
        document = {"info": {}, "licenses": [], "images": images, "annotations": annotations[::-1]}
        write(folder / f"annotations/captions_{split}2017.json", json.dumps(document))
        write(folder / f"annotations/instances_{split}2017.json", "{}")
    return Layout(config.Coco(path=str(folder)), rows, pictures)


def parquet(folder: Path) -> Layout:
    """As the datasets library pushes it: {bytes, path}, ClassLabel, row groups of a few rows."""
    rows: dict[str, Row] = {}
    pictures = {}
    picture = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    names = ["daisy", "rose"]
    features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    number = 0
    for file, split, count in (
        ("train-00000-of-00002", "train", 5),
        ("train-00001-of-00002", "train", 4),
        ("validation-00000-of-00001", "val", 3),
        ("test-00000-of-00001-0d29fd4a5aaee111", "test", 3),
    ):
        columns: dict[str, list[Any]] = {"image": [], "label": [], "text": []}
        for row in range(count):
            number += 1
            captions = [f"flower {number}", f"a {names[number % 2]}"]
            columns["image"].append({"bytes": image(number), "path": f"{number}.jpg"})
            columns["label"].append(number % 2)
            columns["text"].append(captions)
            key = f"data/{file}.parquet/{row:08d}"
            rows[key], pictures[key] = (split, names[number % 2], captions), number
        arrays = [
            pa.array(columns["image"], picture),
            pa.array(columns["label"], pa.int64()),
            pa.array(columns["text"], pa.list_(pa.string())),
        ]
        table = pa.table(arrays, list(columns)).replace_schema_metadata(told)
        path = folder / f"data/{file}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=2)
    source = config.Parquet(path=str(folder), class_column="label")
    return Layout(source, rows, pictures)


Member = tuple[str, bytes] | tarfile.TarInfo


def tar(path: Path, members: list[Member]) -> None:
    """A tar of files, and of members that are none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                name, content = member
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def webdataset(folder: Path) -> Layout:
    """As img2dataset writes it, and as the webdataset library does: txt, json, cls."""
    rows: dict[str, Row] = {}
    pictures = {}
    number = 0
    for shard, split in (("train-00000", "train"), ("train-00001", "train"), ("val-00000", "val")):
        members: list[Member] = []
        for place in range(4):
            number += 1
            name = f"{number:09d}"
            caption = f"what is seen in {number}"
            ending = ("jpg", "jpeg", "png", "webp")[place]
            kind = {"jpg": "JPEG", "jpeg": "JPEG"}.get(ending, ending.upper())
            more = {"lossless": True} if ending == "webp" else {}
            members.append((f"{name}.{ending}", image(number, kind, **more)))
            captions = [caption]
            if place % 2:
                captions = [caption, "and again"]
                members.append((f"{name}.json", json.dumps({"caption": captions}).encode()))
            else:
                members.append((f"{name}.txt", caption.encode()))
                members.append((f"{name}.json", json.dumps({"caption": "not this"}).encode()))
            members.append((f"{name}.cls", str(place % 2).encode()))
            members.append((f"{name}.embedding.npy", b"\x93NUMPY ignored"))
            key = f"{shard}.tar/{name}"
            rows[key], pictures[key] = (split, str(place % 2), captions), number
        tar(folder / f"{shard}.tar", members)
    return Layout(config.WebDataset(path=str(folder)), rows, pictures)


LAYOUTS: dict[str, Callable[[Path], Layout]] = {
    function.__name__: function
    for function in (folder, oxford, cub, hdf5, coco, parquet, webdataset)
}
