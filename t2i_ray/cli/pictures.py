"""What ``t2i-ray generate`` does: a model, captions, and a grid or a strip of pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from t2i_ray.cli.commands import check_output, existing_run, opened
from t2i_ray.config import Storage, UserError
from t2i_ray.runs import read_run

if TYPE_CHECKING:
    from t2i_ray.generate import Pipeline


def load_model(model: str, storage: str, endpoint: str | None) -> Pipeline:
    """The pipeline of a run's newest checkpoint, of a folder, or of an MLflow model."""
    from t2i_ray.checkpoint import Checkpoints
    from t2i_ray.generate import MODEL_TENSORS, Pipeline
    from t2i_ray.runs import run_store

    if model.startswith(("models:/", "runs:/")):
        from t2i_ray.tracking import download_model

        with download_model(model, Storage(uri=storage, endpoint=endpoint)) as folder:
            return Pipeline.from_folder(folder)
    store = opened(storage, endpoint)
    if "/" in model or (Path(model).is_dir() and not read_run(store, model)):
        return Pipeline.from_folder(model)
    existing_run(store, model)
    checkpoints = Checkpoints(run_store(store, model).within("checkpoints"), keep=1)
    checkpoint = checkpoints.latest(only=MODEL_TENSORS)
    if checkpoint is None:
        raise UserError(f"run {model!r}: it has no checkpoint yet; let it train on")
    return Pipeline.from_checkpoint(checkpoint)


def draw(
    model: str,
    captions: list[str],
    file: Path | None,
    output: Path,
    count: int,
    seed: int,
    between: str | None,
    force: bool,
    storage: str,
    endpoint: str | None,
) -> None:
    """Write a grid of captions by noises, or a strip from one caption or noise to another."""
    from t2i_ray import report

    if file:
        try:
            lines = file.read_text(encoding="utf8").splitlines()
        except OSError as error:
            raise UserError(f"--file {file}: {error.strerror}; give a text file") from None
        captions = captions + [line.strip() for line in lines if line.strip()]
    if not captions:
        raise UserError("captions: none given; write them after the model, or use --file")
    if between not in (None, "captions", "noise"):
        raise UserError(f"--between {between}: use captions or noise")
    if between == "captions" and len(captions) != 2:
        raise UserError(f"--between captions: takes two captions, not {len(captions)}")
    check_output(output, "--output")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}")
    pipeline = load_model(model, storage, endpoint)
    _check_readable(pipeline, captions, force)
    if between:
        png = _strip(pipeline, captions, count, seed, between)
    else:
        repeated = [caption for caption in captions for _ in range(count)]
        seeds = [seed + i for _ in captions for i in range(count)]
        png = report.sample_grid(pipeline.images(repeated, seeds), captions)
    output.write_bytes(png)
    print(output)


def _check_readable(pipeline: Pipeline, captions: list[str], force: bool) -> None:
    """Warn of words that a model can't read.

    Raises:
        UserError: it can read nothing of a caption, which is not to be drawn by force.
    """
    refused = []
    for caption in dict.fromkeys(captions):
        _, refusal = pipeline.check(caption)
        if refusal and not force:
            refused.append(f"caption {caption!r}: {refusal}")
        elif warning := pipeline.warning(caption):
            print(f"warning: caption {caption!r}: {warning}", file=sys.stderr)
    if refused:
        more = f" (and {len(refused) - 1} more captions like it)" if len(refused) > 1 else ""
        raise UserError(
            f"{refused[0]}{more}; the picture would not show it: use other words, or --force"
        )


def _strip(pipeline: Pipeline, captions: list[str], count: int, seed: int, between: str) -> bytes:
    import torch

    from t2i_ray import report

    weight = torch.linspace(0, 1, max(count, 2))[:, None]
    codes = pipeline.encode(captions)
    noise = pipeline.noise([seed, seed + 1])
    if between == "captions":
        mixed = torch.lerp(codes[:1], codes[1:], weight)
        images = pipeline.draw(mixed, noise[:1].expand(len(weight), -1))
        return report.strip(images, captions)
    strips = [
        pipeline.draw(code.expand(len(weight), -1), torch.lerp(noise[:1], noise[1:], weight))
        for code in codes
    ]
    return report.sample_grid(np.concatenate(strips), captions)
