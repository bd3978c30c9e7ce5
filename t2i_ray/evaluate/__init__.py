"""Measures of generated pictures: how often they show what their captions say."""

from t2i_ray.evaluate.measure import Measures, frechet_distance, measure, measured_by, wilson
from t2i_ray.evaluate.reader import Reader, ensure_reader, load_reader

__all__ = [
    "Measures",
    "Reader",
    "ensure_reader",
    "frechet_distance",
    "load_reader",
    "measure",
    "measured_by",
    "wilson",
]
