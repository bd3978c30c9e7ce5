"""What each network of a GAN maximises, from the discriminator's scores. Torch alone."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, relu, softplus

Kind = Literal["logistic", "hinge"]


class Scores(NamedTuple):
    """The discriminator's scores for the three pairs of Algorithm 1, or for two of them."""

    real: Tensor  # [b] real picture, right caption
    wrong: Tensor | None  # [b] real picture, wrong caption
    fake: Tensor  # [b] generated picture, right caption


def discriminator_loss(scores: Scores, kind: Kind = "logistic") -> tuple[Tensor, dict[str, Tensor]]:
    """Maximise the likelihood of "real and matching" for real + right, its contrary for the rest.

    -log D(real, right) - 1/2 log(1 - D(real, wrong)) - 1/2 log(1 - D(fake, right)), with D the
    logistic function of the score (Algorithm 1, line 9); and the terms and shares to log. Without
    wrong pairs the fakes weigh 1. With the hinge loss a score has only to be beyond 1 or -1 (Lim
    and Ye 2017): -log D(s) becomes max(0, 1 - s), and -log(1 - D(s)) becomes max(0, 1 + s).
    """
    cost = softplus if kind == "logistic" else _hinge
    given = {
        name: _at_least_float32(score) for name, score in scores._asdict().items()
        if score is not None
    }  # fmt: skip
    terms = {
        name: cost(-score if name == "real" else score).mean() for name, score in given.items()
    }
    others = [terms[name] for name in ("wrong", "fake") if name in terms]
    loss = terms["real"] + torch.stack(others).mean()
    logged = {"d_loss": loss, **{f"d_{name}": term for name, term in terms.items()}}
    for name, score in given.items():
        right_sign = score > 0 if name == "real" else score < 0
        logged[f"d_acc_{name}"] = right_sign.to(loss.dtype).mean()
    return loss, {name: value.detach() for name, value in logged.items()}


def generator_loss(fake: Tensor, kind: Kind = "logistic") -> Tensor:
    """Maximise the likelihood that D takes the fake for real and matching: -log D(fake, right).

    With the hinge loss: maximise the score itself.
    """
    fake = _at_least_float32(fake)
    return softplus(-fake).mean() if kind == "logistic" else -fake.mean()


def r1_penalty(scores: Tensor, images: Tensor) -> Tensor:
    """The mean squared length of D's gradient at real pictures (Mescheder et al. 2018, eq. 9).

    Args:
        scores: [b] of real pictures with their captions.
        images: [b, 3, S, S] these pictures, of which the scores are a function.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.flatten(1).square().sum(1).mean()


def matching_penalty(scores: Tensor, images: Tensor, codes: Tensor) -> Tensor:
    """The matching-aware gradient penalty of DF-GAN (Tao et al. 2022, eq. 1), without its weight.

    Mean of (|gradient by the picture| + |gradient by the caption's code|)**6 at real pictures with
    right captions: D is smooth where G is to arrive. The paper's weight is 2.

    Args:
        scores: [b] of real pictures with their captions.
        images: [b, 3, S, S] these pictures, of which the scores are a function.
        codes: [b, text_in] the right captions' codes.
    """
    gradients = torch.autograd.grad(scores.sum(), [images, codes], create_graph=True)
    lengths = [torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients]
    return torch.stack(lengths).sum(0).pow(6).mean()


def matching_loss(logits: Tensor) -> Tensor:
    """Maximise the likelihood of picking each picture's caption, and each caption's picture.

    Logits [b, b], pictures by captions; or [b, b + 1], the last being one more caption for each
    picture, which is wrong. The contrastive loss of XMC-GAN (Zhang et al. 2021,
    "Cross-Modal Contrastive Learning for Text-to-Image Generation", equations 1 and 2), in both
    directions: D and the encoder learn from real pictures, G from its own.
    """
    logits, own = _at_least_float32(logits), torch.arange(len(logits), device=logits.device)
    captions = logits[:, : len(logits)].T
    return (cross_entropy(logits, own) + cross_entropy(captions, own)) / 2


def structured_loss(similarity: Tensor, classes: Tensor | None = None) -> Tensor:
    """The symmetric structured joint embedding loss of Reed, Akata, Lee and Schiele 2016.

    "Learning Deep Representations of Fine-Grained Visual Descriptions", section 3. With the
    compatibility F of a picture and a caption, the inner product of their features, the paper's
    surrogate of the classification error of pictures by captions and of captions by pictures is

        mean over n of  max over y of max(0, Delta(y_n, y) + E F(v_n, t of y) - F(v_n, t_n))
                      + max over y of max(0, Delta(y_n, y) + E F(v of y, t_n) - F(v_n, t_n)),

    where Delta is 1 for another class than y_n and 0 for its own. Over a minibatch, a class is
    judged by the captions (pictures) that it has there, and as in the code that the authors
    published all violations count, not the largest alone: with s = ``similarity``,

        mean over n and m of  [y_m != y_n] (max(0, 1 + s_nm - s_nn) + max(0, 1 + s_mn - s_nn)).

    Their minibatches have one picture and one caption each of several classes. Ours are taken as
    they come, so two may be of one class: such pairs cost nothing, but are counted in the mean.

    Args:
        similarity: [b, b], pictures by captions; own pairs on the diagonal.
        classes: [b]; None: each picture is a class of its own.
    """
    similarity = _at_least_float32(similarity)
    if classes is None:
        classes = torch.arange(len(similarity), device=similarity.device)
    own = similarity.diagonal()
    others = classes[:, None] != classes  # [b, b]
    violations = relu(1 + similarity - own[:, None]) + relu(1 + similarity - own)
    return (violations * others).mean()


def _hinge(score: Tensor) -> Tensor:
    return relu(1 + score)


def _at_least_float32(score: Tensor) -> Tensor:
    return score.to(torch.promote_types(score.dtype, torch.float32))
