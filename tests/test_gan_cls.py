"""The step against a textbook implementation of Algorithm 1, in double precision."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_gan import DIM, TinyEncoder, gradients, make_config, make_gan, make_pieces
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import batch_norm, conv2d, conv_transpose2d, leaky_relu, linear

from t2i_ray.batch_norm import estimate_statistics, reserve_statistics
from t2i_ray.config import Optim, UserError
from t2i_ray.family import Piece
from t2i_ray.gan_cls import GanCls
from t2i_ray.learner import schedule
from t2i_ray.losses import Scores, discriminator_loss, generator_loss
from t2i_ray.models import Discriminator, Generator
from t2i_ray.pretrain import Pair

# ---------------------------------------------------- Algorithm 1, as a textbook would have it


def norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return batch_norm(
        x, None, None, weights[f"{name}.weight"], weights[f"{name}.bias"], training=True
    )


def project(w: dict[str, Tensor], name: str, code: Tensor) -> Tensor:
    x = linear(code, w[f"{name}.0.weight"])
    return leaky_relu(norm(x, w, f"{name}.1"), 0.2)


def textbook_generator(w: dict[str, Tensor], noise: Tensor, code: Tensor) -> Tensor:
    text = project(w, "text", code)
    joined = torch.cat([noise, text], 1)[:, :, None, None]  # a 1x1 picture
    # first.weight is [(h, w, c), in]; a transposed convolution wants [in, c, h, w]
    weight = w["first.weight"]
    kernel = weight.view(4, 4, -1, weight.shape[1]).permute(3, 2, 0, 1)
    x = norm(conv_transpose2d(joined, kernel), w, "norm").relu()
    x = conv_transpose2d(x, w["blocks.0.0.weight"], stride=2, padding=1)
    x = norm(x, w, "blocks.0.1").relu()
    return conv_transpose2d(x, w["last.weight"], w["last.bias"], stride=2, padding=1).tanh()


def textbook_trunk(w: dict[str, Tensor], images: Tensor) -> Tensor:
    x = conv2d(images, w["trunk.first.weight"], w["trunk.first.bias"], stride=2, padding=1)
    x = conv2d(leaky_relu(x, 0.2), w["trunk.blocks.0.0.weight"], stride=2, padding=1)
    return leaky_relu(norm(x, w, "trunk.blocks.0.1"), 0.2)


def textbook_discriminator(w: dict[str, Tensor], images: Tensor, code: Tensor) -> Tensor:
    x = textbook_trunk(w, images)
    tiled = project(w, "head.text", code)[:, :, None, None].expand(-1, -1, 4, 4)
    kernel = torch.cat([w["trunk.join.weight"], w["head.join.weight"]], 1)[:, :, None, None]
    x = leaky_relu(norm(conv2d(torch.cat([x, tiled], 1), kernel), w, "head.norm"), 0.2)
    kernel = w["head.last.weight"].view(1, 4, 4, -1).permute(0, 3, 1, 2)
    return conv2d(x, kernel, w["head.last.bias"]).flatten()


def textbook_matching(
    w: dict[str, Tensor], images: Tensor, code: Tensor, wrong: Tensor | None = None
) -> Tensor:
    """Mean of -log P(caption i | picture i) and -log P(picture i | caption i)."""
    x = conv2d(textbook_trunk(w, images), w["trunk.join.weight"][:, :, None, None])
    pictures = linear(x.flatten(1), w["matcher.image.weight"], w["matcher.image.bias"])
    captions = linear(code, w["matcher.text.weight"], w["matcher.text.bias"])
    alike = [
        [torch.exp(10 * torch.cosine_similarity(p, c, dim=0)) for c in captions] for p in pictures
    ]
    n = range(len(alike))
    too = torch.zeros(len(alike))
    if wrong is not None:
        captions = linear(wrong, w["matcher.text.weight"], w["matcher.text.bias"])
        too = torch.exp(10 * torch.cosine_similarity(pictures, captions))
    of_picture = [alike[i][i] / (torch.stack(alike[i]).sum() + too[i]) for i in n]
    of_caption = [alike[i][i] / torch.stack([row[i] for row in alike]).sum() for i in n]
    return -torch.stack(of_picture + of_caption).log().mean()


def textbook_step(gan: GanCls, pieces: list[Piece], update: str) -> dict[str, Tensor]:
    """Gradients of one step; D's optimiser moves `gan` if the update is alternating."""
    g: dict[str, Tensor] = dict(gan.generator.named_parameters())
    d: dict[str, Tensor] = dict(gan.discriminator.named_parameters())
    e: dict[str, Tensor] = dict(gan.encoder.named_parameters())
    train = gan.train
    weight, hard = train.matching, gan.hard

    def log_d(images: Tensor, code: Tensor) -> Tensor:
        score = textbook_discriminator(d, images, code)
        if train.loss == "hinge":
            return -torch.where(score < 1, 1 - score, 0).mean()
        return torch.log(torch.sigmoid(score)).mean()

    def log_not_d(images: Tensor, code: Tensor) -> Tensor:
        score = textbook_discriminator(d, images, code)
        if train.loss == "hinge":
            return -torch.where(score > -1, 1 + score, 0).mean()
        return torch.log(1 - torch.sigmoid(score)).mean()

    def judged(fake: Tensor, code: Tensor) -> Tensor:
        """What G minimises."""
        if train.loss == "hinge":
            return -textbook_discriminator(d, fake, code).mean()
        return -log_d(fake, code)

    def penalties(images: Tensor, code: Tensor) -> Tensor:
        """Picture by picture, though BatchNorm makes each score a function of all."""
        images = images.clone().requires_grad_()
        total = textbook_discriminator(d, images, code).sum()
        by_image, by_code = torch.autograd.grad(total, [images, code], create_graph=True)
        found = torch.zeros(())
        for one, other in zip(by_image, by_code, strict=True):
            squares, lengths = (one**2).sum(), (one**2).sum().sqrt() + (other**2).sum().sqrt()
            found = found + train.r1 / 2 * squares + train.matching_penalty * lengths**6
        return found / len(images)

    def matching(images: Tensor, code: Tensor, wrong: Tensor) -> Tensor:
        if not weight:
            return torch.zeros(())
        return weight * textbook_matching(d, images, code, wrong if hard else None)

    codes = [gan.encoder(piece.right).detach() for piece in pieces]
    others = [gan.encoder(piece.wrong).detach() for piece in pieces]
    losses_d, matching_d = [], []
    for (images, right, wrong, noise, *_), code in zip(pieces, codes, strict=True):
        fake = textbook_generator(g, noise, code).detach()
        s_r = log_d(images, gan.encoder(right))
        s_w = log_not_d(images, gan.encoder(wrong))
        s_f = log_not_d(fake, gan.encoder(right))
        losses_d.append(-(s_r + (s_w + s_f) / 2))
        extra = penalties(images, gan.encoder(right))
        matching_d.append(matching(images, gan.encoder(right), gan.encoder(wrong)) + extra)
    loss_d = torch.stack(losses_d).mean()
    of_d = [*d.values(), *e.values()]
    gradients_d = torch.autograd.grad(loss_d + torch.stack(matching_d).mean(), of_d)
    if update == "alternating":
        for group in gan.learner_d.optimizer.param_groups:
            group["lr"] = group["base_lr"]
        for parameter, gradient in zip(of_d, gradients_d, strict=True):
            # The fused kernel wants it laid out as the parameter is.
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        gan.learner_d.optimizer.step()

    losses_g, matching_g = [], []
    for piece, code, other in zip(pieces, codes, others, strict=True):
        fake = textbook_generator(g, piece.noise, code)
        losses_g.append(judged(fake, code))
        between = 0.5 * code + 0.5 * other
        extra = train.interpolation * judged(textbook_generator(g, piece.noise, between), between)
        if isinstance(gan.pair, Pair):
            seen, too = gan.pair.encoder(piece.right), gan.pair.encoder(piece.wrong)
            tower: dict[str, Tensor] = dict(gan.pair.tower.named_parameters())
            match = textbook_matching(tower, fake, seen, too if hard else None)
            extra = extra + train.pretrained_matching * match
        matching_g.append(matching(fake, code, other) + extra)
    loss_g = torch.stack(losses_g).mean()
    gradients_g = torch.autograd.grad(loss_g + torch.stack(matching_g).mean(), list(g.values()))
    names = [f"discriminator.{n}" for n in d] + [f"encoder.{n}" for n in e]
    result = dict(zip(names, gradients_d, strict=True))
    result.update(zip([f"generator.{n}" for n in g], gradients_g, strict=True))
    return result | {"d_loss": loss_d.detach(), "g_loss": loss_g.detach()}


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], error: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = value.abs().max().item()
        assert scale > 1e-7, f"{name} is nothing: this would compare zeros"
        assert (found[name] - value).abs().max().item() < error * scale, name


