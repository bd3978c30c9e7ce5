"""Pictures from captions: a trained generator and its text encoder, loaded from a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from t2i_ray.batch_norm import reserve_statistics
from t2i_ray.checkpoint import Checkpoint
from t2i_ray.config import Config, UserError, parse_config, require_allowed
from t2i_ray.data import counter_rng
from t2i_ray.encoders import Encoder, load_encoder, refusal, unknown_words
from t2i_ray.families import family_of

#: The files of a checkpoint that make pictures; a folder of them is a model.
MODEL_TENSORS = ("generator_ema", "encoder_ema")
MODEL_DOCUMENTS = ("config", "encoder")
BATCH = 256


def to_uint8(images: Tensor) -> np.ndarray:
    """[n, 3, S, S] in [-1, 1] to uint8 [n, S, S, 3]."""
    pixels = images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    array: np.ndarray = pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return array


def export(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the part of a checkpoint that makes pictures; ``Pipeline.from_folder`` reads it."""
    for part in MODEL_TENSORS:
        save_file(checkpoint.tensors[part], folder / f"{part}.safetensors")
    for part in MODEL_DOCUMENTS:
        (folder / f"{part}.json").write_text(json.dumps(checkpoint.documents[part], indent=1))


class Pipeline:
    """Captions and noise in, pictures out."""

    def __init__(self, config: Config, encoder: Encoder, generator: nn.Module) -> None:
        self.config = config
        self._encoder = encoder
        self._generator = generator

    @classmethod
    def from_parts(
        cls, tensors: Mapping[str, dict[str, Tensor]], documents: Mapping[str, Any]
    ) -> Pipeline:
        """From the tensors and JSON documents that a checkpoint holds.

        Raises:
            UserError: they name a class that the user has not allowed, or the encoder's
                pretrained model is not to be had.
        """
        require_allowed(documents["config"])
        config = parse_config(documents["config"])
        target = getattr(config.encoder, "target", None)
        encoder = load_encoder(documents["encoder"], target, config.storage)
        encoder.module.load_state_dict(float32(tensors["encoder_ema"]))
        generator = family_of(config).make_generator(config, encoder.dim)
        reserve_statistics(generator)
        generator.load_state_dict(float32(tensors["generator_ema"]))
        encoder.module.eval().float()
        return cls(config, encoder, generator.eval())

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Pipeline:
        """From a loaded checkpoint."""
        return cls.from_parts(checkpoint.tensors, checkpoint.documents)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Pipeline:
        """From a model's folder: a checkpoint's, or one that holds just its MODEL files.

        Raises:
            UserError: a file is missing; weights are never made up.
        """
        folder = Path(folder)
        for name in [f"{part}.safetensors" for part in MODEL_TENSORS] + [
            f"{part}.json" for part in MODEL_DOCUMENTS
        ]:
            if not (folder / name).is_file():
                raise UserError(f"model {folder}: {name} is missing; give a checkpoint's folder")
        return cls.from_parts(
            {part: load_file(folder / f"{part}.safetensors") for part in MODEL_TENSORS},
            {part: json.loads((folder / f"{part}.json").read_bytes()) for part in MODEL_DOCUMENTS},
        )

    def check(self, caption: str) -> tuple[list[str], str | None]:
        """Words of a caption that the encoder does not know, and why to refuse it, if at all."""
        return unknown_words(self._encoder, caption)[0], refusal(self._encoder, caption)

    def warning(self, caption: str) -> str:
        """What of a caption the picture can't show, in a line; empty if the encoder reads all."""
        unknown, why = self.check(caption)
        words = ", ".join(dict.fromkeys(unknown))
        what = f"{len(unknown)} unknown to this model's text encoder: {words}"
        return "; ".join(filter(None, [why, what if unknown else ""]))

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Captions to codes [n, dim]."""
        rows = self._encoder.rows(captions)
        return self.encode_rows(rows)

    @torch.inference_mode()
    def encode_rows(self, rows: np.ndarray) -> Tensor:
        """The encoder's input rows to codes [n, dim]."""
        code: Tensor = self._encoder.module(torch.from_numpy(np.ascontiguousarray(rows)))
        return code

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """One noise vector per seed, [n, noise_dim]; the same seed gives the same noise."""
        return noise_of(seeds, self.config.model.noise_dim)

    @torch.inference_mode()
    def draw(self, codes: Tensor, noise: Tensor) -> np.ndarray:
        """Codes [n, dim] and noise [n, noise_dim] to uint8 pictures [n, S, S, 3]."""
        parts = zip(torch.split(noise, BATCH), torch.split(codes, BATCH), strict=True)
        return np.concatenate([to_uint8(self._generator(z, code)) for z, code in parts])

    def images(self, captions: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """One uint8 picture per caption and seed, [n, S, S, 3]."""
        return self.draw(self.encode(captions), self.noise(seeds))


def noise_of(seeds: Sequence[int], dim: int) -> Tensor:
    """One standard normal vector per seed, [n, dim]."""
    rows = [counter_rng(seed, "generate").standard_normal(dim, np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(rows))


def float32(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors as float32, others as they are."""
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
