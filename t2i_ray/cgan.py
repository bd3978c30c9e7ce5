"""A conditional GAN (Mirza and Osindero 2014): GAN-CLS without its mismatched pairs."""

from __future__ import annotations

from torch import Tensor

from t2i_ray.family import Piece
from t2i_ray.gan_cls import GanCls
from t2i_ray.losses import Scores


class CGan(GanCls):
    """The ablation: D is shown right pairs and generated ones, and nothing tells it to read.

    -log D(real, right) - log(1 - D(fake, right)): whether a picture is real and whether it fits
    its caption are one question only as far as the generator makes them so.
    """

    def _codes(self, piece: Piece) -> tuple[Tensor, Tensor]:
        """Nothing but train.interpolation and a hard alternative look at the wrong captions."""
        if self.train.interpolation or (self.train.matching and self.hard):
            return self.encode(piece)
        right = self.encode_rows(piece.right)
        return right, right

    def _scores(self, real: Tensor, fakes: Tensor, right: Tensor, wrong: Tensor) -> Scores:
        """Of two pairs."""
        del wrong
        return Scores(self._score(real, right), None, self._score(fakes, right))
