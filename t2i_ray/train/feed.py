"""From the counter-based batches of numpy to the tensors of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from t2i_ray.augment import CHANCES
from t2i_ray.config import Config
from t2i_ray.data import Batches, Prepared, counter_rng
from t2i_ray.data import Piece as Batch
from t2i_ray.family import Piece

DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}


class Feed:
    """Micro-batches of a run as tensors: pictures, caption rows, and noise.

    Every draw is a function of (seed, step, micro-batch), so any worker can make any of them.
    """

    def __init__(
        self,
        config: Config,
        prepared: Prepared,
        rows: np.ndarray,
        device: torch.device,
        split: str = "train",
        read: Callable[[Sequence[str]], np.ndarray] | None = None,
    ) -> None:
        self._batches = Batches(
            prepared,
            config.data,
            seed=config.seed,
            batch_size=config.train.batch_size,
            micro_batches=config.train.micro_batches,
            split=split,
        )
        self._made_of = (config, prepared, rows, device)
        self.seconds = 0.0  # in which batches were read and cut
        self.piece_size = config.train.batch_size // config.train.micro_batches
        self._rows = rows
        self._read = read  # the encoder's rows of captions that the data has not
        #: How many values a row's ids have; 0: rows are finished codes.
        self.words = int(rows.max()) + 1 if rows.dtype.kind in "iu" else 0
        self._augments = bool(config.train.augment)
        self._pretrains = not config.model.draws
        self._seed = config.seed
        self._noise_dim = config.model.noise_dim
        self._dtype = DTYPES[config.train.precision]
        self._device = device

    def of_split(self, split: str) -> Feed:
        """The same of another split; wrong captions there are other_class's, for all runs alike."""
        config, prepared, rows, device = self._made_of
        data = config.data.model_copy(update={"wrong": "other_class"})
        config = config.model_copy(update={"data": data})
        return Feed(config, prepared, rows, device, split=split)

    @property
    def fallbacks(self) -> int:
        """See Batches."""
        return self._batches.fallbacks

    def piece(self, step: int, micro: int) -> Piece:
        """The tensors of one micro-batch of one step."""
        begun = time.perf_counter()
        batch = self._batches.piece(step, micro)
        self.seconds += time.perf_counter() - begun
        return Piece(
            images=self.pictures(batch.images),
            right=self.rows(batch.right),
            wrong=self._wrong_rows(batch),
            noise=self.noise("noise", step, micro, count=len(batch.right)),
            chance=self._chance(step, micro, len(batch.right)) if self._augments else None,
            classes=torch.from_numpy(batch.classes).to(self._device) if self._pretrains else None,
        )

    def _wrong_rows(self, batch: Batch) -> torch.Tensor:
        if batch.changed is None:
            return self.rows(batch.wrong)
        assert self._read
        return torch.from_numpy(self._read(batch.changed)).to(self._device)

    def _chance(self, step: int, micro: int, count: int) -> torch.Tensor:
        rng = counter_rng(self._seed, "augment", step, micro)
        chance = rng.random((count, CHANCES), dtype=np.float32)
        return torch.from_numpy(chance).to(self._device, self._dtype)

    def pictures(self, images: np.ndarray) -> torch.Tensor:
        """uint8 [b, S, S, 3] to [b, 3, S, S] in [-1, 1], channels last."""
        tensor = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2)
        return tensor.to(self._dtype).div_(127.5).sub_(1)

    def rows(self, captions: np.ndarray) -> torch.Tensor:
        """The encoder's input for caption ids: token ids, or embeddings of a frozen encoder."""
        rows = torch.from_numpy(np.ascontiguousarray(self._rows[captions])).to(self._device)
        return rows.to(self._dtype) if rows.is_floating_point() else rows

    def noise(self, purpose: str, *counters: int, count: int) -> torch.Tensor:
        """Standard normal noise [count, noise_dim]."""
        rng = counter_rng(self._seed, purpose, *counters)
        noise = rng.standard_normal((count, self._noise_dim), dtype=np.float32)
        return torch.from_numpy(noise).to(self._device, self._dtype)
