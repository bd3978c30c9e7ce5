"""Captions as vectors that depend on the data alone, so that all runs on it share them.

Those of a run's own encoder would not do: each run would be measured by vectors of its own making.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from t2i_ray.data import Prepared
from t2i_ray.evaluate.features import cannot_import

WIDTH = 64


def embed(prepared: Prepared, captions: Sequence[int]) -> np.ndarray:
    """Latent semantic analysis (Deerwester et al. 1990) of these captions, float64 [n, <= 64].

    Words weighted by tf-idf, reduced to 64 directions, both fitted to the captions of the training
    split by scikit-learn.
    """
    try:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
    except Exception as error:
        raise cannot_import("scikit-learn", "measures", error) from None
    words = TfidfVectorizer(token_pattern=r"\w+")
    training = np.concatenate([prepared.captions_of(sample) for sample in prepared.ids("train")])
    counts = words.fit_transform([prepared.captions[i] for i in training])
    given = words.transform([prepared.captions[i] for i in captions])
    if counts.shape[1] <= WIDTH:
        few: np.ndarray = given.toarray()
        return few
    reduced: np.ndarray = (
        TruncatedSVD(WIDTH, algorithm="arpack", random_state=0).fit(counts).transform(given)
    )
    return reduced
