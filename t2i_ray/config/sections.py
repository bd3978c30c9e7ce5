"""What a run's YAML may say: its sections and fields, with their defaults and limits."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from t2i_ray.config.data import Data
from t2i_ray.config.encoders import EncoderConfig, Recurrent
from t2i_ray.config.fields import CLASS, Section, identity, operational
from t2i_ray.config.guard import Guard
from t2i_ray.config.measures import INCEPTION, MATCHING, WHILE_TRAINING, Group, larger_is_better
from t2i_ray.config.profile import profiled

FAMILIES = ("gan_cls", "cgan", "cvae")
#: What an encoder alone is pretrained on.
PRETRAINING = ("matching", "autoencode")


class Model(Section):
    """The networks (Reed et al. 2016, section 4.1; DCGAN's layers)."""

    family: str = identity(
        "gan_cls",
        doc="Which training algorithm: gan_cls, cgan (no mismatched pairs), cvae, or your own as "
        "my_package.my_file:MyFamily. matching and autoencode pretrain the encoder alone.",
        pattern=f"^({'|'.join([*FAMILIES, *PRETRAINING, CLASS])})$",
    )
    noise_dim: int = identity(100, doc="Width of the noise z.", ge=1)
    text_dim: int = identity(128, doc="Width to which both networks project a caption.", ge=1)
    g_channels: list[int] = identity(
        [512, 256, 128, 64],
        doc="Generator's channels from 4x4 upwards; the image is 4 * 2**len pixels wide.",
        min_length=1,
    )
    d_channels: list[int] = identity(
        [64, 128, 256, 512],
        doc="Discriminator's channels from the image down to 4x4.",
        min_length=1,
    )
    spectral_norm: bool = identity(
        False, doc="Spectral normalisation of the discriminator (Miyato et al. 2018)."
    )
    sigma: float = identity(
        0.3, doc="cvae: standard deviation of a picture's numbers around what is drawn.", gt=0
    )
    ema: float = identity(
        0.999, doc="Decay per step of the averaged generator (and encoder); 0: none.", ge=0, lt=1
    )

    @property
    def draws(self) -> bool:
        """Whether there is a generator; else an encoder is pretrained alone."""
        return self.family not in PRETRAINING


class Optim(Section):
    """Adam for every network, one learning-rate schedule for all."""

    lr_g: float = identity(2e-4, doc="Generator's learning rate.", gt=0)
    lr_d: float = identity(2e-4, doc="Discriminator's learning rate.", gt=0)
    lr_encoder: float = identity(2e-4, doc="Learning rate of a trained text encoder.", gt=0)
    beta1: float = identity(0.5, doc="Adam's first decay.", ge=0, lt=1)
    beta2: float = identity(0.999, doc="Adam's second decay.", ge=0, lt=1)
    schedule: Literal["constant", "halving", "cosine"] = identity(
        "constant", doc="constant; halving: by 2 every halve_every steps (Reed); cosine: to zero."
    )
    halve_every: int = identity(10_000, doc="Steps between halvings.", ge=1)


class Train(Section):
    """How long, how large a batch, in which arithmetic."""

    steps: int = identity(doc="Generator updates of the whole run.", ge=1)
    batch_size: int = identity(64, doc="Real pictures of one update, all workers together.", ge=2)
    micro_batches: int = identity(
        1,
        doc="Equal pieces into which a batch is cut; BatchNorm sees one piece. The workers share "
        "the pieces, so the update does not depend on how many workers there are.",
        ge=1,
    )
    update: Literal["alternating", "simultaneous"] = identity(
        "alternating",
        doc="Whether G meets the updated D, or (Algorithm 1 of the paper) the D before its update.",
    )
    matching: float = identity(
        0.0,
        doc="Weight of a contrastive loss that has D and the encoder tell which caption of the "
        "piece belongs to which real picture, and G be told so too (Zhang et al. 2021, XMC-GAN); "
        "0: none, as in the paper.",
        ge=0,
    )
    pretraining_loss: Literal["contrastive", "structured"] = identity(
        "contrastive",
        doc="matching: contrastive (Radford et al. 2021), or structured, the symmetric joint "
        "embedding of Reed, Akata, Lee and Schiele 2016.",
    )
    loss: Literal["logistic", "hinge"] = identity(
        "logistic", doc="logistic, as in the paper, or hinge (Lim and Ye 2017)."
    )
    interpolation: float = identity(
        0.0,
        doc="Weight of G's loss on codes half-way between two captions (GAN-CLS-INT, equation 6); "
        "0: none.",
        ge=0,
    )
    r1: float = identity(
        0.0, doc="Weight gamma of the R1 penalty (Mescheder et al. 2018); 0: none.", ge=0
    )
    matching_penalty: float = identity(
        0.0,
        doc="Weight k of the matching-aware gradient penalty (DF-GAN, Tao et al. 2022, where it is "
        "2); 0: none.",
        ge=0,
    )
    augment: list[Literal["color", "translation", "cutout"]] = identity(
        [], doc="What DiffAugment (Zhao et al. 2020) does to all that D is shown."
    )
    recompute_fakes: bool = identity(
        False, doc="Draw the fakes again for G's update: less memory, more time."
    )
    precision: Literal["float32", "bfloat16", "float64"] = identity(
        "float32", doc="Arithmetic of the networks; bfloat16 is autocast over float32 weights."
    )
    compile: bool = identity(False, doc="torch.compile the networks (pays on a GPU).")
    deterministic: bool = identity(
        False, doc="Only deterministic kernels, so that a GPU repeats a run bit for bit; slower."
    )
    log_every: int = operational(1, doc="Steps between two points of the loss curves.", ge=1)
    sample_every: int = operational(500, doc="Steps between two sample grids; 0: none.", ge=0)
    profile: str | None = operational(
        None,
        doc="START..STOP, e.g. 100..110: trace these updates of rank 0 by torch.profiler, as files "
        "of the run. A run that goes on from within traces what is left of them.",
    )

    @property
    def profiled(self) -> range:
        """The updates to trace, each by how many there were before it."""
        return profiled(self.profile, self.steps)

    @field_validator("profile", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int | float) else value  # to say how it is written

    @model_validator(mode="after")
    def _check(self) -> Train:
        _ = self.profiled
        if self.batch_size % self.micro_batches:
            fits = [m for m in range(1, self.batch_size // 2 + 1) if self.batch_size % m == 0]
            near = sorted(sorted(fits, key=lambda m: abs(m - self.micro_batches))[:3])
            raise ValueError(
                f"train.micro_batches={self.micro_batches} does not divide "
                f"train.batch_size={self.batch_size}; use e.g. {', '.join(map(str, near))}"
            )
        if self.compile and self.update == "simultaneous":
            # Two backwards over one graph, and compiled code may free buffers in the first.
            raise ValueError(
                "compile=True goes with update=alternating only; change one of the two"
            )
        if self.compile and (self.r1 or self.matching_penalty):
            raise ValueError(
                "train.compile=True does not go with train.r1 or train.matching_penalty: compiled "
                "networks have no second derivatives; change one of them"
            )
        if self.batch_size == self.micro_batches:
            raise ValueError(
                f"train.micro_batches={self.micro_batches} leaves one picture a piece, and "
                "BatchNorm needs two; use fewer micro_batches"
            )
        return self


class Checkpoint(Section):
    """When to save, and what to keep."""

    every: int = operational(1000, doc="Steps between two checkpoints.", ge=1)
    keep: int = operational(3, doc="How many of the newest checkpoints are kept.", ge=1)
    best: str | None = operational(
        None, doc="Metric by which one more checkpoint is kept, e.g. val/agreement/mean."
    )
    best_mode: Literal["max", "min"] = operational("max", doc="Whether larger is better.")

    @model_validator(mode="after")
    def _check(self) -> Checkpoint:
        larger = larger_is_better(self.best or "")  # None, too, of what is no measure of ours
        if larger is not None and larger != (self.best_mode == "max"):
            raise ValueError(
                f"checkpoint.best_mode={self.best_mode}: checkpoint.best={self.best} is better "
                f"when {'large' if larger else 'small'}; write {'max' if larger else 'min'}"
            )
        return self


class Evaluation(Section):
    """Measures of generated pictures: while training, on the validation split."""

    every: int = operational(0, doc="Steps between two evaluations; 0: none.", ge=0)
    samples: int = operational(512, doc="Pictures generated for one evaluation.", ge=2)
    measures: list[Group] = operational(
        WHILE_TRAINING,
        doc="What is measured: by the reader where data has attributes, and by what is given "
        "below. What nothing can be measured by is left out.",
        min_length=1,
    )
    aside: int = operational(
        0,
        doc="CPU cores of a Ray task of its own that measures checkpoints while training goes on; "
        "0: rank 0 measures, and training waits. Pretraining is measured by rank 0 in any case.",
        ge=0,
    )
    inception: str | None = operational(
        None,
        doc="Path of Inception's weights as .safetensors, by which to measure as well; see "
        "docs/measures.md.",
    )
    matcher: str | None = operational(
        None,
        doc="A run of pretrain-encoder by matching in the same storage, by which to measure as "
        "well: R-precision, and distances in its codes of pictures.",
    )

    @property
    def models(self) -> list[str]:
        """Names of what pictures are measured by besides the reader."""
        given = {INCEPTION: self.inception, MATCHING: self.matcher}
        return [name for name, value in given.items() if value]


class Storage(Section):
    """One place for prepared data, embeddings, checkpoints, samples and MLflow's artifacts."""

    uri: str = operational("~/t2i_ray", doc="A local folder, or s3://bucket/prefix.")
    endpoint: str | None = operational(
        None, doc="URL of an S3 server other than AWS, e.g. http://127.0.0.1:9000."
    )
    region: str | None = operational(None, doc="Region of the bucket.")
    shared: bool = operational(
        False, doc="Say that a local folder is the same on every node (NFS and the like)."
    )


class Tracking(Section):
    """MLflow."""

    uri: str | None = operational(
        None,
        doc="MLflow's tracking URI; none: MLFLOW_TRACKING_URI, else sqlite in a local storage.",
    )
    experiment: str = operational("t2i_ray", doc="MLflow's experiment.")
    enabled: bool = operational(True, doc="Whether to log to MLflow at all.")
    register_model: bool = operational(
        False, doc="Make the finished run's generator a version in MLflow's model registry."
    )


class Cluster(Section):
    """What to ask of Ray."""

    address: str | None = operational(
        None, doc="Ray cluster to join; none: RAY_ADDRESS, else one of its own on this machine."
    )
    workers: int = operational(1, doc="DDP workers.", ge=1)
    min_workers: int | None = operational(
        None,
        doc="Go on with as few as these while the cluster has no room for all workers, and with "
        "more as soon as it has; none: always all of them.",
        ge=1,
    )
    resize_s: float = operational(
        60.0, doc="cluster.min_workers: seconds between two looks for room for more.", gt=0
    )
    gpu: bool = operational(False, doc="One GPU a worker, NCCL; else CPU and gloo.")
    threads: int = operational(1, doc="CPU cores and compute threads of a worker.", ge=1)
    max_failures: int = operational(
        3,
        doc="Restarts after lost workers before the run fails; -1: no limit. Leaving a node that "
        "is drained, or for another number of workers, is none.",
        ge=-1,
    )
    timeout_s: int = operational(
        600,
        doc="Seconds after which a worker that does not answer is given up, and all start again. "
        "Longer than rank 0 takes for one evaluation, for which the others wait.",
        ge=5,
    )

    @property
    def fewest(self) -> int:
        """The number of workers below which nothing goes on."""
        return self.min_workers or self.workers

    @model_validator(mode="after")
    def _check(self) -> Cluster:
        if self.fewest > self.workers:
            raise ValueError(
                f"cluster.min_workers={self.min_workers} is more than "
                f"cluster.workers={self.workers}; make it that or less, or leave it out"
            )
        return self


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
