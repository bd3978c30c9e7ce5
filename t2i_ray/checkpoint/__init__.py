"""Checkpoints: written in the background, checked when read, and only so many kept.

A checkpoint is a folder ``step_00001000``: a safetensors file per group of tensors, a JSON file
per document, and last of all ``manifest.json`` with every file's sha256 and size. A folder
without a manifest was never finished. Nothing in it is ever unpickled or imported.
"""

from t2i_ray.checkpoint.checkpoints import Checkpoints
from t2i_ray.checkpoint.folder import Checkpoint, DamagedCheckpoint

__all__ = ["Checkpoint", "Checkpoints", "DamagedCheckpoint"]