@pytest.mark.parametrize("update", ["alternating", "simultaneous"])
@pytest.mark.parametrize("micro", [1, 4])
@pytest.mark.parametrize("matching", [0.0, 0.7])
def test_the_step_has_the_gradients_of_the_textbook(
    update: str, micro: int, matching: float
) -> None:
    pieces = make_pieces(micro)
    gan = make_gan(micro_batches=micro, update=update, matching=matching)
    book = make_gan(micro_batches=micro, update=update, matching=matching)
    wanted = textbook_step(book, pieces, update)
    losses = gan.step(pieces, step=0, micro_batches=micro, world=1)
    found = gradients(gan) | {name: losses[name] for name in ("d_loss", "g_loss")}
    assert_close(found, wanted, 1e-9)


@pytest.mark.parametrize("update", ["alternating", "simultaneous"])
@pytest.mark.parametrize(
    "options",
    [
        {"loss": "hinge"},
        {"interpolation": 0.8},
        {"r1": 3.0},
        {"matching_penalty": 0.01},
        {"data": {"wrong": "hard"}, "matching": 0.7},
        {"pretrained_matching": 0.6},
        {"pretrained_matching": 0.6, "data": {"wrong": "hard"}},
    ],
    ids=lambda options: "-".join(options),
)
def test_options_have_the_gradients_of_their_papers(update: str, options: dict[str, Any]) -> None:
    pieces = make_pieces(2)
    gan = make_gan(micro_batches=2, update=update, **options)
    wanted = textbook_step(make_gan(micro_batches=2, update=update, **options), pieces, update)
    losses = gan.step(pieces, step=0, micro_batches=2, world=1)
    found = gradients(gan) | {name: losses[name] for name in ("d_loss", "g_loss")}
    assert_close(found, wanted, 1e-9)


