"""What every family of models has in common: networks, averages, and how they are used and saved.

An objective says which networks there are, which learner trains which, and how one update goes; a
family is one that draws (`gan_cls.py`). Pure torch: no files, no Ray.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from t2i_ray.batch_norm import estimate_statistics, reserve_statistics
from t2i_ray.config import Config
from t2i_ray.learner import Learner
from t2i_ray.models import Generator

State = dict[str, dict[str, Tensor]]


class Piece(NamedTuple):
    """One micro-batch of b pictures with their captions."""

    images: Tensor  # [b, 3, S, S] in [-1, 1]
    right: Tensor  # [b, ...] encoder rows of a caption of the picture
    wrong: Tensor  # [b, ...] encoder rows of a caption of another picture
    noise: Tensor  # [b, z]
    chance: Tensor | None = None  # [b, CHANCES] uniform in [0, 1), if pictures are augmented
    classes: Tensor | None = None  # [b] int64, equal for pictures of one class; None: all differ


class Objective(ABC):
    """Networks that learn with the encoder, their averages (EMA) and their optimisers.

    Args:
        config: the run; `model`, `optim`, `train` and `seed` are read.
        encoder: encoder rows [b, ...] -> codes [b, text_in]; trained wherever its parameters
            require gradients. Its first weights must be the same on all workers.
        text_in: width of a code.
        device: where to compute.
        words: how many values a row's ids have; 0: rows are finished codes.

    Attributes:
        encoder: as it is trained.
        networks: all by name, those that are averaged with the suffix ``_ema`` too.
        pair: what ``train.pretrained_matching`` asks for, given by whoever makes the objective;
            neither trained nor part of the state. Pictures [b, 3, S, S], rows [b, ...] of right
            captions, and of wrong ones or None, to logits [b, b], or then [b, b + 1].
        learners: by the names under which their state is saved.
    """

    pair: nn.Module | None = None

    def __init__(
        self,
        config: Config,
        encoder: nn.Module,
        text_in: int,
        device: str | torch.device = "cpu",
        words: int = 0,
    ):
        self.model, self.train, self.words = config.model, config.train, words
        self.device = torch.device(device)
        self.dtype = torch.float64 if self.train.precision == "float64" else torch.float32
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            made = self.make_networks(config, text_in)
        self.networks = {name: net.to(self.device, self.dtype) for name, net in made.items()}
        self.encoder = encoder.to(self.device, self.dtype)
        if any(parameter.requires_grad for parameter in self.encoder.parameters()):
            self.encoder_ema = copy.deepcopy(self.encoder).requires_grad_(False).eval()
            self.networks["encoder"] = self.encoder
        else:  # it is its own average: a text model is not to be held and saved twice
            self.encoder_ema = self.encoder.eval()
        self.networks["encoder_ema"] = self.encoder_ema
        self.learners = self.make_learners(config)

    # --------------------------------------------------------------- what an objective says

    @abstractmethod
    def make_networks(self, config: Config, text_in: int) -> dict[str, nn.Module]:
        """The networks beside the encoder, by name."""

    @abstractmethod
    def make_learners(self, config: Config) -> dict[str, Learner]:
        """Which optimiser trains which of `networks`."""

    @abstractmethod
    def update(self, pieces: Sequence[Piece], scale: float) -> list[dict[str, Tensor]]:
        """One update of all that is trained; for each piece what to log, 0-dim and detached.

        Call each learner's ``backward`` once a piece, with the piece's mean loss times ``scale``,
        and then its ``update``.
        """

    def measure(self, pieces: Iterable[Piece]) -> dict[str, float]:  # noqa: ARG002
        """What it can say of pieces that it was not trained on, by the averages; names to means."""
        return {}

    # ---------------------------------------------------------------------------- the step

    def distribute(self) -> None:
        """Average gradients over the workers of the default process group, if there is one."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for learner in self.learners.values():
                learner.distribute()

    def step(
        self, pieces: Sequence[Piece], step: int, micro_batches: int, world: int
    ) -> dict[str, Tensor]:
        """One update from one batch.

        Args:
            pieces: the pieces of the batch that this worker computes, at least one.
            step: number of updates made before, which sets the learning rate.
            micro_batches: pieces of the whole batch, those of all workers together.
            world: number of workers.

        Returns:
            What the update logs, 0-dim and detached, scaled so that the sum over the workers is
            the mean over the batch.
        """
        for learner in self.learners.values():
            learner.begin(step, self.train.steps)
        # DDP averages over workers, whose shares may differ: world / micro_batches for each piece
        # makes that average the mean over all pieces.
        outcomes = self.update([self.place(piece) for piece in pieces], world / micro_batches)
        self._average(step)
        return {
            name: torch.stack([outcome[name] for outcome in outcomes]).sum() / micro_batches
            for name in outcomes[0]
        }

    def gradient_norms(self, world: int) -> dict[str, Tensor]:
        """Length of each learner's last gradient, which is the same on all workers.

        ``world`` is how many there are: the sum over them is the length. Names are grad_g for the
        learner optimizer_g, and so on.
        """
        return {
            f"grad_{name}".replace("grad_optimizer", "grad"): learner.gradient_norm() / world
            for name, learner in self.learners.items()
        }

    def encode(self, piece: Piece) -> tuple[Tensor, Tensor]:
        """Codes [b, text_in] of the right and of the wrong captions, in one call."""
        right, wrong = self.encode_rows(torch.cat([piece.right, piece.wrong])).chunk(2)
        return right, wrong

    def encode_rows(self, rows: Tensor) -> Tensor:
        """Encoder rows [n, ...] -> codes [n, text_in], by the encoder that is trained."""
        with self.autocast():
            codes: Tensor = self.encoder(rows)
        return codes

    def autocast(self) -> AbstractContextManager[object]:
        """The arithmetic of networks' forwards."""
        if self.train.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def _average(self, step: int) -> None:
        """EMA of what has one; its first steps are shorter, to forget the start."""
        decay = min(self.model.ema, (1 + step) / (10 + step))
        networks = [
            (averaged, self.networks[name.removesuffix("_ema")])
            for name, averaged in self.networks.items()
            if name.endswith("_ema") and name.removesuffix("_ema") in self.networks
        ]
        pairs = [
            (average.detach(), parameter.detach())
            for averaged, network in networks
            for average, parameter in zip(averaged.parameters(), network.parameters(), strict=True)
            if parameter.requires_grad  # others stay as they were copied
        ]
        torch._foreach_lerp_([a for a, _ in pairs], [p for _, p in pairs], 1 - decay)

    def place(self, piece: Piece) -> Piece:
        """A piece on our device; floating-point rows and pictures in our arithmetic."""

        def place(x: Tensor) -> Tensor:
            kind = self.dtype if x.is_floating_point() else x.dtype
            return x.to(self.device, kind, non_blocking=True)

        images, right, wrong, noise = map(place, piece[:4])
        chance = None if piece.chance is None else place(piece.chance)
        classes = None if piece.classes is None else place(piece.classes)
        images = images.contiguous(memory_format=torch.channels_last)
        return Piece(images, right, wrong, noise, chance, classes)

    # --------------------------------------------------------------------------------- state

    def state(self, *, copy: bool = True) -> State:
        """All tensors needed to go on bit for bit: part -> name -> a copy in main memory.

        Without ``copy`` they are the very tensors that the next step changes. Parts are the
        networks' state dicts and the optimisers' tensors, see `Learner.state`.
        """
        parts = {name: dict(network.state_dict()) for name, network in self.networks.items()}
        parts |= {name: learner.state() for name, learner in self.learners.items()}
        if not copy:
            return parts
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
        for part, tensors in state.items():
            if part in self.networks:
                self.networks[part].load_state_dict(tensors)
            else:
                self.learners[part].load_state(tensors)


