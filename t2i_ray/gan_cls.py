"""GAN-CLS: Algorithm 1 of Reed et al., "Generative Adversarial Text to Image Synthesis", 2016.

One update of the discriminator (with the text encoder, if that is trained) and one of the
generator, from the whole batch's gradient. Options that the paper has not are off by default.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn, set_grad_enabled

from t2i_ray.augment import augment
from t2i_ray.config import Config
from t2i_ray.family import Family, Piece, mark_last
from t2i_ray.learner import Learner
from t2i_ray.losses import (
    Scores,
    discriminator_loss,
    generator_loss,
    matching_loss,
    matching_penalty,
    r1_penalty,
)
from t2i_ray.models import Discriminator


class GanCls(Family):
    """Generator against a discriminator that sees right, wrong and generated pairs."""

    discriminator: Discriminator

    @classmethod
    def make_others(cls, config: Config, text_in: int) -> dict[str, nn.Module]:
        """The discriminator."""
        model = config.model
        discriminator = Discriminator(
            text_in,
            model.text_dim,
            model.d_channels,
            matching=config.train.matching > 0,
            spectral=model.spectral_norm,
        )
        return {"discriminator": discriminator}

    def make_learners(self, config: Config) -> dict[str, Learner]:
        """One for the generator; one for the discriminator and the encoder."""
        optim, discriminator = config.optim, self.networks["discriminator"]
        assert isinstance(discriminator, Discriminator)
        self.discriminator = discriminator
        # Those of any other class are as easy to tell as the other captions of the piece.
        self.hard = config.data.wrong != "other_class"
        self.learner_g = Learner({"generator": self.generator}, {"generator": optim.lr_g}, optim)
        self.learner_d = Learner(
            {"discriminator": discriminator, "encoder": self.encoder},
            {"discriminator": optim.lr_d, "encoder": optim.lr_encoder},
            optim,
        )
        if self.train.compile:
            for part in (self.generator, discriminator.trunk, discriminator.head):
                part.compile()
        return {"optimizer_g": self.learner_g, "optimizer_d": self.learner_d}

    def update(self, pieces: Sequence[Piece], scale: float) -> list[dict[str, Tensor]]:
        """D and G, one after the other or both from the same scores."""
        self.discriminator.iterate_spectral()
        if self.train.update == "simultaneous":
            return self._simultaneous(pieces, scale)
        return self._alternating(pieces, scale)

    def _alternating(self, pieces: Sequence[Piece], scale: float) -> list[dict[str, Tensor]]:
        """Update D, then G against the new D: the habit of most code."""
        outcomes, fakes, codes = [], [], []
        for last, piece in mark_last(pieces):
            right, wrong = self._codes(piece)
            codes.append((right.detach(), wrong.detach()))
            with set_grad_enabled(not self.train.recompute_fakes):
                fakes.append(self.draw(piece.noise, right.detach()))
            features = self._look(fakes[-1].detach(), piece)
            loss, _, outcome = self._critic_loss(piece, features, right, wrong)
            self.learner_d.backward(loss * scale, last)
            outcomes.append(outcome)
        self.learner_d.update()

        self.discriminator.requires_grad_(False)  # so that no gradient of D is computed
        for i, (last, piece) in enumerate(mark_last(pieces)):
            right, wrong = codes[i]
            fake, fakes[i] = fakes[i], fakes[i].detach()  # its graph is freed as we go
            if self.train.recompute_fakes:
                fake = self.draw(piece.noise, right)
            features = self._look(fake, piece)
            score = self._score(features, right)
            loss, outcome = self._generator_loss(piece, fake, features, score, right, wrong)
            self.learner_g.backward(loss * scale, last)
            outcomes[i] |= outcome
        self.discriminator.requires_grad_(True)
        self.learner_g.update()
        return outcomes

    def _simultaneous(self, pieces: Sequence[Piece], scale: float) -> list[dict[str, Tensor]]:
        """Update D and G from the same scores, as Algorithm 1 is written."""
        outcomes = []
        for last, piece in mark_last(pieces):
            right, wrong = self._codes(piece)
            fake = self.draw(piece.noise, right.detach())
            features = self._look(fake, piece)
            loss_d, score, outcome_d = self._critic_loss(piece, features, right, wrong)
            loss_g, outcome_g = self._generator_loss(
                piece, fake, features, score, right.detach(), wrong.detach()
            )
            self.learner_d.backward(loss_d * scale, last, keep=True)
            self.learner_g.backward(loss_g * scale, last)
            outcomes.append(outcome_d | outcome_g)
        self.learner_d.update()
        self.learner_g.update()
        return outcomes

    def _codes(self, piece: Piece) -> tuple[Tensor, Tensor]:
        """Codes [b, text_in] of the right and of the wrong captions."""
        return self.encode(piece)

    # ------------------------------------------------------------------ what D thinks of it

    def _look(self, fakes: Tensor, piece: Piece) -> Tensor:
        """Generated pictures [b, 3, S, S] -> features [b, c, 4, 4], as D is shown them."""
        return self._features(augment(fakes, piece.chance, self.train.augment, generated=True))

    def _features(self, images: Tensor) -> Tensor:
        """Pictures [b, 3, S, S] -> features [b, c, 4, 4]."""
        with self.autocast():
            return self.discriminator.features(images)

    def _score(self, features: Tensor, codes: Tensor) -> Tensor:
        """Features [b, c, 4, 4], codes [b, text_in] -> scores [b]."""
        with self.autocast():
            return self.discriminator.score(features, codes)

    def _match(self, features: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
        """Features [b, c, 4, 4], codes [b, text_in] -> loss."""
        with self.autocast():
            logits = self.discriminator.match(features, right, wrong if self.hard else None)
        return matching_loss(logits)

    def _scores(self, real: Tensor, fakes: Tensor, right: Tensor, wrong: Tensor) -> Scores:
        """Of the three pairs; `real` and `fakes` are features."""
        return Scores(self._score(real, right), self._score(real, wrong), self._score(fakes, right))

    # ----------------------------------------------------------------------------- the losses

    def _critic_loss(
        self, piece: Piece, fakes: Tensor, right: Tensor, wrong: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """D's loss, the fakes' scores, and what to log; `fakes` are features already."""
        train = self.train
        images = augment(piece.images, piece.chance, train.augment)
        if train.r1 or train.matching_penalty:
            images = images.requires_grad_()
            right = right if right.requires_grad else right.requires_grad_()
        real = self._features(images)  # once, for both captions
        scores = self._scores(real, fakes, right, wrong)
        loss, outcome = discriminator_loss(scores, train.loss)
        if train.matching:
            match = self._match(real, right, wrong)
            loss = loss + train.matching * match
            outcome["d_match"] = match.detach()
        if train.r1:
            penalty = r1_penalty(scores.real, images)
            loss = loss + train.r1 / 2 * penalty
            outcome["d_r1"] = penalty.detach()
        if train.matching_penalty:
            penalty = matching_penalty(scores.real, images, right)
            loss = loss + train.matching_penalty * penalty
            outcome["d_matching_penalty"] = penalty.detach()
        return loss, scores.fake, outcome

    def _generator_loss(
        self,
        piece: Piece,
        drawn: Tensor,
        fakes: Tensor,
        score: Tensor,
        right: Tensor,
        wrong: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """G's loss and what to log; `fakes` are D's features of what was `drawn`."""
        train = self.train
        loss = generator_loss(score, train.loss)
        outcome = {"g_loss": loss.detach()}
        if train.matching:
            match = self._match(fakes, right, wrong)
            loss = loss + train.matching * match
            outcome["g_match"] = match.detach()
        if self.pair is not None:
            with self.autocast():
                logits = self.pair(drawn, piece.right, piece.wrong if self.hard else None)
            match = matching_loss(logits)
            loss = loss + train.pretrained_matching * match
            outcome["g_pretrained_match"] = match.detach()
        if train.interpolation:  # GAN-CLS-INT, equation 6 with beta = 1/2
            between = (right + wrong) / 2
            features = self._look(self.draw(piece.noise, between), piece)
            extra = generator_loss(self._score(features, between), train.loss)
            loss = loss + train.interpolation * extra
            outcome["g_interpolated"] = extra.detach()
        return loss, outcome
