"""Families other than GAN-CLS, and what D may be given besides: each by its own formula."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from small_gan import (
    DIM,
    TinyEncoder,
    assert_pieces_add_up,
    gradients,
    make_config,
    make_gan,
    make_pieces,
)
from torch import Tensor, nn

from t2i_ray.augment import CHANCES, augment
from t2i_ray.config import FAMILIES, PRETRAINING, UserError
from t2i_ray.cvae import CVae, negative_elbo
from t2i_ray.families import OBJECTIVES, OURS, family_of
from t2i_ray.family import Family, Piece
from t2i_ray.losses import Scores, discriminator_loss, generator_loss
from t2i_ray.models import Discriminator


def make_family(name: str, **train: Any) -> Family:
    config = make_config({"family": name}, **train)
    return family_of(config)(config, TinyEncoder(), DIM)


# ------------------------------------------------------------------------------- families


def test_the_config_knows_all_of_them() -> None:
    assert (*OURS,) == FAMILIES
    assert (*OBJECTIVES,) == PRETRAINING


def test_a_cgan_is_shown_no_wrong_pair() -> None:
    scores = Scores(torch.tensor([0.0, 2.0]), None, torch.tensor([-3.0, 1.0]))
    loss, logged = discriminator_loss(scores)
    real = (math.log(2) + math.log(1 + math.exp(-2))) / 2
    fake = (math.log(1 + math.exp(-3)) + math.log(1 + math.exp(1))) / 2
    assert loss.item() == pytest.approx(real + fake, rel=1e-6)
    assert logged["d_acc_fake"].item() == 0.5
    assert not [name for name in logged if "wrong" in name]

    family = make_family("cgan")
    (piece,) = make_pieces(1)
    family.step([piece], 0, 1, 1)
    first = gradients(family)
    again = make_family("cgan")
    again.step([piece._replace(wrong=piece.wrong.flip(0))], 0, 1, 1)
    for name, value in gradients(again).items():
        assert torch.equal(value, first[name]), name


def test_a_cgan_picks_its_caption_among_hard_ones() -> None:
    """That of data.wrong is one more in train.matching, and it is not the right one again."""
    (piece,) = make_pieces(1)
    alike = piece._replace(wrong=piece.right)

    def logged(kind: str, piece: Piece) -> dict[str, Tensor]:
        family = make_family("cgan", matching=1.0, data={"wrong": kind})
        return family.step([piece], 0, 1, 1)

    for name in ("d_match", "g_match"):
        hard, twice, easy = (
            logged(*case)[name]
            for case in (("hard", piece), ("hard", alike), ("other_class", piece))
        )
        assert hard != twice
        assert twice > easy  # one more alternative, as likely as the right one
        assert logged("other_class", alike)[name] == easy


def test_the_bound_is_that_of_the_distributions() -> None:
    torch.manual_seed(0)
    images, drawn = torch.rand(2, 5, 3, 8, 8, dtype=torch.float64)
    mean, log_variance = torch.randn(2, 5, 4, dtype=torch.float64)
    loss, logged = negative_elbo(images, drawn, mean, log_variance, 0.2)
    q = torch.distributions.Normal(mean, (log_variance / 2).exp())
    prior = torch.distributions.Normal(torch.zeros(4), torch.ones(4))
    kl = torch.distributions.kl_divergence(q, prior).sum(1)
    likelihood = torch.distributions.Normal(drawn, 0.2).log_prob(images)  # type: ignore[no-untyped-call]
    likelihood = likelihood.sum((1, 2, 3))
    assert loss.item() == pytest.approx((kl - likelihood).mean().item() / (3 * 8 * 8), rel=1e-12)
    assert logged["kl"].item() == pytest.approx(kl.mean().item(), rel=1e-12)


def test_a_cvae_learns_to_draw_what_it_saw() -> None:
    family = make_family("cvae", steps=300)
    (piece,) = make_pieces(1)
    errors = [family.step([piece], step, 1, 1)["squared_error"] for step in range(300)]
    assert errors[-1] < 0.8 * errors[0]  # of noise: what can be said is in z and the caption
    assert isinstance(family, CVae)
    moved = {name.split(".")[0] for name in gradients(family)}
    assert moved == {"generator", "recognition", "encoder"}


@pytest.mark.parametrize("name", ["gan_cls", "cgan", "cvae"])
def test_every_family_goes_on_bit_for_bit_and_draws(name: str) -> None:
    unbroken = make_family(name)
    unbroken.step(make_pieces(2), 0, 2, 1)
    unbroken.refresh_ema_statistics(make_pieces(1, seed=5))
    resumed = make_family(name)
    resumed.load_state(unbroken.state())
    for family in (unbroken, resumed):
        family.step(make_pieces(2, seed=1), 1, 2, 1)
    wanted, found = unbroken.state(), resumed.state()
    assert wanted.keys() == found.keys()
    for part in wanted:
        assert all(torch.equal(wanted[part][key], found[part][key]) for key in wanted[part]), part
    images = unbroken.sample(torch.randn(4, 3), make_pieces(1)[0].right[:4])
    assert images.shape == (4, 3, 16, 16)
    assert images.abs().max() <= 1


def test_pieces_of_a_cvae_add_up() -> None:
    assert_pieces_add_up(lambda: make_family("cvae"))


@pytest.mark.parametrize(
    ("family", "says"),
    [
        ("nowhere.at_all:Mine", "can't be imported"),
        ("t2i_ray.models:Nobody", "no such class"),
        ("t2i_ray.models:Generator", "no Family"),
        ("t2i_ray.family:Family", "no make_learners, no update"),
        ("wgan", "model.family"),
    ],
)
def test_a_family_that_is_none_is_refused(family: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make_family(family)


# -------------------------------------------------------------------------------- options


def test_hinge_asks_for_a_margin_and_no_more() -> None:
    scores = Scores(torch.tensor([0.5, 3.0]), torch.tensor([-2.0, 0.0]), torch.tensor([1.0, -1.0]))
    loss, _ = discriminator_loss(scores, "hinge")
    assert loss.item() == pytest.approx(0.5 / 2 + (1.0 / 2 + 2.0 / 2) / 2)
    assert generator_loss(scores.fake, "hinge").item() == 0.0
    assert generator_loss(torch.tensor([2.0, 4.0]), "hinge").item() == -3.0


def test_spectral_norms_become_one() -> None:
    torch.manual_seed(0)
    network = Discriminator(5, 4, [6, 8], spectral=True)
    for _ in range(50):
        network.iterate_spectral()
    layers = [
        layer
        for part in (network.trunk, network.head)
        for layer in part.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    assert len(layers) == 6
    for layer in layers:
        rows = layer.weight.detach().flatten(1).numpy()
        assert np.linalg.svd(rows, compute_uv=False)[0] == pytest.approx(1, abs=1e-3)


def test_spectral_norms_are_not_rounded() -> None:
    config = make_config({"spectral_norm": True}, precision="bfloat16")
    family = family_of(config)(config, TinyEncoder(), DIM)
    losses = family.step(make_pieces(1), 0, 1, 1)
    assert all(math.isfinite(value) for value in losses.values())
    first = Discriminator(5, 4, [6, 8], spectral=True).trunk.first
    with torch.autocast("cpu", torch.bfloat16):
        weight = first.weight
    assert torch.equal(weight, first.weight)


def test_the_estimate_of_norms_depends_on_the_step_alone() -> None:
    """Not on how many pieces this worker has, nor on how often a network runs."""
    found = []
    for micro in (1, 4):
        config = make_config({"spectral_norm": True}, micro_batches=micro)
        family = family_of(config)(config, TinyEncoder(), DIM)
        family.step(make_pieces(micro), 0, micro, 1)
        state = family.state()["discriminator"]
        found.append({name: value for name, value in state.items() if name.endswith((".u", ".v"))})
    assert len(found[0]) == 12
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def chances(count: int, **fixed: float) -> Tensor:
    """What changes nothing, but for what is given: by position."""
    neutral = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5, 0.0, 0.0] * 2, dtype=torch.float64)
    for name, value in fixed.items():
        neutral[int(name[1:])] = value
    return neutral.repeat(count, 1)


def test_colours_are_changed_as_the_paper_says() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    assert chances(1).shape[1] == CHANCES
    assert torch.allclose(augment(x, chances(2), ["color"]), x)
    brighter = augment(x, chances(2, c0=0.75), ["color"])
    assert torch.allclose(brighter, x + 0.25)
    grey = augment(x, chances(2, c1=0.0), ["color"])
    assert torch.allclose(grey, x.mean(1, keepdim=True).expand_as(x))
    steep = augment(x, chances(2, c2=0.9), ["color"])
    middle = x.mean((1, 2, 3), keepdim=True)
    assert torch.allclose(steep, (x - middle) * 1.4 + middle)
    generated = augment(x, chances(2, c7=0.75), ["color"], generated=True)
    assert torch.allclose(generated, x + 0.25)


def test_shifts_and_holes() -> None:
    x = 1 + torch.arange(64, dtype=torch.float64).view(1, 1, 8, 8).repeat(1, 3, 1, 1)
    assert torch.equal(augment(x, chances(1), ["translation"]), x)
    down = augment(x, chances(1, c3=0.99), ["translation"])  # by an eighth: one row of eight
    assert torch.equal(down[:, :, 1:], x[:, :, :-1])
    assert not down[:, :, 0].any()
    left = augment(x, chances(1, c4=0.0), ["translation"])
    assert torch.equal(left[..., :-1], x[..., 1:])
    hole = augment(x, chances(1, c5=0.5, c6=0.5), ["cutout"])
    assert (hole == 0).sum() == 3 * 4 * 4
    assert not hole[0, :, 2:6, 2:6].any()
    corner = augment(x, chances(1), ["cutout"])  # half of it outside
    assert (corner == 0).sum() == 3 * 2 * 2


def test_the_generator_learns_through_the_augmentation() -> None:
    gan = make_gan(augment=["color", "translation", "cutout"])
    (piece,) = make_pieces(1)
    chance = torch.rand(
        16, CHANCES, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    gan.step([piece._replace(chance=chance)], 0, 1, 1)
    plain = make_gan()
    plain.step([piece], 0, 1, 1)
    name = "generator.last.weight"
    assert gradients(gan)[name].abs().max() > 1e-7
    assert not torch.allclose(gradients(gan)[name], gradients(plain)[name])
