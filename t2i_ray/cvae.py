"""A text-conditional variational autoencoder (Kingma and Welling 2014; Sohn et al. 2015).

The generator is the decoder: drawing needs noise and a caption, as in every family.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from t2i_ray.config import Config
from t2i_ray.family import Family, Piece, mark_last
from t2i_ray.learner import Learner
from t2i_ray.models import Recognition


class CVae(Family):
    """Maximises the evidence lower bound of pictures given their captions.

    ELBO = E_q(z|x,t) [log N(x; G(z, t), sigma^2)] - KL(q(z|x,t) || N(0, 1)), with q a normal
    distribution of diagonal covariance, sampled by z = mean + deviation * noise (Kingma and
    Welling 2014, equations 3, 10 and appendix B).
    """

    @classmethod
    def make_others(cls, config: Config, text_in: int) -> dict[str, nn.Module]:
        """The recognition network q(z | x, t)."""
        model = config.model
        return {
            "recognition": Recognition(model.noise_dim, text_in, model.text_dim, model.d_channels)
        }

    def make_learners(self, config: Config) -> dict[str, Learner]:
        """One for all: there is one loss."""
        optim = config.optim
        names = ("generator", "recognition", "encoder")
        rates = {
            "generator": optim.lr_g, "recognition": optim.lr_g, "encoder": optim.lr_encoder
        }  # fmt: skip
        self.learner = Learner({name: self.networks[name] for name in names}, rates, optim)
        return {"optimizer_g": self.learner}

    def update(self, pieces: Sequence[Piece], scale: float) -> list[dict[str, Tensor]]:
        """One step up the bound."""
        outcomes = []
        for last, piece in mark_last(pieces):
            code = self.encode_rows(piece.right)
            with self.autocast():
                mean, log_variance = self.networks["recognition"](piece.images, code)
            z = mean + (log_variance / 2).exp() * piece.noise
            loss, outcome = negative_elbo(
                piece.images, self.draw(z, code), mean, log_variance, self.model.sigma
            )
            self.learner.backward(loss * scale, last)
            outcomes.append(outcome)
        self.learner.update()
        return outcomes


def negative_elbo(
    images: Tensor, drawn: Tensor, mean: Tensor, log_variance: Tensor, sigma: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Minus the bound, in nats per number of the picture, and what to log.

    Args:
        images: [b, 3, S, S].
        drawn: the decoder's mean for each, likewise.
        mean: of q, [b, z].
        log_variance: likewise.
        sigma: standard deviation of a picture's number around the decoder's mean.
    """
    size = images[0].numel()
    error = (images - drawn).square().mean()  # per number
    log_likelihood = -error / (2 * sigma**2) - math.log(sigma) - math.log(2 * math.pi) / 2
    kl = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2  # per picture
    loss = kl / size - log_likelihood
    logged = {"g_loss": loss, "squared_error": error, "kl": kl}
    return loss, {name: torch.Tensor.detach(value) for name, value in logged.items()}
