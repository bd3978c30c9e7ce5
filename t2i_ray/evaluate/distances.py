"""Distances between sets of features, by kept libraries: torchmetrics, and prdc of its authors.

The Frechet distance in the reader's features alone is computed here, since training takes it and
needs no library for it; so are the resamples of every Frechet distance, since the matrix root that
they share is then taken once. A test holds both against torchmetrics.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from t2i_ray.evaluate.features import cannot_import

SUBSET = 1000  # pictures of a kernel distance's subset (Binkowski et al. 2018)
NEIGHBOURS = 3  # of precision and recall (Kynkaanniemi et al. 2019)
SPLITS = 10  # of the Inception Score (Salimans et al. 2016)


# -------------------------------------------------------------------------------- Frechet


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of the normal distributions fitted to two sets of rows.

    |m - n|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), with means m, n and covariances A, B (Dowson
    and Landau 1982). Biased upwards by small sets, so compare only equal numbers of rows.

    Args:
        a: float [rows, d], at least two rows.
        b: float [rows, d], likewise.
    """
    return frechet_to(a)(b)


def frechet_to(a: np.ndarray) -> Callable[[np.ndarray], float]:
    """The Frechet distance to a set of rows, whose covariance is rooted once."""
    cov_a = np.atleast_2d(np.cov(a, rowvar=False))
    mean_a, root = a.mean(0), _square_root(cov_a)

    def distance(b: np.ndarray) -> float:
        cov_b = np.atleast_2d(np.cov(b, rowvar=False))
        cross = np.linalg.eigvalsh(root @ cov_b @ root).clip(0)
        apart = float(((mean_a - b.mean(0)) ** 2).sum())
        spread = float(np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(cross).sum())
        return max(0.0, apart + spread)

    return distance


def _square_root(symmetric: np.ndarray) -> np.ndarray:
    """Of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(symmetric)
    root: np.ndarray = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return root


def library_frechet(generated: np.ndarray, real: np.ndarray) -> float:
    """The same by torchmetrics, from features [n, d] and [m, d], two rows or more each."""
    with _torchmetrics() as library:
        metric = library.fid.FrechetInceptionDistance(feature=_Given(generated.shape[1]))
        metric.update(torch.from_numpy(real), real=True)
        metric.update(torch.from_numpy(generated), real=False)
        return float(metric.compute())


def joint(features: np.ndarray, captions: np.ndarray, scale: float) -> np.ndarray:
    """Features [n, d] beside their captions' embeddings [n, e], scaled: [n, d + e].

    The Frechet distance of such rows is the Frechet joint distance (DeVries et al. 2019).
    """
    return np.concatenate([features, scale * captions], axis=1)


def joint_scale(features: np.ndarray, captions: np.ndarray) -> float:
    """Mean norm of real features over mean norm of their captions' embeddings (DeVries et al.)."""
    return float(np.linalg.norm(features, axis=1).mean() / np.linalg.norm(captions, axis=1).mean())


# --------------------------------------------------------------------------- other measures


def kernel_distance(generated: np.ndarray, real: np.ndarray, subsets: int) -> float:
    """Squared MMD with the kernel (x.y / d + 1)^3, unbiased (Binkowski et al. 2018, KID).

    Args:
        generated: float64 [n, d].
        real: float64 [n, d].
        subsets: mean of so many random subsets of 1000 each; of fewer rows there is but one.
    """
    size = min(SUBSET, len(generated), len(real))
    with _torchmetrics() as library:
        metric = library.kid.KernelInceptionDistance(
            feature=_Given(generated.shape[1]),
            subsets=subsets if size < len(generated) else 1,
            subset_size=size,
        )
        metric.update(torch.from_numpy(real), real=True)
        metric.update(torch.from_numpy(generated), real=False)
        return float(metric.compute()[0])


def inception_score(logits: np.ndarray) -> float:
    """The exponent of how far p(y|x) is from p(y), mean of 10 parts (Salimans et al. 2016).

    Args:
        logits: float64 [n, classes].
    """
    with _torchmetrics() as library:
        metric = library.inception.InceptionScore(feature=_Given(logits.shape[1]), splits=SPLITS)
        metric.update(torch.from_numpy(logits))
        return float(metric.compute()[0])


def precision_and_recall(generated: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """Shares of each set within the other's balls to the third neighbour, [n, d] both.

    By prdc (Naeem et al. 2020), which measures precision and recall as Kynkaanniemi et al. 2019.
    Fewer than five pictures have fewer neighbours.
    """
    try:
        import prdc
    except Exception as error:
        raise cannot_import("prdc", "measures", error) from None
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the two counts
        found = prdc.compute_prdc(real, generated, nearest_k=min(NEIGHBOURS, len(real) - 2))
    return float(found["precision"]), float(found["recall"])


def check_libraries(groups: Collection[str]) -> None:
    """Raise UserError if a library of these groups of measures can't be imported."""
    if {"kernel", "inception_score", "joint"} & {*groups}:
        with _torchmetrics():
            pass
    if "precision_recall" in groups:
        few = np.eye(4)
        precision_and_recall(few, few)


class _Given(nn.Module):
    """The feature module of a metric that is handed features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, rows: Tensor) -> Tensor:
        return rows


@contextlib.contextmanager
def _torchmetrics() -> Iterator[Any]:
    """The library; its warnings silent, its random subsets always the same, ours left alone."""
    try:
        from torchmetrics import image
        from torchmetrics.image import fid, inception, kid  # noqa: F401
    except Exception as error:  # a torchvision of another build raises RuntimeError
        raise cannot_import("torchmetrics", "measures", error) from None
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # of large buffers
        torch.manual_seed(0)
        yield image
