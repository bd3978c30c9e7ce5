"""Configs of runs that take a second, as mappings and as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


def flowers(images: int) -> dict[str, Any]:
    """The section data: synthetic flowers of 16x16 pixels."""
    source = {"kind": "synthetic-flowers", "images": images}
    return {"source": source, "image_size": 16, "load_size": 18}


def networks(noise_dim: int, text_dim: int, channels: list[int], **more: Any) -> dict[str, Any]:
    """The section model: G with these channels, D with the same ones the other way round."""
    sizes = {"noise_dim": noise_dim, "text_dim": text_dim}
    return {**sizes, "g_channels": channels, "d_channels": channels[::-1], **more}


#: Small enough for a second of training, and yet all of it: two pieces, a trained encoder, EMA.
TINY: dict[str, Any] = {
    "data": flowers(images=300),
    "model": networks(8, 16, [32, 16], ema=0.9),
    "encoder": {
        "kind": "bigru",
        "vocabulary": 200,
        "embedding_dim": 16,
        "hidden_dim": 16,
        "dim": 32,
        "max_tokens": 24,
    },
    "train": {"steps": 60, "batch_size": 16, "micro_batches": 2, "sample_every": 40},
    "checkpoint": {"every": 10, "keep": 2},
}


def write_config(folder: Path, name: str, document: Mapping[str, Any] = TINY) -> Path:
    """The file of a run or a sweep of that name, which is stored in the same folder."""
    path = folder / f"{name}.yaml"
    storage = {"uri": str(folder / "store"), **document.get("storage", {})}
    path.write_text(yaml.safe_dump({**document, "name": name, "storage": storage}))
    return path
