"""DiffAugment (Zhao et al. 2020): what D is shown is changed at random, and G learns through it.

All chance comes with the piece, so that any worker draws the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

OWN = 7  # numbers in [0, 1) that one picture needs: three of colour, two of shift, two of cutout
CHANCES = 2 * OWN  # for a real picture, and for the generated one
SHIFT = 0.125  # of a side, at most, as in the paper
HOLE = 0.5  # of a side


def augment(
    images: Tensor, chance: Tensor | None, policies: Sequence[str], *, generated: bool = False
) -> Tensor:
    """Pictures [b, 3, S, S] in [-1, 1], changed by each policy in turn; differentiable.

    Args:
        images: the pictures.
        chance: uniform numbers [b, CHANCES]; needed if there are policies.
        policies: of "color", "translation" and "cutout".
        generated: which half of the numbers to take.
    """
    if not policies:
        return images
    assert chance is not None
    own = chance[:, OWN:] if generated else chance[:, :OWN]
    if "color" in policies:
        images = _color(images, own[:, :3, None, None, None])
    if "translation" in policies:
        images = _translation(images, own[:, 3:5])
    if "cutout" in policies:
        images = _cutout(images, own[:, 5:7])
    return images


def _color(images: Tensor, chance: Tensor) -> Tensor:
    """Brightness by -0.5 to 0.5, saturation by 0 to 2, contrast by 0.5 to 1.5."""
    images = images + (chance[:, 0] - 0.5)
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (2 * chance[:, 1]) + grey
    middle = images.mean((1, 2, 3), keepdim=True)
    return (images - middle) * (chance[:, 2] + 0.5) + middle


def _translation(images: Tensor, chance: Tensor) -> Tensor:
    """Shifted by up to an eighth of a side each way; what comes in is zero, a middle grey."""
    side = images.shape[-1]
    most = int(side * SHIFT + 0.5)
    shift = (chance * (2 * most + 1)).floor().long() - most  # [b, 2]
    for axis in (2, 3):
        at = torch.arange(side, device=images.device) - shift[:, axis - 2, None]  # [b, S]
        inside = (at >= 0) & (at < side)
        shape = [len(images), 1, 1, 1]
        shape[axis] = side
        index = at.clamp(0, side - 1).view(shape).expand_as(images)
        images = images.gather(axis, index) * inside.view(shape)
    return images


def _cutout(images: Tensor, chance: Tensor) -> Tensor:
    """A square of half a side is made zero, anywhere, also half outside."""
    side = images.shape[-1]
    hole = int(side * HOLE + 0.5)
    centre = (chance * (side + 1 - hole % 2)).floor()  # [b, 2]
    at = torch.arange(side, device=images.device)
    first = centre - hole // 2
    inside = (at >= first[..., None]) & (at < first[..., None] + hole)  # [b, 2, S]
    kept = ~(inside[:, 0, :, None] & inside[:, 1, None, :])  # [b, S, S]
    return images * kept[:, None]