class Family(Objective):
    """An objective with a generator, of which an average is kept, and which draws.

    Attributes:
        generator: as it is trained.
    """

    generator: nn.Module
    generator_ema: nn.Module

    def make_networks(self, config: Config, text_in: int) -> dict[str, nn.Module]:
        """The generator with its average, and the others."""
        self.generator = self.make_generator(config, text_in)
        others = self.make_others(config, text_in)
        self.generator_ema = copy.deepcopy(self.generator).requires_grad_(False).eval()
        reserve_statistics(self.generator_ema)
        return {"generator": self.generator, **others, "generator_ema": self.generator_ema}

    # ------------------------------------------------------------------- what a family says

    @classmethod
    def make_generator(cls, config: Config, text_in: int) -> nn.Module:
        """The network that draws: noise [b, z], codes [b, text_in] -> pictures [b, 3, S, S]."""
        model = config.model
        return Generator(model.noise_dim, text_in, model.text_dim, model.g_channels)

    @classmethod
    def make_others(cls, config: Config, text_in: int) -> dict[str, nn.Module]:  # noqa: ARG003
        """Further networks by name, such as a discriminator."""
        return {}

    def draw(self, noise: Tensor, code: Tensor) -> Tensor:
        """Noise [b, z], codes [b, text_in] -> pictures [b, 3, S, S], by the trained generator."""
        with self.autocast():
            images: Tensor = self.generator(noise, code)
        return images

    # ---------------------------------------------------------------------- using the result

    @torch.no_grad()
    def refresh_ema_statistics(self, pieces: Iterable[Piece]) -> None:
        """Fix the averaged generator's BatchNorm statistics from these pieces' noise and captions.

        Call it before `sample` and before `state`: averaged weights have statistics of their own.
        """
        placed = (self.place(piece) for piece in pieces)
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


def mark_last(pieces: Sequence[Piece]) -> list[tuple[bool, Piece]]:
    """Each piece with whether it is the last one, as `Learner.backward` wants to know."""
    return [(i == len(pieces) - 1, piece) for i, piece in enumerate(pieces)]
