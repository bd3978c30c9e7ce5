"""What the commands other than ``train`` do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from t2i_ray.config import Cluster, Data, Storage, UserError, require_allowed, validate
from t2i_ray.runs import RunRecord, is_lost, last_seen, list_runs, read_progress, read_run
from t2i_ray.storage import Store, absolute, check_writable, open_store

DATA_FIELDS = Data.model_fields.keys() - {"source"}  # what is not said of a source is its own


def opened(storage: str, endpoint: str | None) -> Store:
    """The store of a command's options."""
    return open_store(Storage(uri=storage, endpoint=endpoint))


def check_output(path: Path | None, option: str) -> None:
    """Refuse what would be written to a Ray job's temporary folder. Raises UserError."""
    if path is not None:
        absolute(str(path), option)


def existing_run(store: Store, name: str) -> RunRecord:
    """The record of a run that must exist. Raises UserError."""
    record = read_run(store, name)
    if record is None:
        raise UserError(f"run {name!r}: there is none in {store.uri}; 't2i-ray runs' lists them")
    return record


def pretrain(config: Path, overrides: list[str], objective: str) -> int:
    """Run it and say where the encoder lies; the exit code."""
    from t2i_ray import launch
    from t2i_ray.cli.commit import git_commit
    from t2i_ray.config import PRETRAINING, load_config

    if objective not in PRETRAINING:
        raise UserError(f"--objective {objective}: give one of {', '.join(PRETRAINING)}")
    loaded = load_config(config, [*overrides, f"model.family={objective}"])
    commit, diff = git_commit()
    code = launch.train(loaded, commit=commit, diff=diff)
    if code == 0:
        place = open_store(loaded.storage).uri
        print(f"{loaded.name}: encoder.init_from={place}/runs/{loaded.name}/encoder")
    return code


def start_sweep(
    file: str | None, overrides: list[str], resume: str | None, storage: str, endpoint: str | None
) -> int:
    """Run a sweep by its file, or go on with one by its name; the exit code."""
    from t2i_ray import sweep as sweeps
    from t2i_ray.cli.commit import git_commit
    from t2i_ray.config import load_sweep, parse_sweep, with_overrides

    if resume:
        changes = [*([file] if file else []), *overrides]
        document = sweeps.stored(opened(storage, endpoint), resume)
        require_allowed(document)
        loaded = parse_sweep(with_overrides(document, changes))
    elif file:
        loaded = load_sweep(file, overrides)
    else:
        raise UserError("tune: give a sweep's YAML, or --resume NAME")
    commit, diff = git_commit()
    return sweeps.tune(loaded, commit=commit, diff=diff)


def look_at_all(config: Path, overrides: list[str], timeout: float) -> int:
    """Print what doctor finds; the exit code is 1 if something fails."""
    from t2i_ray.config import parse_config, parse_sweep, read_yaml

    document = read_yaml(config, overrides)
    run = parse_sweep(document).run if "space" in document else parse_config(document)
    from t2i_ray import doctor

    rows = doctor.examine(run, timeout)
    doctor.show(rows, Console())
    return int(any(row.state == "failed" for row in rows))


