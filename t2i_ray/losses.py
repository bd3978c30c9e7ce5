"""What each network of GAN-CLS maximises, from the discriminator's logits. Torch alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus


class Scores(NamedTuple):
    """The discriminator's logits for the three pairs of Algorithm 1."""

    real: Tensor  # [b] real picture, right caption
    wrong: Tensor  # [b] real picture, wrong caption
    fake: Tensor  # [b] generated picture, right caption


def discriminator_loss(scores: Scores) -> tuple[Tensor, dict[str, Tensor]]:
    """Maximise the likelihood of "real and matching" for real + right, its contrary for the rest.

    -log D(real, right) - 1/2 log(1 - D(real, wrong)) - 1/2 log(1 - D(fake, right)), with D the
    logistic function of the score (Algorithm 1, line 9); and the terms and shares to log.
    """
    real, wrong, fake = (_at_least_float32(score) for score in scores)
    terms = {
        "d_real": softplus(-real).mean(),
        "d_wrong": softplus(wrong).mean(),
        "d_fake": softplus(fake).mean(),
    }
    loss = terms["d_real"] + terms["d_wrong"] / 2 + terms["d_fake"] / 2
    right_sign = {
        "d_acc_real": (real > 0).to(loss.dtype).mean(),
        "d_acc_wrong": (wrong < 0).to(loss.dtype).mean(),
        "d_acc_fake": (fake < 0).to(loss.dtype).mean(),
    }
    logged = {"d_loss": loss, **terms, **right_sign}
    return loss, {name: value.detach() for name, value in logged.items()}


def generator_loss(fake: Tensor) -> Tensor:
    """Maximise the likelihood that D takes the fake for real and matching: -log D(fake, right)."""
    return softplus(-_at_least_float32(fake)).mean()


def matching_loss(logits: Tensor) -> Tensor:
    """Maximise the likelihood of picking each picture's caption, and each caption's picture.

    Logits [b, b], pictures by captions. The contrastive loss of XMC-GAN (Zhang et al. 2021,
    "Cross-Modal Contrastive Learning for Text-to-Image Generation", equations 1 and 2), in both
    directions: D and the encoder learn from real pictures, G from its own.
    """
    logits, own = _at_least_float32(logits), torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def _at_least_float32(score: Tensor) -> Tensor:
    return score.to(torch.promote_types(score.dtype, torch.float32))