def test_the_two_updates_differ() -> None:
    found = {}
    for update in ("alternating", "simultaneous"):
        gan = make_gan(update=update)
        gan.step(make_pieces(1), 0, 1, 1)
        found[update] = gradients(gan)
    first, second = found.values()
    assert torch.equal(first["discriminator.head.last.weight"],
                       second["discriminator.head.last.weight"])  # fmt: skip
    assert not torch.allclose(first["generator.last.weight"], second["generator.last.weight"])


def test_recomputed_fakes_change_nothing() -> None:
    states = []
    for recompute in (False, True):
        gan = make_gan(micro_batches=4, recompute_fakes=recompute)
        for step in range(2):
            gan.step(make_pieces(4, seed=step), step, 4, 1)
        states.append(gan.state()["generator"])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_losses_are_those_of_the_paper() -> None:
    scores = Scores(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]), torch.tensor([-3.0, -3.0]))
    loss, logged = discriminator_loss(scores)

    def minus_log_sigmoid(x: float) -> float:
        return -math.log(1 / (1 + math.exp(-x)))

    real = (math.log(2) + minus_log_sigmoid(2)) / 2
    wrong, fake = minus_log_sigmoid(-1), minus_log_sigmoid(3)
    assert loss.item() == pytest.approx(real + wrong / 2 + fake / 2, rel=1e-6)
    assert logged["d_wrong"].item() == pytest.approx(wrong, rel=1e-6)
    assert [logged[f"d_acc_{kind}"].item() for kind in Scores._fields] == [0.5, 0.0, 1.0]
    assert generator_loss(scores.fake).item() == pytest.approx(minus_log_sigmoid(-3), rel=1e-6)


