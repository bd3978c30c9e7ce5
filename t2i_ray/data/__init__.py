"""Data: from a source of pictures and captions to the pieces that a step is fed."""

from t2i_ray.data.batches import Batches, Piece
from t2i_ray.data.changed import ChangedCaptions
from t2i_ray.data.prepare import prepare
from t2i_ray.data.prepared import Manifest, Prepared, open_prepared
from t2i_ray.data.rng import counter_rng
from t2i_ray.data.sources import resolved
from t2i_ray.data.wrong import WrongCaptions

__all__ = [
    "Batches",
    "ChangedCaptions",
    "Manifest",
    "Piece",
    "Prepared",
    "WrongCaptions",
    "counter_rng",
    "open_prepared",
    "prepare",
    "resolved",
]
