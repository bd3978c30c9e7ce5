"""GAN-CLS: Algorithm 1 of Reed et al., "Generative Adversarial Text to Image Synthesis", 2016.

Pure torch: no files, no Ray. A step is given the pieces (micro-batches) of one batch that this
worker has to do, and makes one update of the discriminator (with the text encoder, if that is
trained) and one of the generator, from the whole batch's gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from t2i_ray.config import Config
from t2i_ray.learner import Learner
from t2i_ray.losses import Scores, discriminator_loss, generator_loss, matching_loss
from t2i_ray.models import Discriminator, Generator, estimate_statistics, reserve_statistics

State = dict[str, dict[str, Tensor]]


class Piece(NamedTuple):
    """One micro-batch of b pictures with their captions."""

    images: Tensor  # [b, 3, S, S] in [-1, 1]
    right: Tensor  # [b, ...] encoder rows of a caption of the picture
    wrong: Tensor  # [b, ...] encoder rows of a caption of another picture
    noise: Tensor  # [b, z]


class GanCls:
    """Both networks, the encoder, their averages (EMA) and optimisers.

    Args:
        config: the run; `model`, `optim`, `train` and `seed` are read.
        encoder: encoder rows [b, ...] -> codes [b, text_in]; trained with the discriminator
            wherever its parameters require gradients. Its initial weights must be the same on
            all workers.
        text_in: width of a code.
        device: where to compute.
    """

    def __init__(
        self, config: Config, encoder: nn.Module, text_in: int, device: str | torch.device = "cpu"
    ):
        model, optim, self.train = config.model, config.optim, config.train
        self.decay = model.ema
        self.device = torch.device(device)
        self.dtype = torch.float64 if self.train.precision == "float64" else torch.float32
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            generator = Generator(model.noise_dim, text_in, model.text_dim, model.g_channels)
            discriminator = Discriminator(
                text_in, model.text_dim, model.d_channels, matching=self.train.matching > 0
            )
        self.generator = generator.to(self.device, self.dtype)
        self.discriminator = discriminator.to(self.device, self.dtype)
        self.encoder = encoder.to(self.device, self.dtype)
        self.generator_ema = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.encoder_ema = copy.deepcopy(self.encoder).requires_grad_(False).eval()
        reserve_statistics(self.generator_ema)

        self.learner_g = Learner({"generator": self.generator}, {"generator": optim.lr_g}, optim)
        self.learner_d = Learner(
            {"discriminator": self.discriminator, "encoder": self.encoder},
            {"discriminator": optim.lr_d, "encoder": optim.lr_encoder},
            optim,
        )
        if self.train.compile:
            for part in (self.generator, self.discriminator.trunk, self.discriminator.head):
                part.compile()

    def distribute(self) -> None:
        """Average gradients over the workers of the default process group, if there is one."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self.learner_g.distribute()
            self.learner_d.distribute()

    # ---------------------------------------------------------------------------- the step

    def step(
        self, pieces: Sequence[Piece], step: int, micro_batches: int, world: int
    ) -> dict[str, Tensor]:
        """One update of both networks from one batch.

        Args:
            pieces: the pieces of the batch that this worker computes, at least one.
            step: number of updates made before, which sets the learning rate.
            micro_batches: pieces of the whole batch, those of all workers together.
            world: number of workers.

        Returns:
            Losses and shares of right answers, 0-dim and detached, scaled so that their sum
            over the workers is the mean over the batch.
        """
        self.learner_d.begin(step, self.train.steps)
        self.learner_g.begin(step, self.train.steps)
        update = self._simultaneous if self.train.update == "simultaneous" else self._alternating
        # DDP averages over workers, whose shares may differ: world / micro_batches for each piece
        # makes that average the mean over all pieces.
        outcomes = update([self._place(piece) for piece in pieces], world / micro_batches)
        self._average(step)
        return {
            name: torch.stack([outcome[name] for outcome in outcomes]).sum() / micro_batches
            for name in outcomes[0]
        }

    def _alternating(self, pieces: Sequence[Piece], scale: float) -> list[dict[str, Tensor]]:
        """Update D, then G against the new D: the habit of most code."""
        outcomes, fakes, codes = [], [], []
        for last, piece in _mark_last(pieces):
            right, wrong = self._encode(piece)
            codes.append(right.detach())
            with torch.set_grad_enabled(not self.train.recompute_fakes):
                fakes.append(self._draw(piece.noise, codes[-1]))
            features = self._features(fakes[-1].detach())
            loss, _, outcome = self._critic_loss(piece.images, features, right, wrong)
            self.learner_d.backward(loss * scale, last)
            outcomes.append(outcome)
        self.learner_d.update()

        self.discriminator.requires_grad_(False)  # so that no gradient of D is computed
        for i, (last, piece) in enumerate(_mark_last(pieces)):
            fake, fakes[i] = fakes[i], fakes[i].detach()  # its graph is freed as we go
            if self.train.recompute_fakes:
                fake = self._draw(piece.noise, codes[i])
            features = self._features(fake)
            loss, outcome = self._generator_loss(
                features, self._score(features, codes[i]), codes[i]
            )
            self.learner_g.backward(loss * scale, last)
            outcomes[i] |= outcome
        self.discriminator.requires_grad_(True)
        self.learner_g.update()
        return outcomes

    def _simultaneous(self, pieces: Sequence[Piece], scale: float) -> list[dict[str, Tensor]]:
        """Update D and G from the same scores, as Algorithm 1 is written."""
        outcomes = []
        for last, piece in _mark_last(pieces):
            right, wrong = self._encode(piece)
            fake = self._draw(piece.noise, right.detach())
            features = self._features(fake)
            loss_d, score, outcome_d = self._critic_loss(piece.images, features, right, wrong)
            loss_g, outcome_g = self._generator_loss(features, score, right.detach())
            self.learner_d.backward(loss_d * scale, last, keep=True)
            self.learner_g.backward(loss_g * scale, last)
            outcomes.append(outcome_d | outcome_g)
        self.learner_d.update()
        self.learner_g.update()
        return outcomes

    def _encode(self, piece: Piece) -> tuple[Tensor, Tensor]:
        """Codes [b, text_in] of the right and of the wrong captions, in one call."""
        with self._autocast():
            right, wrong = self.encoder(torch.cat([piece.right, piece.wrong])).chunk(2)
        return right, wrong

    def _draw(self, noise: Tensor, code: Tensor) -> Tensor:
        """Pictures [b, 3, S, S]."""
        with self._autocast():
            fakes: Tensor = self.generator(noise, code)
        return fakes

    def _features(self, images: Tensor) -> Tensor:
        """Pictures [b, 3, S, S] -> features [b, c, 4, 4]."""
        with self._autocast():
            return self.discriminator.features(images)

    def _score(self, features: Tensor, codes: Tensor) -> Tensor:
        """Features [b, c, 4, 4], codes [b, text_in] -> scores [b]."""
        with self._autocast():
            return self.discriminator.score(features, codes)

    def _match(self, features: Tensor, codes: Tensor) -> Tensor:
        """Features [b, c, 4, 4], codes [b, text_in] -> loss."""
        with self._autocast():
            logits = self.discriminator.match(features, codes)
        return matching_loss(logits)

    def _critic_loss(
        self, images: Tensor, fakes: Tensor, right: Tensor, wrong: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """D's loss, the fakes' scores, and what to log; `fakes` are features already."""
        real = self._features(images)  # once, for both captions
        scores = Scores(
            self._score(real, right), self._score(real, wrong), self._score(fakes, right)
        )
        loss, outcome = discriminator_loss(scores)
        if self.train.matching:
            match = self._match(real, right)
            loss = loss + self.train.matching * match
            outcome["d_match"] = match.detach()
        return loss, scores.fake, outcome

    def _generator_loss(
        self, fakes: Tensor, score: Tensor, codes: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """G's loss and what to log; `fakes` are features."""
        loss = generator_loss(score)
        outcome = {"g_loss": loss.detach()}
        if self.train.matching:
            match = self._match(fakes, codes)
            loss = loss + self.train.matching * match
            outcome["g_match"] = match.detach()
        return loss, outcome

    def _average(self, step: int) -> None:
        """EMA of generator and encoder; its first steps are shorter, to forget the start."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = [(self.generator_ema, self.generator), (self.encoder_ema, self.encoder)]
        ema = [p.detach() for average, _ in pairs for p in average.parameters()]
        now = [p.detach() for _, network in pairs for p in network.parameters()]
        torch._foreach_lerp_(ema, now, 1 - decay)

    def _place(self, piece: Piece) -> Piece:
        """The piece on our device; floating-point rows and pictures in our arithmetic."""
        images, *others = (
            x.to(self.device, self.dtype if x.is_floating_point() else x.dtype, non_blocking=True)
            for x in piece
        )
        return Piece(images.contiguous(memory_format=torch.channels_last), *others)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.train.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    # ---------------------------------------------------------------------- using the result

    @torch.no_grad()
    def refresh_ema_statistics(self, pieces: Iterable[Piece]) -> None:
        """Fix the averaged generator's BatchNorm statistics from these pieces' noise and captions.

        Call it before `sample` and before `state`: averaged weights have statistics of their own.
        """
        placed = (self._place(piece) for piece in pieces)
        batches = [(piece.noise, self.encoder_ema(piece.right)) for piece in placed]
        estimate_statistics(self.generator_ema, batches)

    @torch.no_grad()
    def sample(self, noise: Tensor, rows: Tensor) -> Tensor:
        """Noise [n, z], encoder rows [n, ...] -> pictures [n, 3, S, S] in [-1, 1], by the EMA."""
        if rows.is_floating_point():
            rows = rows.to(dtype=self.dtype)
        codes = self.encoder_ema(rows.to(self.device))
        images: Tensor = self.generator_ema(noise.to(self.device, self.dtype), codes)
        return images

    # --------------------------------------------------------------------------------- state

    def _networks(self) -> dict[str, nn.Module]:
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "encoder": self.encoder,
            "generator_ema": self.generator_ema,
            "encoder_ema": self.encoder_ema,
        }

    def _learners(self) -> dict[str, Learner]:
        return {"optimizer_g": self.learner_g, "optimizer_d": self.learner_d}

    def state(self) -> State:
        """All tensors needed to go on bit for bit: part -> name -> a copy in main memory.

        Parts are the networks' state dicts and the optimisers' tensors, see `Learner.state`.
        """
        parts = {name: dict(network.state_dict()) for name, network in self._networks().items()}
        parts |= {name: learner.state() for name, learner in self._learners().items()}
        return {
            part: {
                name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, value in tensors.items()
            }
            for part, tensors in parts.items()
        }

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over the parts given, e.g. all of `state`, or only the averaged networks.

        Raises:
            KeyError, RuntimeError: a part or tensor is unknown, missing or of another shape.
        """
        networks, learners = self._networks(), self._learners()
        for part, tensors in state.items():
            if part in networks:
                networks[part].load_state_dict(tensors)
            else:
                learners[part].load_state(tensors)


def _mark_last(pieces: Sequence[Piece]) -> list[tuple[bool, Piece]]:
    return [(i == len(pieces) - 1, piece) for i, piece in enumerate(pieces)]