def prepare_source(kind: str, settings: list[str], storage: str, endpoint: str | None) -> None:
    """Prepare a source, as Ray tasks if it has several shards, and say where it lies."""
    from t2i_ray import launch
    from t2i_ray.data import open_prepared, prepare

    source: dict[str, object] = {"kind": kind}
    data: dict[str, object] = {"source": source}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"setting {setting!r}: write it as key=value, e.g. path=pictures")
        (data if key in DATA_FIELDS else source)[key] = yaml.safe_load(value)
    place = Storage(uri=storage, endpoint=endpoint)
    store = open_store(place)
    check_writable(store)

    def run_tasks(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterable[Any]:
        if len(tasks) < 2:  # no cluster need be started for one
            return map(function, tasks)
        launch.reach(Cluster(), place)
        if launch.lacks_shared_folder(place):
            print("here, one after another: the cluster's nodes do not share a local folder")
            return map(function, tasks)
        return launch.ray_tasks(function, tasks)

    prefix = prepare(
        validate(Data, data),
        store,
        reach=place,
        run_tasks=run_tasks,
        progress=launch.tell_prepared,
    )
    prepared = open_prepared(store, prefix)
    table = Table("split", "pictures", title=f"{store.uri}/{prefix}")
    for split in ("train", "val", "test"):
        table.add_row(split, str(len(prepared.ids(split))))
    console = Console()
    console.print(table)
    manifest = prepared.manifest
    console.print(
        f"captions {len(prepared.captions)} ({manifest.captions_cut} were cut, "
        f"{manifest.captions_empty} empty ones dropped), digest {prepared.digest}"
    )


def show_runs(storage: str, endpoint: str | None) -> None:
    """A table of the runs."""
    store = opened(storage, endpoint)
    table = Table(
        "run", "status", "step", "images/s", "attempts", "last seen", "identity", "reason"
    )
    for record in list_runs(store):
        progress = read_progress(store, record.name)
        step = max(record.step, progress.get("step", 0))
        ended = record.attempts[-1].ended if record.attempts else None
        seen = None if ended else last_seen(store, record)
        table.add_row(
            record.name,
            "lost" if is_lost(store, record) else record.status,
            f"{step}/{record.steps}",
            f"{progress.get('images_per_second', 0):.0f}",
            str(len(record.attempts)),
            ended or (seen.isoformat() if seen else ""),
            record.hash,
            record.reason or "",
        )
    Console().print(table if table.row_count else f"no runs in {store.uri}")


def sync_runs(
    names: Sequence[str], tracking_uri: str | None, storage: str, endpoint: str | None
) -> int:
    """Publish what MLflow lacks; 1 if something is still left."""
    from t2i_ray import launch

    store = opened(storage, endpoint)
    records = [existing_run(store, name) for name in names] or list_runs(store)
    behind = [
        record
        for record in records
        if names or is_lost(store, record) or not (record.published or record.status == "RUNNING")
    ]
    done = [launch.sync(store, record, tracking_uri=tracking_uri) for record in behind]
    for record, complete in zip(behind, done, strict=True):
        print(f"{record.name}: {'complete' if complete else 'MLflow still lacks something'}")
    if not behind:
        print("nothing to send")
    return 0 if all(done) else 1


# ------------------------------------------------------------------------------- measures


def measure(
    run: str,
    split: str,
    count: int,
    seed: int,
    measures: str | None,
    inception: Path | None,
    features: Path | None,
    resamples: int | None,
    matcher: str | None,
    storage: str,
    endpoint: str | None,
) -> None:
    """Measure a run's newest checkpoint and log it to MLflow."""
    from t2i_ray.evaluate.run import Wanted, chosen_groups, evaluate_run

    if split not in ("val", "test"):
        raise UserError(f"--split {split}: use val or test")
    weights = None if inception is None else str(inception)
    wanted = Wanted(chosen_groups(measures), weights, features, resamples, seed, matcher)
    store = opened(storage, endpoint)
    print(evaluate_run(store, existing_run(store, run), split, count, wanted=wanted))


# ----------------------------------------------------------------------------- comparison


def compare_runs(
    names: Sequence[str],
    metric: str | None,
    html: Path | None,
    md: Path | None,
    log: bool,
    tracking_uri: str | None,
    storage: str,
    endpoint: str | None,
) -> None:
    """Print the table of settings and the answer; write the report, and log it on the sweep."""
    from t2i_ray.compare import compare, log_to_parent
    from t2i_ray.compare.publish import write_files
    from t2i_ray.compare.sections import table_of
    from t2i_ray.config import Tracking
    from t2i_ray.tracking import locate

    check_output(html, "--html")
    check_output(md, "--md")
    place = Storage(uri=storage, endpoint=endpoint)
    comparison = compare(names, locate(Tracking(uri=tracking_uri), place).uri, metric)
    content = table_of(comparison.rows)
    table = Table(title=Text(comparison.metric_of(comparison.stage)))
    for i, column in enumerate(content.columns):
        justify: Literal["left", "right"] = "left" if i < content.labels else "right"
        table.add_column(column, overflow="fold", justify=justify)
    for row in content.rows:
        table.add_row(*map(Text, row))
    console = Console()
    if content.rows:
        console.print(table)
    console.print(Text(comparison.headline))
    for warning in comparison.warnings:
        console.print(Text(f"- {warning}"))
    for path in write_files(comparison, html, md):
        console.print(Text(f"wrote {path}"))
    if log and log_to_parent(comparison):
        console.print(Text(f"logged as compare/report.html on {comparison.sweeps[0].name}"))
