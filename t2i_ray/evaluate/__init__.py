"""Measures of generated pictures: do they show what their captions say, are they like real ones."""

from t2i_ray.evaluate.agreement import READABLE, Agreement, wilson
from t2i_ray.evaluate.distances import check_libraries, frechet_distance
from t2i_ray.evaluate.features import FeatureModel, Features
from t2i_ray.evaluate.judges import Judges
from t2i_ray.evaluate.matching import Matcher
from t2i_ray.evaluate.measure import measure
from t2i_ray.evaluate.pictures import RealPictures, Seeds, check_split
from t2i_ray.evaluate.reader import Reader, ensure_reader, load_reader
from t2i_ray.evaluate.values import Measures, Value

__all__ = [
    "READABLE",
    "Agreement",
    "FeatureModel",
    "Features",
    "Judges",
    "Matcher",
    "Measures",
    "Reader",
    "RealPictures",
    "Seeds",
    "Value",
    "check_libraries",
    "check_split",
    "ensure_reader",
    "frechet_distance",
    "load_reader",
    "measure",
    "wilson",
]
