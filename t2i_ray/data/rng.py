"""Counter-based randomness: every draw is a function of what it is for, and of nothing else."""

from __future__ import annotations

import hashlib

import numpy as np


def counter_rng(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A generator that is a pure function of its arguments.

    No state is carried from draw to draw, so any worker can compute any of it, in any order, and
    a resumed run needs no saved state. Philox (Salmon et al. 2011) is keyed by a hash of all the
    arguments; two purposes or counters never share a stream.
    """
    words = ",".join([str(int(seed)), purpose, *(str(int(counter)) for counter in counters)])
    key = int.from_bytes(hashlib.sha256(words.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))