# --------------------------------------------------------------------------------- DDP


VARIANTS: dict[str, dict[str, Any]] = {
    "alternating": {"matching": 0.5},
    "recomputed": {"matching": 0.5, "recompute_fakes": True},
    "simultaneous": {"matching": 0.5, "update": "simultaneous"},
    "hard": {"matching": 0.5, "data": {"wrong": "hard"}},
    "penalised": {"r1": 0.5, "matching_penalty": 0.001, "interpolation": 1.0, "loss": "hinge"},
}


def _train(variant: str, rank: int, world: int) -> dict[str, Tensor]:
    """What three steps leave behind: gradients, losses and state."""
    gan = make_gan(micro_batches=4, **VARIANTS[variant])
    gan.distribute()
    for step in range(3):
        mine = make_pieces(4, seed=step)[rank::world]  # 3 workers: shares of 2, 1 and 1
        losses = gan.step(mine, step, 4, world)
    gan.refresh_ema_statistics(make_pieces(1))
    tensors = {f"{part}.{n}": t for part, ts in gan.state().items() for n, t in ts.items()}
    tensors |= {f"gradient.{n}": t.contiguous() for n, t in gradients(gan).items()}
    tensors["losses"] = torch.stack([losses[name] for name in sorted(losses)])
    if world > 1:
        torch.distributed.all_reduce(tensors["losses"])
    return {f"{variant}.{name}": tensor for name, tensor in tensors.items()}


