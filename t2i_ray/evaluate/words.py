"""Captions as vectors that depend on the data alone, so that all runs on it share them.

Those of a run's own encoder would not do: each run would be measured by vectors of its own making.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from t2i_ray.data import Prepared
from t2i_ray.data.words import tfidf
from t2i_ray.evaluate.features import cannot_import

WIDTH = 64


def embed(prepared: Prepared, captions: Sequence[int]) -> np.ndarray:
    """Latent semantic analysis (Deerwester et al. 1990) of these captions, float64 [n, <= 64].

    Words weighted by tf-idf, reduced to 64 directions by scikit-learn, both fitted to the captions
    of the training split.
    """
    try:
        from sklearn.decomposition import TruncatedSVD
    except Exception as error:
        raise cannot_import("scikit-learn", "measures", error) from None
    training = [i for sample in prepared.ids("train") for i in prepared.captions_of(sample)]
    fitted, wanted = ([prepared.captions[i] for i in ids] for ids in (training, captions))
    counts, given = tfidf(fitted, fitted), tfidf(fitted, wanted)
    if counts.shape[1] <= WIDTH:
        few: np.ndarray = given.toarray()
        return few
    reduced: np.ndarray = (
        TruncatedSVD(WIDTH, algorithm="arpack", random_state=0).fit(counts).transform(given)
    )
    return reduced
