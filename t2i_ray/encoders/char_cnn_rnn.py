"""The char-CNN-RNN of Reed et al., trained together with the GAN."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from t2i_ray.config import CharCnnRnn
from t2i_ray.encoders.interface import Encoder

#: The 70 characters of Zhang et al., "Character-level Convolutional Networks for Text
#: Classification" (2015), with a blank for their new line. It has the hyphen twice; the first one
#: is never used.
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789-,;.!?:'\"/\\|_@#$%^&*~`+-=<>()[]{} "
PADDING, UNKNOWN = 0, len(ALPHABET) + 1
ROWS = {character: i for i, character in enumerate(ALPHABET, 1)}


class CharCnnRnnEncoder(Encoder):
    """Characters -> convolutions -> recurrent layer -> mean over time -> linear.

    Args:
        sizes: the fields of config.CharCnnRnn that shape the network, and max_characters.
    """

    trainable = True
    fingerprint = None

    def __init__(self, **sizes: Any) -> None:
        self._length = sizes.pop("max_characters")
        self._sizes = sizes
        self.dim = sizes["dim"]
        self.module = CharCnnRnnModule(**sizes)

    @classmethod
    def build(cls, config: CharCnnRnn) -> CharCnnRnnEncoder:
        """A new encoder."""
        names = ("channels", "kernel", "pools", "cell", "dim", "max_characters")
        return cls(**{name: getattr(config, name) for name in names})

    @classmethod
    def load(cls, description: dict[str, Any]) -> CharCnnRnnEncoder:
        """The encoder of ``describe()``, with fresh weights."""
        return cls(**{name: value for name, value in description.items() if name != "kind"})

    def rows(self, captions: Sequence[str]) -> np.ndarray:
        """uint8 [n, max_characters]: places in the alphabet, then zeros; 71 is none of it."""
        rows = np.zeros((len(captions), self._length), np.uint8)
        for row, caption in zip(rows, captions, strict=True):
            places = [ROWS.get(character, UNKNOWN) for character in _normal(caption)]
            row[: len(places)] = places[: self._length]
        return rows

    def describe(self) -> dict[str, Any]:
        """See Encoder."""
        return {"kind": "char_cnn_rnn", **self._sizes, "max_characters": self._length}

    def cut(self, length: int) -> None:
        """See Encoder."""
        self._length = length

    def words(self, caption: str) -> list[str]:
        """The caption's characters, blanks apart."""
        return [character for character in _normal(caption) if character != " "]

    def unreadable(self, caption: str) -> list[str]:
        """Its characters that are not in the alphabet."""
        return [character for character in self.words(caption) if character not in ROWS]


def _normal(caption: str) -> str:
    """In lower case, compatible forms joined, and any white space as one blank."""
    return " ".join(unicodedata.normalize("NFKC", caption).lower().split())


class CharCnnRnnModule(nn.Module):
    """Characters -> codes; padding changes nothing.

    Reed et al., "Learning Deep Representations of Fine-Grained Visual Descriptions" (2016),
    section 4: a temporal CNN over characters, an RNN over what it finds, the mean of the RNN's
    states as the caption's feature. Characters are one-hot over an alphabet of 70, and a caption
    has 201 of them at most. So far the paper. The default sizes are those of the authors'
    published code: three convolutions of 4 positions with 384, 512 and 256 channels, ReLU and
    max-pooling (3 of stride 3, again, 3 of stride 2), an RNN with ReLU as wide as the last
    convolution. Whether the paper's numbers came of these very sizes is not certain. For the GAN
    of 2016 there are weights whose names say 512 channels in the last convolution, and for birds
    a GRU over 18 positions, so no third pooling.

    The convolutions' first weights are as large as ReLU wants them (He et al. 2015); with torch's
    own, fresh codes differ between captions by a fifteenth of that, which a BatchNorm after them
    takes for none. Theirs, all uniform in +-0.08, are about as large at their sizes.

    Theirs reads zeros from a caption's end up to 201 characters, and takes the mean over those as
    well. Here what lies beyond a caption's end is zero at every layer, counts in no mean, and may
    be cut away; windows are as many as cover the caption. For 201 characters that is 66, 21 and 9
    positions after the poolings; theirs are 66, 21 and 8, without the last one.

    Args:
        channels: of the convolutions.
        kernel: positions that a convolution reads.
        pools: width and stride of the pooling after each convolution.
        cell: rnn, gru or lstm.
        dim: width of a code.
    """

    def __init__(
        self,
        channels: Sequence[int],
        kernel: int,
        pools: Sequence[Sequence[int]],
        cell: str,
        dim: int,
    ) -> None:
        super().__init__()
        self.kernel, self.pools = kernel, pools
        widths = [len(ALPHABET), *channels]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, kernel)
            for before, after in zip(widths, channels, strict=False)
        )
        self.recurrent: nn.RNNBase
        if cell == "rnn":
            self.recurrent = nn.RNN(widths[-1], widths[-1], nonlinearity="relu", batch_first=True)
        else:
            kind = {"gru": nn.GRU, "lstm": nn.LSTM}[cell]
            self.recurrent = kind(widths[-1], widths[-1], batch_first=True)
        self.project = nn.Linear(widths[-1], dim)
        for convolution in self.convolutions:
            nn.init.kaiming_uniform_(convolution.get_parameter("weight"), nonlinearity="relu")
            nn.init.zeros_(convolution.get_parameter("bias"))

    def forward(self, rows: Tensor) -> Tensor:
        """Places in the alphabet [b, L], padded with zeros at the end -> codes [b, dim]."""
        lengths = (rows != PADDING).sum(1)  # [b]
        rows = rows[:, : max(1, int(lengths.max()))].long()  # [b, l]: the longest of the batch
        one_hot = functional.one_hot(rows, UNKNOWN + 1)[..., 1:UNKNOWN]  # an unknown one: zeros
        x = one_hot.transpose(1, 2).to(self.project.weight.dtype)  # [b, 70, l]
        for convolution, (width, stride) in zip(self.convolutions, self.pools, strict=True):
            x, lengths = _reach(x, self.kernel, 1), _windows(lengths, self.kernel, 1)
            x = _inside(convolution(x).relu(), lengths)  # [b, c, l]
            x, lengths = _reach(x, width, stride), _windows(lengths, width, stride)
            # Padding is zero and ReLU's outputs are not below that: it changes no maximum.
            x = _inside(functional.max_pool1d(x, width, stride), lengths)
        states, _ = self.recurrent(x.transpose(1, 2))  # [b, l, c]
        total = _inside(states.transpose(1, 2), lengths).sum(2)  # [b, c]
        mean = total / lengths.clamp(min=1).unsqueeze(1)  # of no characters: zeros
        codes: Tensor = self.project(mean)  # [b, dim]
        return codes


def _windows(lengths: Tensor, width: int, stride: int) -> Tensor:
    """How many windows cover so many positions: none of none, at least one of any."""
    return torch.where(lengths > 0, (lengths - width).clamp(min=0).add(stride - 1) // stride + 1, 0)


def _reach(x: Tensor, width: int, stride: int) -> Tensor:
    """[b, c, l] with zeros at the end up to where the last window that covers it ends."""
    windows = -(-max(0, x.shape[2] - width) // stride) + 1
    return functional.pad(x, (0, (windows - 1) * stride + width - x.shape[2]))


def _inside(x: Tensor, lengths: Tensor) -> Tensor:
    """[b, c, l] with zeros beyond each one's length."""
    position = torch.arange(x.shape[2], device=x.device)
    return x * (position < lengths[:, None]).unsqueeze(1)
