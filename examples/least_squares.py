"""A family of one's own: GAN-CLS with least squares (Mao et al. 2017) instead of likelihoods.

PYTHONPATH=examples t2i-ray train configs/demo.yaml model.family=least_squares:LeastSquares
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from t2i_ray.config import Config
from t2i_ray.family import Family, Piece, mark_last
from t2i_ray.learner import Learner
from t2i_ray.models import Discriminator


class LeastSquares(Family):
    """Scores of right pairs are drawn to 1, those of wrong and generated ones to 0."""

    @classmethod
    def make_others(cls, config: Config, text_in: int) -> dict[str, nn.Module]:
        """The generator and the encoder are there already."""
        model = config.model
        return {"discriminator": Discriminator(text_in, model.text_dim, model.d_channels)}

    def make_learners(self, config: Config) -> dict[str, Learner]:
        """Who is trained together, and how fast."""
        optim, networks = config.optim, self.networks
        self.learner_g = Learner({"generator": self.generator}, {"generator": optim.lr_g}, optim)
        self.learner_d = Learner(
            {"discriminator": networks["discriminator"], "encoder": self.encoder},
            {"discriminator": optim.lr_d, "encoder": optim.lr_encoder},
            optim,
        )
        return {"optimizer_g": self.learner_g, "optimizer_d": self.learner_d}

    def update(self, pieces: Sequence[Piece], scale: float) -> list[dict[str, Tensor]]:
        """Both from the same scores; a learner takes only the gradient of what it trains."""
        discriminator = self.networks["discriminator"]
        assert isinstance(discriminator, Discriminator)
        outcomes = []
        for last, piece in mark_last(pieces):
            right, wrong = self.encode(piece)
            with self.autocast():
                real = discriminator.features(piece.images)
                fake = discriminator.features(self.draw(piece.noise, right.detach()))
                of_right = discriminator.score(real, right)
                of_wrong = discriminator.score(real, wrong)
                of_fake = discriminator.score(fake, right.detach())
            d_loss = (of_right - 1).square().mean()
            d_loss = d_loss + (of_wrong.square().mean() + of_fake.square().mean()) / 2
            g_loss = (of_fake - 1).square().mean()
            self.learner_d.backward(d_loss * scale, last, keep=True)
            self.learner_g.backward(g_loss * scale, last)
            outcomes.append({"d_loss": d_loss.detach(), "g_loss": g_loss.detach()})
        self.learner_d.update()
        self.learner_g.update()
        return outcomes
