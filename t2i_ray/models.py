"""The two networks of GAN-CLS (Reed et al. 2016, section 4.1), with DCGAN's layers.

BatchNorm keeps no running statistics while training: it has no buffers, so that copies of a
network on several workers have nothing but parameters to agree on. A generator that is to be
*used* gets fixed statistics (`batch_norm.py`); they are then part of its state dict.
No layer that a BatchNorm follows has a bias: the norm would take it out again.

A caption's projection is normalised as well, which the paper does not do: an encoder's codes may
be of any scale, and those of a fresh one are so small that noise and picture would drown them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, normalize
from torch.nn.utils.parametrize import ParametrizationList, register_parametrization

SLOPE = 0.2
TEMPERATURE = 0.1  # of matching, as in XMC-GAN


class Generator(nn.Module):
    """Noise and a caption's code to a picture of 4 * 2**len(channels) pixels a side.

    Args:
        noise_dim: width z of the noise.
        text_in: width of a caption's code.
        text_dim: width to which the code is projected.
        channels: channels at 4x4, 8x8, ... before the last doubling, which makes RGB.
    """

    def __init__(self, noise_dim: int, text_in: int, text_dim: int, channels: Sequence[int]):
        super().__init__()
        self.text = _text_projection(text_in, text_dim)
        # A transposed convolution from 1x1 to 4x4 is a matrix product, and quicker as one.
        self.first = nn.Linear(noise_dim + text_dim, 4 * 4 * channels[0], bias=False)
        self.norm = _batch_norm(channels[0])
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1, bias=False),
                _batch_norm(narrow),
                nn.ReLU(inplace=True),
            )
            for wide, narrow in pairwise(channels)
        )
        self.last = nn.ConvTranspose2d(channels[-1], 3, 4, stride=2, padding=1)
        self.apply(_dcgan_init)
        nn.init.normal_(self.first.weight, 0.0, 0.02)  # a convolution in disguise

    def forward(self, noise: Tensor, code: Tensor) -> Tensor:
        """Noise [b, z], code [b, text_in] -> picture [b, 3, S, S] in [-1, 1]."""
        text = self.text(code)  # [b, text_in] -> [b, text_dim]
        x = self.first(torch.cat([noise, text], dim=1))  # [b, z + text_dim] -> [b, 16 * c]
        x = x.unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2)  # -> [b, c, 4, 4], channels last
        x = self.norm(x).relu_()  # [b, c, 4, 4]
        for block in self.blocks:
            x = block(x)  # [b, c, h, w] -> [b, c', 2h, 2w]
        images: Tensor = self.last(x).tanh()  # [b, c, S/2, S/2] -> [b, 3, S, S]
        return images


class Discriminator(nn.Module):
    """Scores whether a picture is real *and* is what the caption says.

    After text and image are joined they go through a 1x1 convolution, a norm and an activation
    before the last convolution. Without that (one linear layer over the joined features) the
    score would be f(image) + g(text), which no caption could ever tell from a mismatched one.

    Args:
        text_in: width of a caption's code.
        text_dim: width to which the code is projected.
        channels: channels from the picture down to 4x4.
        matching: whether it also has a `Matcher`.
        spectral: whether trunk and head are spectrally normalised.
    """

    def __init__(
        self,
        text_in: int,
        text_dim: int,
        channels: Sequence[int],
        matching: bool = False,
        spectral: bool = False,
    ):
        super().__init__()
        self.trunk = Trunk(channels)
        self.head = Head(text_in, text_dim, channels[-1])
        self.matcher = Matcher(text_in, text_dim, channels[-1]) if matching else None
        self.apply(_dcgan_init)
        for layer in (self.trunk.join, self.head.join, self.head.last):  # convolutions in disguise
            nn.init.normal_(layer.weight, 0.0, 0.02)
        if spectral:
            for part in [*self.trunk.modules(), *self.head.modules()]:
                if isinstance(part, nn.Conv2d | nn.Linear):
                    register_parametrization(part, "weight", SpectralNorm(part.weight))

    def iterate_spectral(self) -> None:
        """Once a step, on every worker alike: bring the estimates of spectral norms up to date."""
        for part in self.modules():
            if isinstance(part, ParametrizationList) and isinstance(part[0], SpectralNorm):
                part[0].iterate(part.original)

    def features(self, images: Tensor) -> Tensor:
        """Pictures [b, 3, S, S] -> the image's half of the joint layer [b, c, 4, 4].

        Computed once for a picture, however many captions it is scored against.
        """
        features: Tensor = self.trunk(images)
        return features

    def score(self, features: Tensor, code: Tensor) -> Tensor:
        """Features [b, c, 4, 4] and codes [b, text_in] -> logits [b]: real and matching."""
        scores: Tensor = self.head(features, code)
        return scores

    def match(self, features: Tensor, code: Tensor, wrong: Tensor | None = None) -> Tensor:
        """Features [b, c, 4, 4] and codes [b, text_in] -> logits [b, b]: each with each.

        With codes of wrong captions, [b, text_in], [b, b + 1]: each picture with its own as well.
        """
        if self.matcher is None:
            raise ValueError("this discriminator was made without matching")
        logits: Tensor = self.matcher(features, code, wrong)
        return logits


class SpectralNorm(nn.Module):
    """A weight over its largest singular value (Miyato et al. 2018), as a parametrization.

    The singular vectors are estimated by one round of power iteration a step, in `iterate`, not in
    each forward as torch's own does it: how many forwards there are depends on a worker's share of
    the pieces, and the update must not.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows = weight.flatten(1)  # [out, in * k * k]
        self.register_buffer("u", normalize(torch.randn(rows.shape[0]), dim=0))
        self.register_buffer("v", torch.zeros(rows.shape[1]))
        for _ in range(15):  # as torch starts
            self.iterate(weight)

    @torch.no_grad()
    def iterate(self, weight: Tensor) -> None:
        """One round of power iteration."""
        rows = weight.flatten(1)
        self.v.copy_(normalize(rows.T @ self.u, dim=0))
        self.u.copy_(normalize(rows @ self.v, dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight over u' W v, which no autocast is to round."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight / torch.dot(self.u, weight.flatten(1) @ self.v)


class Trunk(nn.Module):
    """The part of the discriminator that sees the picture only."""

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.first = nn.Conv2d(3, channels[0], 4, stride=2, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(narrow, wide, 4, stride=2, padding=1, bias=False),
                _batch_norm(wide),
                nn.LeakyReLU(SLOPE, inplace=True),
            )
            for narrow, wide in pairwise(channels)
        )
        # The 1x1 convolution over [image, text] is W_i f + W_t e; this is W_i, the head has W_t.
        # As a matrix product: DDP would warn of the strides of a 1x1 kernel's gradient.
        self.join = nn.Linear(channels[-1], channels[-1], bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures [b, 3, S, S] -> W_i f [b, c, 4, 4]."""
        x = leaky_relu(self.first(images), SLOPE, inplace=True)  # -> [b, c, S/2, S/2]
        for block in self.blocks:
            x = block(x)  # [b, c, h, w] -> [b, c', h/2, w/2]
        joined: Tensor = self.join(x.permute(0, 2, 3, 1))  # [b, 4, 4, c]
        return joined.permute(0, 3, 1, 2)  # [b, c, 4, 4], channels last


class Recognition(nn.Module):
    """What noise may have made a picture of this caption: q(z | x, t) of a CVAE.

    Args:
        noise_dim: width z of the noise.
        text_in, text_dim, channels: as the discriminator's.
    """

    def __init__(self, noise_dim: int, text_in: int, text_dim: int, channels: Sequence[int]):
        super().__init__()
        self.trunk = Trunk(channels)
        self.text = _text_projection(text_in, text_dim)
        self.join = nn.Linear(text_dim, channels[-1], bias=False)
        self.norm = _batch_norm(channels[-1])
        self.last = nn.Linear(4 * 4 * channels[-1], 2 * noise_dim)
        self.apply(_dcgan_init)

    def forward(self, images: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [b, 3, S, S], codes [b, text_in] -> means and log variances, [b, z] each."""
        x = self.trunk(images) + self.join(self.text(code))[:, :, None, None]  # [b, c, 4, 4]
        x = leaky_relu(self.norm(x), SLOPE, inplace=True)  # [b, c, 4, 4]
        mean, log_variance = self.last(x.flatten(1)).chunk(2, dim=1)  # [b, 2 z]
        return mean, log_variance


class Head(nn.Module):
    """The part of the discriminator that joins picture and caption."""

    def __init__(self, text_in: int, text_dim: int, channels: int):
        super().__init__()
        self.text = _text_projection(text_in, text_dim)
        self.join = nn.Linear(text_dim, channels, bias=False)
        self.norm = _batch_norm(channels)
        # A convolution from 4x4 to 1x1 is a matrix product, and four times quicker as one.
        self.last = nn.Linear(4 * 4 * channels, 1)

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        """W_i f [b, c, 4, 4], code [b, text_in] -> logit [b]."""
        text = self.text(code)  # [b, text_in] -> [b, text_dim]
        x = features + self.join(text)[:, :, None, None]  # W_i f + W_t e: [b, c, 4, 4]
        x = leaky_relu(self.norm(x), SLOPE, inplace=True)  # [b, c, 4, 4]
        score: Tensor = self.last(x.permute(0, 2, 3, 1).flatten(1))  # [b, 16 * c] -> [b, 1]
        return score.squeeze(1)  # [b]


class Matcher(nn.Module):
    """Cosine similarity of pictures and captions, over a temperature; or their inner product."""

    def __init__(self, text_in: int, dim: int, channels: int, cosine: bool = True):
        super().__init__()
        self.cosine = cosine
        self.image = nn.Linear(channels * 4 * 4, dim)
        self.text = nn.Linear(text_in, dim)

    def forward(self, features: Tensor, code: Tensor, wrong: Tensor | None = None) -> Tensor:
        """W_i f [b, c, 4, 4], code [b, text_in] -> logits [b, b], pictures by captions.

        With ``wrong`` [b, text_in] another column: each picture with its own wrong caption.
        """
        pictures = self.pictures(features)  # [b, dim]
        text = self._scaled(self.text(code))  # [b, text_in] -> [b, dim]
        logits = pictures @ text.T  # [b, b]
        if wrong is not None:
            own = (pictures * self._scaled(self.text(wrong))).sum(1, keepdim=True)  # [b, 1]
            logits = torch.cat([logits, own], 1)
        return logits / TEMPERATURE if self.cosine else logits

    def pictures(self, features: Tensor) -> Tensor:
        """W_i f [b, c, 4, 4] -> codes of pictures [b, dim], of length 1 if by cosine."""
        return self._scaled(self.image(features.flatten(1)))  # [b, 16 * c] -> [b, dim]

    def _scaled(self, code: Tensor) -> Tensor:
        return normalize(code) if self.cosine else code


def _text_projection(text_in: int, text_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(text_in, text_dim, bias=False),
        nn.BatchNorm1d(text_dim, track_running_stats=False),
        nn.LeakyReLU(SLOPE),
    )


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=False)


def _dcgan_init(module: nn.Module) -> None:
    """DCGAN's start: convolutions N(0, 0.02), norms' scales N(1, 0.02), biases zero."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]
