"""The pictures that measures look at: generated ones, real ones of the split, training ones.

Which captions, samples and crops these are depends on data, split, count and seed alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np

from t2i_ray import config
from t2i_ray.config import UserError
from t2i_ray.data import Batches, Prepared, counter_rng
from t2i_ray.evaluate.features import FeatureModel, Features, join

REAL_PICTURES = 4096  # at most so many real pictures of a split are looked at
TRAINING_PICTURES = 20_000  # at most so many training pictures are searched for the nearest
BATCH = 256
CAPTIONS, NOISES = 100, 8  # of the pictures that show how far noise changes a caption's picture
Generate = Callable[[np.ndarray], np.ndarray]


class Seeds:
    """Seeds of noise: of a caption that comes again, another one; the same for all models.

    Args:
        captions: how many there are.
        seed: of all seeds.
    """

    def __init__(self, captions: int, seed: int = 0) -> None:
        self._captions, self._turns = captions, Counter[int]()
        self._start = seed << 20  # more turns than anybody takes

    def __call__(self, captions: np.ndarray) -> list[int]:
        """One for each caption id, int64 [n]."""
        seeds = []
        for caption in captions.tolist():
            seeds.append(caption + (self._start + self._turns[caption]) * self._captions)
            self._turns[caption] += 1
        return seeds


class RealPictures:
    """Real pictures of a split, and their features: the same for all evaluations of a run.

    Args:
        prepared: the data.
        data: its config.
        split: whose pictures.
    """

    def __init__(self, prepared: Prepared, data: config.Data, split: str) -> None:
        self._made_of = prepared, data, split
        self._features: dict[str, Features] = {}

    @cached_property
    def _drawn(self) -> tuple[np.ndarray, np.ndarray]:
        return real_pictures(*self._made_of)

    @property
    def pictures(self) -> np.ndarray:
        """Each once, at most 4096: uint8 [r, S, S, 3]."""
        return self._drawn[0]

    @property
    def captions(self) -> np.ndarray:
        """A caption of each, int64 [r]."""
        return self._drawn[1]

    def features(self, model: FeatureModel) -> Features:
        """Of all of them, by a model that is told from others by its name."""
        if model.name not in self._features:
            self._features[model.name] = model(self.pictures)
        return self._features[model.name]


class Pictures:
    """All pictures of one evaluation, and their features, each made when it is first asked for.

    Args:
        prepared: the data.
        data: its config.
        generate: caption ids int64 [n], at most 256 of them, to uint8 pictures [n, S, S, 3]; every
            picture is of a noise of its own, also a caption's second one.
        split: whose captions, and whose real pictures, are used.
        count: pictures to generate.
        seed: of the choice of captions.
        real: the split's real pictures, if somebody keeps them; None: they are drawn.

    Raises:
        UserError: the split has fewer than four pictures.
    """

    def __init__(
        self,
        prepared: Prepared,
        data: config.Data,
        generate: Generate,
        split: str,
        count: int,
        seed: int,
        real: RealPictures | None = None,
    ) -> None:
        check_split(prepared, split)
        self.prepared, self.data, self.split, self.seed = prepared, data, split, seed
        self.samples, self.captions = choose_captions(prepared, split, count, seed)
        self._generate = generate
        self.generated = self._draw(self.captions)
        self._real = real or RealPictures(prepared, data, split)
        self._features: dict[tuple[str, str], Features] = {}

    def _draw(self, captions: np.ndarray) -> np.ndarray:
        starts = range(0, len(captions), BATCH)
        return np.concatenate([self._generate(captions[at : at + BATCH]) for at in starts])

    @cached_property
    def several_captions(self) -> np.ndarray:
        """The captions that are drawn several times, int64 [c]: of 100 pictures at most."""
        return self.captions[: min(CAPTIONS, len(self.prepared.ids(self.split)))]

    @cached_property
    def several(self) -> np.ndarray:
        """Generated pictures of several_captions, 8 noises each: uint8 [c * 8, S, S, 3]."""
        return self._draw(np.repeat(self.several_captions, NOISES))

    @property
    def real(self) -> np.ndarray:
        """Real pictures of the split, each once, at most 4096: uint8 [r, S, S, 3]."""
        return self._real.pictures

    @property
    def real_captions(self) -> np.ndarray:
        """A caption of each real picture, int64 [r]."""
        return self._real.captions

    @cached_property
    def training_ids(self) -> np.ndarray:
        """The training samples that are searched, int64 [t], at most 20,000."""
        ids = self.prepared.ids("train")
        return counter_rng(self.seed, "training pictures").permutation(ids)[:TRAINING_PICTURES]

    def training(self) -> Iterator[np.ndarray]:
        """The training pictures, cut from the middle, in parts uint8 [<= 256, S, S, 3]."""
        for at in range(0, len(self.training_ids), BATCH):
            yield self.cut(self.training_ids[at : at + BATCH])

    def cut(self, samples: np.ndarray) -> np.ndarray:
        """The middle of these samples' pictures, uint8 [n, S, S, 3]."""
        edge, size = self.prepared.manifest.load_size, self.data.image_size
        low = (edge - size) // 2
        return self.prepared.images(samples)[:, low : low + size, low : low + size]

    def features(self, model: FeatureModel, which: str) -> Features:
        """Of "generated", "several", "real", "training" or "mirrored" training pictures."""
        if which == "real":
            return self._real.features(model)
        key = model.name, which
        if key not in self._features:
            if which == "training":
                found = join([model(part) for part in self.training()])
            elif which == "mirrored":
                found = join([model(part[:, :, ::-1]) for part in self.training()])
            else:
                found = model(getattr(self, which))
            self._features[key] = found
        return self._features[key]


def check_split(prepared: Prepared, split: str) -> None:
    """Raise UserError if a split has fewer pictures than measuring needs."""
    if (pictures := len(prepared.ids(split))) < 4:
        raise UserError(
            f"data.source: the split {split} has {pictures} pictures, and measuring needs at least "
            "4; add some, or take another split, or set evaluation.every=0"
        )


def choose_captions(
    prepared: Prepared, split: str, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Samples and one caption of each, int64 [count]: no sample twice before all had a turn."""
    rng = counter_rng(seed, "measured captions")
    samples = np.resize(rng.permutation(prepared.ids(split)), count)
    first, last = prepared.first_caption[samples], prepared.first_caption[samples + 1]
    return samples, rng.integers(first, last)


def real_pictures(
    prepared: Prepared, data: config.Data, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Real pictures of a split, each once, cropped and mirrored as in training; at most 4096.

    Returns:
        uint8 [n, S, S, 3], and int64 [n] ids of a caption of each.
    """
    count = min(len(prepared.ids(split)), REAL_PICTURES)
    piece = batches(prepared, data, split, count).piece(0, 0)
    return piece.images, piece.right


def batches(prepared: Prepared, data: config.Data, split: str, size: int) -> Batches:
    """The split as training sees it, whatever its ``flip`` and ``wrong``: runs share a reader."""
    data = data.model_copy(update={"flip": True, "wrong": "other_class"})
    return Batches(prepared, data, seed=0, batch_size=size, micro_batches=1, split=split)


def samples_of(prepared: Prepared, captions: np.ndarray) -> np.ndarray:
    """The samples whose captions these are, int64 [n]."""
    return np.searchsorted(prepared.first_caption, captions, side="right") - 1
