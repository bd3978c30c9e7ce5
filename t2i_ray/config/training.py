"""What is trained: the networks, their optimisers, how long, how large a batch, which losses."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from t2i_ray.config.fields import CLASS, Section, identity, operational
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
    pretrained_matching: float = identity(
        0.0,
        doc="Weight of the same loss in the eyes of the pair that encoder.init_from holds, which "
        "stays as it was pretrained: a drawn picture and its caption are to find each other (Xu et "
        "al. 2018, AttnGAN, section 3.2, of whole captions alone); 0: none.",
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
