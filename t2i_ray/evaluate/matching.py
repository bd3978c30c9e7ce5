"""R-precision: whether a picture's own caption is found among others (Xu et al. 2018, AttnGAN)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from t2i_ray import config
from t2i_ray.batch_norm import estimate_statistics
from t2i_ray.checkpoint import Checkpoint
from t2i_ray.config import MATCHING, UserError, parse_config, require_allowed
from t2i_ray.data import Prepared, counter_rng
from t2i_ray.encoders import Encoder, load_encoder
from t2i_ray.evaluate.features import Features
from t2i_ray.evaluate.pictures import BATCH, Pictures, batches
from t2i_ray.families import family_of
from t2i_ray.generate import float32
from t2i_ray.models import Discriminator
from t2i_ray.pretrain import Tower, make_tower

OTHERS = 99  # captions among which the own one is looked for
BLOCK = 1000  # pictures scored together


class Matcher(Protocol):
    """Any model that says how well pictures and captions go together."""

    @property
    def name(self) -> str:
        """What stands in the measure's name: lower-case letters and digits."""

    def similarity(self, images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        """uint8 [n, S, S, 3] and m captions to float [n, m]; larger is more alike."""


def r_precision(pictures: Pictures, matcher: Matcher) -> tuple[np.ndarray, float]:
    """Whether each picture's own caption comes first among 100.

    The 99 others are drawn from the captions of other pictures whose text is another; where there
    are fewer, all of them are taken. Of k captions that share the first place, each is first by
    1 / k, so a model that scores all alike is at chance.

    Returns:
        float64 [n], 1 where it comes first; and chance, the mean of one over the number of
        captions.
    """
    first, chance = [], []
    count = len(pictures.captions)
    for here in np.array_split(np.arange(count), -(-count // BLOCK)):
        texts = [pictures.prepared.captions[i] for i in pictures.captions[here]]
        scores = np.asarray(matcher.similarity(pictures.generated[here], texts), np.float64)
        if scores.shape != (len(texts), len(texts)):
            raise ValueError(f"matcher {matcher.name}: a similarity matrix of {scores.shape}")
        numbers = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        text = np.array([numbers[each] for each in texts])
        sample = pictures.samples[here]
        for row in range(len(texts)):
            rng = counter_rng(pictures.seed, "other captions", int(here[row]))
            others = np.flatnonzero((text != text[row]) & (sample != sample[row]))
            chosen = rng.permutation(others)[:OTHERS]
            above = int((scores[row, chosen] > scores[row, row]).sum())
            level = int((scores[row, chosen] == scores[row, row]).sum())
            first.append(0.0 if above else 1 / (1 + level))
            chance.append(1 / (1 + len(chosen)))
    return np.array(first), float(np.mean(chance))


class Scored:
    """A network that scores pictures by captions' codes, with the encoder it was trained with.

    Args:
        name: as in the measure's name.
        encoder: of the captions.
        score: pictures [b, 3, S, S] in [-1, 1] and codes [m, dim] to logits [b, m].
    """

    def __init__(
        self, name: str, encoder: Encoder, score: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        self.name, self._encoder, self._score = name, encoder, score

    @torch.inference_mode()
    def similarity(self, images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        """See Matcher."""
        rows = np.ascontiguousarray(self._encoder.rows(captions))
        codes = self._encoder.module(torch.from_numpy(rows))
        scores = [self._score(part, codes) for part in _parts(images)]
        found: np.ndarray = torch.cat(scores).numpy()
        return found


class Towers(Scored):
    """Both towers of a pretrained pair: a matcher, and its codes of pictures as features.

    Args:
        encoder: of the captions.
        tower: of the pictures, its BatchNorm statistics fixed.
    """

    def __init__(self, encoder: Encoder, tower: Tower) -> None:
        super().__init__(MATCHING, encoder, tower)
        self._tower = tower

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> Features:
        """See FeatureModel: a picture's code, of length 1."""
        codes = [self._tower.pictures(part) for part in _parts(images)]
        return Features(torch.cat(codes).double().numpy())


def _parts(images: np.ndarray) -> list[Tensor]:
    """uint8 [n, S, S, 3] to batches [<= 256, 3, S, S] in [-1, 1], all of about one size."""
    return [
        torch.from_numpy(np.ascontiguousarray(part.transpose(0, 3, 1, 2))).float() / 127.5 - 1
        for part in np.array_split(images, -(-len(images) // BATCH))
    ]


HEAD_TENSORS = (
    "discriminator",
    "encoder",
    "encoder_ema",
)  # what of_discriminator reads of a checkpoint
PRETRAINED_TENSORS = ("tower_ema", "encoder_ema")  # and of_pretrained


def of_discriminator(checkpoint: Checkpoint) -> Scored | None:
    """The discriminator's own matching head; None: the run had no train.matching.

    The generator was trained to please this very head, so it flatters, and each run has its own:
    it says whether training did what it was to do, and compares no two runs. BatchNorm has the
    statistics of the pictures that are scored together (256), as in training.
    """
    require_allowed(checkpoint.documents["config"])
    own = parse_config(checkpoint.documents["config"])
    if "discriminator" not in checkpoint.tensors or not own.train.matching:
        return None
    trained = "encoder" if "encoder" in checkpoint.tensors else "encoder_ema"
    encoder = _encoder(checkpoint, own, trained)
    with torch.random.fork_rng(devices=[]):  # the first weights, soon replaced, are drawn
        others = family_of(own).make_others(own, encoder.dim)
    found = others.get("discriminator")
    if not isinstance(found, Discriminator) or found.matcher is None:
        return None
    found.load_state_dict(float32(checkpoint.tensors["discriminator"]))
    discriminator = found
    return Scored(
        "discriminator",
        encoder,
        lambda images, codes: discriminator.match(discriminator.features(images), codes),
    )


def of_pretrained(
    name: str, checkpoint: Checkpoint | None, prepared: Prepared, data: config.Data
) -> Towers:
    """Both towers of a run of ``t2i-ray pretrain-encoder``: one judge for all runs on its data.

    BatchNorm has the statistics of 1,024 training pictures, so a picture's code depends on no
    other picture.

    Raises:
        UserError: the run is none such, or of pictures of another size.
    """
    own = parse_config(checkpoint.documents["config"]) if checkpoint else None
    if checkpoint is None or own is None or "tower_ema" not in checkpoint.tensors:
        raise UserError(
            f"evaluation.matcher={name}: this is no run of 't2i-ray pretrain-encoder' with "
            "--objective matching that has a checkpoint in this storage; give one"
        )
    if own.data.image_size != data.image_size:
        raise UserError(
            f"evaluation.matcher={name}: it knows pictures of {own.data.image_size} pixels, and "
            f"these have data.image_size={data.image_size}; give one of that size"
        )
    require_allowed(checkpoint.documents["config"])
    encoder = _encoder(checkpoint, own, "encoder_ema")
    with torch.random.fork_rng(devices=[]):
        tower = make_tower(own, encoder.dim)
    tower.load_state_dict(float32(checkpoint.tensors["tower_ema"]))
    training = batches(prepared, data, "train", 64)
    pictures = (_parts(training.piece(i, 0).images)[0] for i in range(16))
    estimate_statistics(tower.trunk, ((part,) for part in pictures))
    return Towers(encoder, tower.eval())


def _encoder(checkpoint: Checkpoint, own: config.Config, part: str) -> Encoder:
    target = getattr(own.encoder, "target", None)
    encoder = load_encoder(checkpoint.documents["encoder"], target, own.storage)
    encoder.module.load_state_dict(float32(checkpoint.tensors[part]))
    encoder.module.eval().float()
    return encoder
