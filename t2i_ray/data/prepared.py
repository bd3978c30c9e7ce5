"""The prepared form: shards of pictures, tables of captions, and the manifest that binds them.

Below ``data/<kind>-<hash>/``:

    shards/00000.npy       uint8 [n, load, load, 3]
    shards/00000.parquet   one row per picture: key, split, class, captions, ground truth, digest
    shards/00000.json      what made the shard: counts, sums, rejected keys
    rejected.jsonl         every key that was rejected, and why
    manifest.json          written last; without it there is no data
"""

from __future__ import annotations

import hashlib
import io
import json
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from t2i_ray.config import Section, UserError, validate
from t2i_ray.data.record import SPLITS, Record
from t2i_ray.storage import MissingKey, Store


class Shard(Section):
    """One shard of the manifest."""

    name: str
    count: int
    images_sha256: str
    table_sha256: str


class Manifest(Section):
    """What the prepared data is."""

    format: Literal[1] = 1
    kind: str
    load_size: int
    licence: str
    count: int  # pictures
    captions: int
    captions_cut: int = 0  # longer than is kept
    captions_empty: int = 0  # dropped
    rejected: int  # pictures
    splits: dict[str, int]
    classes: list[str]
    attribute_values: dict[str, list[str]]
    shards: list[Shard]
    digest: str


class Prepared:
    """Prepared data, opened for reading: tables in memory, pictures mapped from their files."""

    def __init__(self, store: Store, prefix: str, manifest: Manifest, table: pa.Table) -> None:
        self.prefix = prefix
        self.manifest = manifest
        self.digest = manifest.digest
        self.attribute_values = manifest.attribute_values
        column = _list_column(table, "captions")
        self.captions: list[str] = column.flatten().to_pylist()
        # The captions of sample s are first_caption[s] .. first_caption[s + 1].
        self.first_caption = column.offsets.to_numpy().astype(np.int64)
        self.class_ids = table["class"].to_numpy().astype(np.int64)
        self.attributes = {
            name: table[f"attribute:{name}"].to_numpy().astype(np.int64)
            for name in manifest.attribute_values
        }
        self.named = {
            name: _list_column(table, f"named:{name}").flatten().to_numpy(zero_copy_only=False)
            for name in manifest.attribute_values
        }
        self._splits = table["split"].to_numpy()
        self._store = store
        self._ends = np.cumsum([shard.count for shard in manifest.shards])
        self._mapped: dict[int, np.ndarray] = {}

    def ids(self, split: str) -> np.ndarray:
        """The samples of "train", "val" or "test", int64, rising."""
        return np.flatnonzero(self._splits == SPLITS.index(split)).astype(np.int64)

    def captions_of(self, sample: int) -> np.ndarray:
        """The caption ids of a sample, int64."""
        return np.arange(self.first_caption[sample], self.first_caption[sample + 1])

    def images(self, ids: np.ndarray) -> np.ndarray:
        """Pictures of these samples, uint8 [n, load, load, 3]."""
        size = self.manifest.load_size
        out = np.empty((len(ids), size, size, 3), np.uint8)
        shards = np.searchsorted(self._ends, ids, side="right")
        for place, (sample, shard) in enumerate(zip(ids, shards, strict=True)):
            pictures = self._shard(int(shard))
            out[place] = pictures[int(sample) - (int(self._ends[shard]) - len(pictures))]
        return out

    def _shard(self, index: int) -> np.ndarray:
        if index not in self._mapped:
            shard, size = self.manifest.shards[index], self.manifest.load_size
            key = f"{self.prefix}/shards/{shard.name}.npy"
            damaged = UserError(
                f"data {self._store.uri}/{key}: missing or damaged; delete the folder "
                f"{self.prefix} and run t2i-ray prepare again"
            )
            try:
                path = self._store.fetch(key, shard.images_sha256)
                pictures = np.load(path, mmap_mode="r", allow_pickle=False)
            except (MissingKey, ValueError, EOFError):
                raise damaged from None
            if pictures.shape != (shard.count, size, size, 3) or pictures.dtype != np.uint8:
                raise damaged
            self._mapped[index] = pictures
        return self._mapped[index]


def open_prepared(store: Store, prefix: str) -> Prepared:
    """Open what prepare made.

    Raises:
        UserError: there is none, or its manifest or a table is damaged.
    """
    try:
        text = store.read(f"{prefix}/manifest.json")
    except MissingKey:
        raise UserError(
            f"data {store.uri}/{prefix}: not prepared; run t2i-ray prepare first"
        ) from None
    remedy = f"delete the folder {prefix} and run t2i-ray prepare again"
    try:
        manifest = validate(Manifest, json.loads(text))
    except (ValueError, RecursionError, UserError) as error:
        raise UserError(
            f"data {store.uri}/{prefix}/manifest.json: damaged ({error}); {remedy}"
        ) from None
    tables = []
    for shard in manifest.shards:
        key = f"{prefix}/shards/{shard.name}.parquet"
        try:
            content = store.read(key)
        except (MissingKey, ValueError):  # ValueError: the manifest's name is no key
            content = b""
        damaged = UserError(f"data {store.uri}/{key}: missing or damaged; {remedy}")
        if hashlib.sha256(content).hexdigest() != shard.table_sha256:
            raise damaged
        try:
            tables.append(pq.read_table(io.BytesIO(content)))
        except (pa.ArrowException, OSError):
            raise damaged from None
    try:
        table = pa.concat_tables(tables)
        if content_digest(manifest, table) == manifest.digest:
            return Prepared(store, prefix, manifest, table)
    except (pa.ArrowException, KeyError, TypeError, ValueError, AttributeError):
        pass  # tables of something else
    raise UserError(f"data {store.uri}/{prefix}/manifest.json: does not fit its tables; {remedy}")


def content_digest(manifest: Manifest, table: pa.Table) -> str:
    """Sixteen hex digits of what is trained on: independent of shards, places and times."""
    meaning = [manifest.load_size, manifest.classes, manifest.attribute_values]
    content = hashlib.sha256(json.dumps(meaning, sort_keys=True).encode())
    for digest in table["digest"].to_pylist():
        content.update(digest)
    return content.hexdigest()[:16]


def make_table(
    keys: list[str],
    records: list[Record],
    classes: list[str],
    attribute_values: dict[str, list[str]],
) -> pa.Table:
    """The table of a shard; classes, splits and attribute values by their index."""
    ranks = {name: rank for rank, name in enumerate(classes)}
    columns = {
        "key": pa.array(keys, pa.string()),
        "split": pa.array([SPLITS.index(record.split) for record in records], pa.int8()),
        "class": pa.array([ranks.get(record.class_name or "", -1) for record in records]),
        "captions": pa.array([record.captions for record in records], pa.list_(pa.string())),
        "digest": pa.array([_digest(record) for record in records], pa.binary(32)),
    }
    columns["class"] = columns["class"].cast(pa.int64())
    for name, values in attribute_values.items():
        columns[f"attribute:{name}"] = pa.array(
            [values.index(record.attributes[name]) for record in records], pa.int64()
        )
        columns[f"named:{name}"] = pa.array(
            [[name in named for named in record.named] for record in records], pa.list_(pa.bool_())
        )
    return pa.table(columns)


def _digest(record: Record) -> bytes:
    named = [sorted(names) for names in record.named]
    words = [record.captions, record.split, record.class_name, record.attributes, named]
    return hashlib.sha256(
        json.dumps(words, sort_keys=True).encode() + b"\n" + record.image.tobytes()
    ).digest()


def _list_column(table: pa.Table, name: str) -> pa.ListArray:
    return table[name].combine_chunks()