def _rank(rank: int, world: int, store: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world
    )
    tensors = {n: t for v in VARIANTS for n, t in _train(v, rank, world).items()}
    save_file(tensors, f"{store}.{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_workers_makes_the_same_update(world: int, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    spawn(_rank, (world, store), nprocs=world)  # type: ignore[no-untyped-call]
    ranks = [load_file(f"{store}.{rank}") for rank in range(world)]
    wanted = {n: t for v in VARIANTS for n, t in _train(v, 0, 1).items()}
    for name, value in wanted.items():
        for other in ranks[1:]:
            assert torch.equal(ranks[0][name], other[name]), f"ranks disagree on {name}"
        scale = value.abs().max()
        assert scale > 1e-7, f"{name} is nothing: this would compare zeros"
        assert (ranks[0][name] - value).abs().max() <= 1e-10 * scale, name


# ----------------------------------------------------------------------------- networks


def interaction(score: Any) -> float:
    """f(i1, t1) - f(i1, t2) - f(i2, t1) + f(i2, t2), relative to the spread of the scores."""
    torch.manual_seed(0)
    features = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    codes = torch.randn(2, DIM, dtype=torch.float64)
    # one batch of the four pairs, so that BatchNorm is one and the same function for all
    scores = score(features[[0, 0, 1, 1]], codes[[0, 1, 0, 1]])
    mixed = scores[0] - scores[1] - scores[2] + scores[3]
    return float((mixed.abs() / scores.std()).detach())


def test_the_score_mixes_picture_and_caption() -> None:
    linear_head = nn.Conv2d(8 + DIM, 1, 4).double()

    def linear_score(features: Tensor, codes: Tensor) -> Tensor:
        tiled = codes[:, :, None, None].expand(-1, -1, 4, 4)
        score: Tensor = linear_head(torch.cat([features, tiled], 1))
        return score.flatten()

    assert interaction(linear_score) < 1e-12  # f(image) + g(text): what must not be
    assert interaction(make_gan().discriminator.score) > 0.01


def test_shapes_and_range_of_the_paper() -> None:
    generator = Generator(100, 1024, 128, [512, 256, 128, 64])
    discriminator = Discriminator(1024, 128, [64, 128, 256, 512])
    code = torch.randn(2, 1024)
    images = generator(torch.randn(2, 100), code)
    assert images.shape == (2, 3, 64, 64)
    assert images.abs().max() <= 1
    assert images.is_contiguous(memory_format=torch.channels_last)
    features = discriminator.features(images)
    assert features.shape == (2, 512, 4, 4)
    assert discriminator.score(features, code).shape == (2,)


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_no_bias_before_a_norm_and_no_buffers(network: str) -> None:
    gan = make_gan()
    module: nn.Module = getattr(gan, network)
    assert not list(module.buffers())
    gan.step(make_pieces(1), 0, 1, 1)
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        # a bias before a norm has no effect, so its gradient is rounding noise
        assert parameter.grad.abs().max() > 1e-6, name
    modules = list(module.modules())
    for before, after in pairwise(m for m in modules if not list(m.children())):
        if isinstance(after, nn.BatchNorm2d):
            assert getattr(before, "bias", None) is None or isinstance(before, nn.ReLU)


def test_dcgan_start() -> None:
    generator = Generator(100, 64, 128, [256, 128, 64])
    assert generator.first.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert generator.norm.weight.mean().item() == pytest.approx(1.0, abs=0.01)
    assert generator.norm.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert generator.last.bias is not None
    assert not generator.last.bias.any()


def test_estimated_statistics_are_the_mean_over_batches() -> None:
    torch.manual_seed(0)
    generator = Generator(3, DIM, 4, [8, 6])
    batches = [(torch.randn(32, 3), torch.randn(32, DIM)) for _ in range(3)]
    seen: list[Tensor] = []
    hook = generator.norm.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    estimate_statistics(generator, iter(batches))
    hook.remove()
    wanted = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    assert generator.norm.running_mean is not None
    assert torch.allclose(generator.norm.running_mean, wanted, atol=1e-6)
    noise, code = batches[0]
    assert torch.allclose(generator(noise, code)[:4], generator(noise[:4], code[:4]), atol=1e-6)
    other = Generator(3, DIM, 4, [8, 6])
    reserve_statistics(other)
    other.load_state_dict(generator.state_dict())  # the statistics travel with the weights
    assert torch.equal(other.eval()(noise, code), generator(noise, code))


# --------------------------------------------------------------- averages, schedule, state


def test_average_follows_the_weights_with_a_quick_start() -> None:
    gan = make_gan()
    start = gan.state()["generator_ema"]["last.weight"]
    gan.step(make_pieces(1), 0, 1, 1)
    after = gan.state()
    now, average = after["generator"]["last.weight"], after["generator_ema"]["last.weight"]
    assert torch.allclose(average, 0.1 * start + 0.9 * now, atol=1e-15)  # (1 + 0) / (10 + 0)
    gan.step(make_pieces(1), 1000, 1, 1)
    later = gan.state()
    now, wanted = later["generator"]["last.weight"], later["generator_ema"]["last.weight"]
    assert torch.allclose(wanted, 0.9 * average + 0.1 * now, atol=1e-15)  # the configured decay
    assert not torch.equal(later["encoder_ema"]["out.weight"], later["encoder"]["out.weight"])


def test_schedules() -> None:
    halving = Optim(schedule="halving", halve_every=100)
    assert [schedule(halving, step, 1000) for step in (0, 99, 100, 250)] == [1, 1, 0.5, 0.25]
    cosine = Optim(schedule="cosine")
    assert schedule(cosine, 0, 1000) == 1
    assert schedule(cosine, 500, 1000) == pytest.approx(0.5)
    assert schedule(cosine, 1000, 1000) == pytest.approx(0)
    assert schedule(Optim(), 12345, 10) == 1


def test_the_step_sets_the_scheduled_rates() -> None:
    config = make_config(optim={"schedule": "halving", "halve_every": 3})
    gan = GanCls(config, TinyEncoder(), DIM)
    gan.step(make_pieces(1), 7, 1, 1)
    assert [group["lr"] for group in gan.learner_d.optimizer.param_groups] == [2e-3 / 4, 5e-4 / 4]
    assert [group["lr"] for group in gan.learner_g.optimizer.param_groups] == [1e-3 / 4]


def test_captions_of_any_scale_reach_the_picture() -> None:
    torch.manual_seed(0)
    generator = Generator(3, DIM, 4, [8, 6])
    noise, code = torch.randn(32, 3), 10 * torch.randn(32, DIM)
    assert torch.allclose(generator(noise, code), generator(noise, 9 * code + 5), atol=1e-5)


@pytest.mark.parametrize("update", ["alternating", "simultaneous"])
def test_state_round_trip_is_bit_for_bit(update: str, tmp_path: Path) -> None:
    unbroken = make_gan(update=update)
    broken = make_gan(update=update)
    for gan in (unbroken, broken):
        gan.step(make_pieces(1, seed=0), 0, 1, 1)
        gan.refresh_ema_statistics(make_pieces(1, seed=5))
    for part, tensors in broken.state().items():
        save_file(tensors, tmp_path / f"{part}.safetensors")
    resumed = GanCls(make_config(update=update), TinyEncoder(), DIM)
    resumed.load_state({path.stem: load_file(path) for path in tmp_path.iterdir()})
    noise, rows = make_pieces(1)[0].noise, make_pieces(1)[0].right
    assert torch.equal(resumed.sample(noise, rows), unbroken.sample(noise, rows))
    for gan in (unbroken, resumed):
        gan.step(make_pieces(1, seed=1), 1, 1, 1)
    wanted, found = unbroken.state(), resumed.state()
    assert wanted.keys() == found.keys()
    assert wanted["optimizer_d"].keys() >= {"exp_avg.encoder.out.weight", "step.encoder.out.bias"}
    for part in wanted:
        assert wanted[part].keys() == found[part].keys()
        assert all(torch.equal(wanted[part][name], found[part][name]) for name in wanted[part])


def test_state_is_a_copy_and_unknown_parts_are_refused() -> None:
    gan = make_gan()
    before = gan.state()["generator"]["last.weight"]
    kept = before.clone()
    gan.step(make_pieces(1), 0, 1, 1)
    assert torch.equal(before, kept)
    with pytest.raises(KeyError):
        gan.load_state({"classifier": {}})


def test_a_frozen_encoder_takes_embeddings_and_has_nothing_to_learn() -> None:
    gan = GanCls(make_config(), nn.Identity(), DIM)
    (piece,) = make_pieces(1)
    right, wrong = torch.randn(2, 16, DIM)  # float32 rows into float64 networks
    losses = gan.step([piece._replace(right=right, wrong=wrong)], 0, 1, 1)
    assert all(math.isfinite(value) for value in losses.values())
    assert gan.state()["encoder_ema"] == {}
    assert "encoder" not in gan.state()


@pytest.mark.parametrize("update", ["alternating", "simultaneous"])
def test_bfloat16_keeps_float32_weights_and_losses(update: str) -> None:
    gan = make_gan(precision="bfloat16", update=update, matching=0.5)
    losses = gan.step(make_pieces(1), 0, 1, 1)
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    assert {weight.dtype for weight in gan.generator.parameters()} == {torch.float32}


def test_compiled_networks_and_the_simultaneous_update_are_refused_together() -> None:
    # torch 2.13 served cached code that overwrote what the second backward needed: wrong weights
    with pytest.raises(UserError, match="update=alternating"):
        make_config(compile=True, update="simultaneous")


def test_a_few_steps_teach_the_discriminator() -> None:
    gan = make_gan()
    first = last = gan.step(make_pieces(1), 0, 1, 1)
    for step in range(1, 40):
        last = gan.step(make_pieces(1), step, 1, 1)
    assert last["d_loss"] < 0.7 * first["d_loss"]
    assert {k for k in last if k.startswith("d_acc")} == {
        "d_acc_real", "d_acc_wrong", "d_acc_fake",
    }  # fmt: skip
