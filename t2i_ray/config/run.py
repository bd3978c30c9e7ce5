"""What a run's YAML may say: its sections, and what one of them asks of another."""

from __future__ import annotations

from pydantic import model_validator

from t2i_ray.config.data import Data
from t2i_ray.config.encoders import EncoderConfig, Recurrent
from t2i_ray.config.fields import Section, identity, operational
from t2i_ray.config.guard import Guard
from t2i_ray.config.operation import Checkpoint, Cluster, Evaluation, Storage, Tracking
from t2i_ray.config.training import PRETRAINING, Model, Optim, Train


class Config(Section):
    """One run."""

    name: str = operational(
        doc="The run's name; with its identity's hash it is the run.",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
    )
    seed: int = identity(0, doc="Seed of everything random in training.", ge=0, lt=2**31)
    data: Data = Data()
    encoder: EncoderConfig = Recurrent()
    model: Model = Model()
    optim: Optim = Optim()
    train: Train
    guard: Guard = Guard()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    storage: Storage = Storage()
    tracking: Tracking = Tracking()
    cluster: Cluster = Cluster()

    @property
    def aside(self) -> int:
        """CPU cores of the task that measures while training goes on; 0: rank 0 measures."""
        return self.evaluation.aside if self.evaluation.every and self.model.draws else 0

    @model_validator(mode="after")
    def _check(self) -> Config:
        if not self.model.draws and self.encoder.frozen:
            raise ValueError(
                f"encoder.train=frozen with model.family={self.model.family}: nothing would be "
                "pretrained; use encoder.train=tuned"
            )
        if self.data.wrong == "one_word" and self.encoder.frozen:
            raise ValueError(
                "data.wrong=one_word with a frozen encoder: it reads every caption once, before "
                "training, and changed ones are new each time; use data.wrong=hard, or "
                "encoder.train=tuned"
            )
        if self.train.pretrained_matching:
            self._check_pair()
        for field in ("g_channels", "d_channels"):
            size = 4 * 2 ** len(getattr(self.model, field))
            if size != self.data.image_size:
                raise ValueError(
                    f"model.{field} has {len(getattr(self.model, field))} entries, which makes "
                    f"{size}x{size} pictures, but data.image_size={self.data.image_size}; give it "
                    f"one entry per doubling from 4 pixels, or set data.image_size={size}"
                )
        if self.cluster.workers > self.train.micro_batches:
            raise ValueError(
                f"cluster.workers={self.cluster.workers} cannot share "
                f"train.micro_batches={self.train.micro_batches}: each needs at least one; set "
                f"train.micro_batches to {self.cluster.workers} or more, or fewer workers"
            )
        if self.aside and self.guard.action == "rollback":
            raise ValueError(
                f"guard.action=rollback with evaluation.aside={self.aside}: aside, checkpoints are "
                "measured that the run may yet go back from; set evaluation.aside=0, or "
                "guard.action=stop"
            )
        if self.aside and self.checkpoint.best:
            raise ValueError(
                f"checkpoint.best={self.checkpoint.best} with evaluation.aside={self.aside}: the "
                "best is chosen when a checkpoint is saved, and aside it is measured only then; "
                "set evaluation.aside=0, or leave checkpoint.best out"
            )
        return self

    def _check_pair(self) -> None:
        asked = f"train.pretrained_matching={self.train.pretrained_matching:g}"
        if self.model.family in ("cvae", *PRETRAINING):
            raise ValueError(
                f"{asked} with model.family={self.model.family}: it is a loss of a GAN's "
                "generator; leave it out, or use gan_cls or cgan"
            )
        if not self.encoder.init_from:
            raise ValueError(
                f"{asked}: by which pair? give encoder.init_from as 't2i-ray pretrain-encoder "
                "--objective matching' prints it"
            )
