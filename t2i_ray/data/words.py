"""Captions as vectors of words, which depend on the data alone: all encoders share them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np
from scipy import sparse

BLOCK = 512  # groups compared with all others at once


def tfidf(fitted: Sequence[str], given: Sequence[str]) -> sparse.csr_array:
    """Rows of unit length, float64 [given, words]; words that are in none of the fitted count not.

    A word weighs how often a caption has it, times 1 + ln((1 + n) / (1 + d)), where d of the n
    fitted captions have it: inverse document frequency (Sparck Jones 1972), smoothed as
    scikit-learn's TfidfVectorizer has it.
    """
    known = {word for caption in fitted for word in _words(caption)}
    places = {word: place for place, word in enumerate(sorted(known))}
    having = np.bincount(_counts(fitted, places).indices, minlength=len(places))
    rows = _counts(given, places).multiply(1 + np.log((1 + len(fitted)) / (1 + having)))
    return _unit(rows)


def nearest(groups: Sequence[Sequence[str]]) -> np.ndarray:
    """For each of at least two groups of captions the most similar other one, int64 [groups].

    By the cosine of their mean tf-idf vectors; of several that are equally similar the first.
    """
    captions = list(itertools.chain.from_iterable(groups))
    group = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    ones = np.ones(len(captions))
    member = sparse.csr_array((ones, (group, np.arange(len(captions)))))
    means = _unit(member @ tfidf(captions, captions))  # a sum's direction is the mean's
    found = np.empty(len(groups), np.int64)
    for start in range(0, len(groups), BLOCK):
        similar = (means[start : start + BLOCK] @ means.T).toarray()
        own = np.arange(len(similar))
        similar[own, start + own] = -np.inf
        # Rounded, so that the last bits of a sum don't decide between equals.
        found[start : start + BLOCK] = similar.round(9).argmax(1)
    return found


def _words(caption: str) -> list[str]:
    return re.findall(r"\w+", caption.lower())


def _counts(captions: Sequence[str], places: dict[str, int]) -> sparse.csr_array:
    """How often each has each word, float64 [captions, words]."""
    found = [[places[word] for word in _words(c) if word in places] for c in captions]
    ends = np.cumsum([0, *map(len, found)])
    columns = np.fromiter(itertools.chain.from_iterable(found), np.int64, ends[-1])
    counts = sparse.csr_array(
        (np.ones(len(columns)), columns, ends), shape=(len(captions), len(places))
    )
    counts.sum_duplicates()
    return counts


def _unit(rows: sparse.sparray) -> sparse.csr_array:
    """Each row over its length; one of nothing stays so."""
    lengths = np.sqrt(rows.multiply(rows).sum(1))
    scale = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return sparse.csr_array(rows.multiply(scale[:, None]))
