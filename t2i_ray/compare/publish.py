"""Where a report goes: into files, and onto the sweep's run in MLflow."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from t2i_ray.compare.comparison import Comparison, compare
from t2i_ray.config import UserError
from t2i_ray.tracking import PastRun
from t2i_ray.tracking.server import one_line

FOLDER = "compare"  # among the artifacts

log = logging.getLogger(__name__)


def report_sweep(tracking_uri: str, parent_id: str) -> Comparison | None:
    """Compare a sweep's trials and log the report on its run; call it at the sweep's end.

    A report that fails costs a warning and no more: the trials stand by themselves.

    Args:
        tracking_uri: of MLflow, as `tracking.resolve(config).uri`.
        parent_id: id of the sweep's run.
    """
    try:
        comparison = compare([parent_id], tracking_uri)
        log_to_parent(comparison)
    except Exception as error:  # of MLflow, or of drawing what nobody foresaw
        log.warning("no report of the sweep: %s", one_line(error))
        return None
    return comparison


def sweep_of(comparison: Comparison) -> PastRun | None:
    """The one sweep whose trials the runs are, all of them; None if there is none such."""
    if len(comparison.sweeps) != 1:
        return None
    (sweep,) = comparison.sweeps
    trials, _ = comparison.history.find([sweep.run_id])
    same = {run.run_id for run in trials} == {run.run_id for run in comparison.runs}
    return sweep if same else None


def log_to_parent(comparison: Comparison) -> bool:
    """Put compare/report.html, compare/report.md and the PNGs on the sweep's run.

    Returns:
        False if the runs do not belong to one sweep.

    Raises:
        UserError: MLflow does not answer.
    """
    sweep = sweep_of(comparison)
    if sweep is None:
        return False
    files = {
        "report.html": comparison.html().encode(),
        "report.md": comparison.markdown("").encode(),
        **comparison.pictures(),
    }
    comparison.history.write(sweep, FOLDER, files)
    return True


def write_files(comparison: Comparison, html: Path | None, markdown: Path | None) -> list[Path]:
    """Write the report, each file whole or not at all, the pictures in ``<stem>_files`` beside it.

    Raises:
        UserError: a file can't be written there.
    """
    written = []
    for path, suffix in ((html, "html"), (markdown, "md")):
        if path is None:
            continue
        folder = path.parent / f"{path.stem}_files"
        body = comparison.html() if suffix == "html" else comparison.markdown(folder.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_all(folder, comparison.pictures())
            _write_all(path.parent, {path.name: body.encode()})
        except OSError as error:
            option = f"--{suffix} {path}"
            raise UserError(
                f"{option}: {error.strerror}; give a file that can be written"
            ) from None
        written.append(path)
    return written


def _write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    if files:
        folder.mkdir(exist_ok=True)
    for name, data in files.items():
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(folder / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
