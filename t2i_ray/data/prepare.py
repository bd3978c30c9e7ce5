"""From a source to the prepared form, shard by shard, on any number of tasks."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from t2i_ray import config
from t2i_ray.config import UserError
from t2i_ray.data.accept import accept
from t2i_ray.data.captions import clean
from t2i_ray.data.prepared import Manifest, Shard, content_digest, make_table
from t2i_ray.data.record import SPLITS, Record, Rejected
from t2i_ray.data.sources import Source, open_source, resolved
from t2i_ray.storage import Store


class ShardTask(NamedTuple):
    """One shard to make: small and picklable."""

    source: Source  # with the shard's keys only
    load_size: int
    name: str
    store: Store
    prefix: str


RunTasks = Callable[[Callable[[ShardTask], int], list[ShardTask]], Iterable[int]]
Progress = Callable[[int, int], None]


def prepare(
    data: config.Data,
    store: Store,
    *,
    reach: config.Storage | None = None,
    run_tasks: RunTasks | None = None,
    progress: Progress | None = None,
) -> str:
    """Make the prepared form of a source unless it is there already; its prefix in the store.

    Shards that an earlier, broken attempt left are kept. The result depends on the source and the
    load size, not on tasks, their order or their number.

    Args:
        data: what to prepare.
        store: where to.
        reach: endpoint and region of S3, for a source that lies there; None: the environment's.
        run_tasks: runs a top-level function on each of a list of picklable arguments and gives
            the results in any order; None: here, one after another.
        progress: called with (source keys done, source keys in all) as shards are done.

    Raises:
        UserError: the source cannot be used, or too much of it was rejected.
    """
    data = data.model_copy(update={"source": resolved(data.source)})
    source = open_source(data.source, data.load_size, reach or config.Storage())
    prefix = prefix_of(data, source)
    if store.exists(f"{prefix}/manifest.json"):
        return prefix
    source.look_through()
    keys = source.keys
    names = {
        f"{number:05d}": keys[start : start + data.shard_size]
        for number, start in enumerate(range(0, len(keys), data.shard_size))
    }
    there = set(store.list(prefix))
    tasks = [
        ShardTask(source.part(mine), data.load_size, name, store, prefix)
        for name, mine in names.items()
        if f"{prefix}/shards/{name}.json" not in there
    ]
    done = len(keys) - sum(len(task.source.entries) for task in tasks)
    for count in (run_tasks or map)(make_shard, tasks):
        done += count
        if progress:
            progress(done, len(keys))
    _finish(data, source, store, prefix, list(names))
    return prefix


def prefix_of(data: config.Data, source: Source) -> str:
    """``data/<kind>-<hash>`` of what decides the prepared form."""
    words = [data.source.model_dump(), source.fingerprint, data.load_size, data.shard_size]
    form = Manifest.model_fields["format"].default
    digest = hashlib.sha256(json.dumps([form, *words], sort_keys=True).encode()).hexdigest()
    return f"data/{data.source.kind}-{digest[:12]}"


def make_shard(task: ShardTask) -> int:
    """Read, scale and write one shard, its sidecar last; the number of keys it covers."""
    source = task.source
    keys: list[str] = []
    records: list[Record] = []
    rejected = []
    for key in source.keys:
        try:
            records.append(accept(source.read(key), task.load_size))
            keys.append(key)
        except Rejected as reason:
            rejected.append({"key": key, "reason": clean(str(reason))[0]})
    empty = np.empty((0, task.load_size, task.load_size, 3), np.uint8)
    pictures, table = io.BytesIO(), io.BytesIO()
    np.save(pictures, np.stack([record.image for record in records]) if records else empty)
    pq.write_table(make_table(keys, records, source.classes, source.attribute_values), table)
    place = f"{task.prefix}/shards/{task.name}"
    task.store.write(f"{place}.npy", pictures.getvalue())
    task.store.write(f"{place}.parquet", table.getvalue())
    shard = Shard(
        name=task.name,
        count=len(records),
        images_sha256=hashlib.sha256(pictures.getvalue()).hexdigest(),
        table_sha256=hashlib.sha256(table.getvalue()).hexdigest(),
    )
    sidecar = {
        "shard": shard.model_dump(),
        "captions_cut": sum(record.cut for record in records),
        "captions_empty": sum(record.empty for record in records),
        "rejected": rejected,
    }
    task.store.write_json(f"{place}.json", sidecar)
    return len(source.entries)


def _finish(data: config.Data, source: Source, store: Store, prefix: str, names: list[str]) -> None:
    """List the rejected keys, judge them, and write the manifest."""
    sidecars = [store.read_json(f"{prefix}/shards/{name}.json") for name in names]
    rejected = [reject for sidecar in sidecars for reject in sidecar["rejected"]]
    lines = "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejected)
    store.write(f"{prefix}/rejected.jsonl", lines.encode())
    problem = _problem(data, len(source.entries), rejected)
    shards = [Shard(**sidecar["shard"]) for sidecar in sidecars if sidecar["shard"]["count"]]
    if not problem:
        table = pa.concat_tables(
            pq.read_table(io.BytesIO(store.read(f"{prefix}/shards/{shard.name}.parquet")))
            for shard in shards
        )
        counts = Counter(table["split"].to_pylist())
        if not counts[0]:
            problem = "data.source: no picture is in the split train; say which ones are"
    if problem:
        # What was rejected is tried again next time, for the user may have mended it.
        for name, sidecar in zip(names, sidecars, strict=True):
            if sidecar["rejected"]:
                store.delete(f"{prefix}/shards/{name}.json")
        raise UserError(f"{problem}; all are listed in {store.uri}/{prefix}/rejected.jsonl")
    manifest = Manifest(
        kind=data.source.kind,
        load_size=data.load_size,
        licence=source.licence,
        count=table.num_rows,
        captions=len(table["captions"].combine_chunks().flatten()),
        captions_cut=sum(sidecar["captions_cut"] for sidecar in sidecars),
        captions_empty=sum(sidecar["captions_empty"] for sidecar in sidecars),
        rejected=len(rejected),
        splits={split: counts[rank] for rank, split in enumerate(SPLITS)},
        classes=source.classes,
        attribute_values=source.attribute_values,
        shards=shards,
        digest="",
    )
    manifest = manifest.model_copy(update={"digest": content_digest(manifest, table)})
    store.write_json(f"{prefix}/manifest.json", manifest.model_dump())


def _problem(data: config.Data, total: int, rejected: list[dict[str, str]]) -> str:
    """Why these rejects are too many; empty if they are not."""
    if not total:
        return f"data.source.kind={data.source.kind}: it holds no picture at all; add some"
    if len(rejected) < total and len(rejected) <= data.max_rejected * total:
        return ""
    first = "; ".join(f"{reject['key']}: {reject['reason']}" for reject in rejected[:3])
    return (
        f"data.max_rejected={data.max_rejected}: {len(rejected)} of {total} pictures cannot be "
        f"used ({first}, ...); mend them or allow more"
    )
