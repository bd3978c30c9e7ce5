"""Each group of measures, from pictures to values with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from t2i_ray.config import INCEPTION, KINDS, READER
from t2i_ray.evaluate import bootstrap, distances, words
from t2i_ray.evaluate.bootstrap import Interval
from t2i_ray.evaluate.features import FeatureModel
from t2i_ray.evaluate.matching import OTHERS, Matcher, r_precision
from t2i_ray.evaluate.pictures import NOISES, Pictures
from t2i_ray.evaluate.spread import NEAR, Nearest, diversity, nearest
from t2i_ray.evaluate.values import Value


class Taking:
    """Takes groups of measures, all but agreement.

    Args:
        pictures: of which they are.
        models: in whose features distances are taken.
        matchers: that R-precision is taken with.
        resamples: behind an interval; 0: no intervals.
    """

    def __init__(
        self,
        pictures: Pictures,
        models: Sequence[FeatureModel],
        matchers: Sequence[Matcher],
        resamples: int,
    ) -> None:
        self.nearest: Nearest | None = None  # training pictures, by the first model asked
        self._pictures, self._models, self._matchers = pictures, models, matchers
        self._resamples = resamples
        self._by_model: dict[str, Callable[[FeatureModel], list[Value]]] = {
            "frechet": self._frechet,
            "kernel": self._kernel,
            "precision_recall": self._precision_recall,
            "inception_score": self._inception_score,
            "diversity": self._diversity,
            "memory": self._memory,
            "joint": self._joint,
        }

    def __call__(self, group: str) -> list[Value]:
        """The values of one of config.GROUPS, for every model or matcher; none of agreement."""
        if group == "r_precision":
            return [self._r_precision(matcher) for matcher in self._matchers]
        take = self._by_model.get(group)
        return [value for model in self._models for value in take(model)] if take else []

    # ---------------------------------------------------------------------------- distances

    def _frechet(self, model: FeatureModel) -> list[Value]:
        generated, real = self._rows(model, "generated"), self._rows(model, "real")
        return [
            self._distance(
                KINDS["frechet"].name(model.name),
                f"Frechet distance in {_features(model)} to {len(real)} real pictures; comparable "
                "only with the same data, network and number of pictures",
                generated,
                real,
                distances.frechet_distance if model.name == READER else distances.library_frechet,
            )
        ]

    def _joint(self, model: FeatureModel) -> list[Value]:
        pictures = self._pictures
        generated, real = self._rows(model, "generated"), self._rows(model, "real")
        said = words.embed(pictures.prepared, pictures.captions.tolist())
        meant = words.embed(pictures.prepared, pictures.real_captions.tolist())
        scale = distances.joint_scale(real, meant)
        return [
            self._distance(
                KINDS["frechet_joint"].name(model.name),
                f"Frechet joint distance: pictures in {_features(model)} with their captions' "
                f"words (tf-idf, {said.shape[1]} directions, scaled by {scale:.3g})",
                distances.joint(generated, said, scale),
                distances.joint(real, meant, scale),
                distances.library_frechet,
            )
        ]

    def _distance(
        self,
        name: str,
        what: str,
        generated: np.ndarray,
        real: np.ndarray,
        distance: Callable[[np.ndarray, np.ndarray], float],
    ) -> Value:
        value, half = distance(generated, real), len(real) // 2
        seed, resamples = self._pictures.seed, self._resamples
        interval = None
        if resamples:
            to_real = distances.frechet_to(real)
            interval = bootstrap.of_distance(to_real, generated, value, seed, name, resamples)
        return Value(
            name,
            value,
            what,
            len(generated),
            interval,
            resamples,
            reference=distance(real[:half], real[half:]),
            of=f"one half of the {len(real)} real pictures to the other",
        )

    def _kernel(self, model: FeatureModel) -> list[Value]:
        generated, real = self._equally_many(model)
        name = KINDS["kernel"].name(model.name)
        value = distances.kernel_distance(generated, real, subsets=100)
        about_once = -(-len(real) // distances.SUBSET)  # subsets, so that all are in one

        def distance(rows: np.ndarray) -> float:
            return distances.kernel_distance(rows, real, about_once)

        what = f"squared MMD with a cubic kernel in {_features(model)}; unbiased"
        interval = self._resample(name, distance, generated, value)
        return [
            Value(
                name,
                value,
                what,
                len(generated),
                interval,
                self._resamples,
                reference=0.0,
                of="sets of one distribution, on average",
            )
        ]

    def _precision_recall(self, model: FeatureModel) -> list[Value]:
        generated, real = self._equally_many(model)
        shares = distances.precision_and_recall(generated, real)
        where = f"the balls to the 3rd neighbour, in {_features(model)}"
        what = {
            "precision": f"generated pictures that lie among real ones: within {where}",
            "recall": f"real pictures that lie among generated ones: within {where}",
        }
        values = []
        for key, share in zip(what, shares, strict=True):
            within = np.arange(len(real)) < round(share * len(real))
            values.append(self._mean(KINDS[key].name(model.name), what[key], within))
        return values

    def _inception_score(self, model: FeatureModel) -> list[Value]:
        logits = self._pictures.features(model, "generated").logits
        real = self._pictures.features(model, "real").logits
        if model.name != INCEPTION or logits is None or real is None:
            return []
        name, value = "inception_score", distances.inception_score(logits)
        interval = self._resample(name, distances.inception_score, logits, value)
        what = "exp of how far classes seen on a picture differ from those on all, 10 parts"
        return [
            Value(
                name,
                value,
                what,
                len(logits),
                interval,
                self._resamples,
                reference=distances.inception_score(real),
                of=f"{len(real)} real pictures",
            )
        ]

    # ----------------------------------------------------------------------- single pictures

    def _diversity(self, model: FeatureModel) -> list[Value]:
        apart, real = diversity(self._pictures, model)
        what = (
            f"mean distance of {NOISES} pictures of one caption from each other, in "
            f"{_features(model)}; n counts captions"
        )
        name = KINDS["diversity"].name(model.name)
        return [self._mean(name, what, apart, real, "real pictures of all captions")]

    def _memory(self, model: FeatureModel) -> list[Value]:
        found = nearest(self._pictures, model)
        self.nearest = self.nearest or found
        memorised, name = KINDS["memorised"].name(model.name), KINDS["nearest"].name(model.name)
        median = bootstrap.of_statistic(
            lambda at: float(np.median(found.generated[at])),
            len(found.generated),
            self._pictures.seed,
            name,
            self._resamples,
        )
        share = (
            f"generated pictures as near to one of {found.searched} training pictures as 1 % of "
            f"real {self._pictures.split} pictures, in {_features(model)}"
        )
        return [
            self._mean(memorised, share, found.memorised, NEAR, "real pictures, by construction"),
            Value(
                name,
                float(np.median(found.generated)),
                f"median distance to the nearest training picture, in {_features(model)}",
                len(found.generated),
                median,
                self._means(),
                reference=float(np.median(found.real)),
                of="real pictures",
            ),
        ]

    def _r_precision(self, matcher: Matcher) -> Value:
        first, chance = r_precision(self._pictures, matcher)
        by = _matcher(matcher.name)
        what = f"pictures whose own caption comes first among {OTHERS + 1}, by {by}"
        return self._mean(KINDS["r_precision"].name(matcher.name), what, first, chance, "chance")

    # ------------------------------------------------------------------------------- helpers

    def _rows(self, model: FeatureModel, which: str) -> np.ndarray:
        return self._pictures.features(model, which).rows

    def _equally_many(self, model: FeatureModel) -> tuple[np.ndarray, np.ndarray]:
        """Features of the first generated and the first real pictures, as many of both."""
        generated, real = self._rows(model, "generated"), self._rows(model, "real")
        count = min(len(generated), len(real))
        return generated[:count], real[:count]

    def _means(self) -> int:
        return bootstrap.CHEAPER * self._resamples

    def _mean(
        self,
        name: str,
        what: str,
        values: np.ndarray,
        reference: float | None = None,
        of: str = "",
    ) -> Value:
        interval = bootstrap.of_mean(values, self._pictures.seed, name, self._resamples)
        value, count = float(values.mean()), len(values)
        return Value(name, value, what, count, interval, self._means(), reference, of)

    def _resample(
        self, name: str, distance: Callable[[np.ndarray], float], rows: np.ndarray, value: float
    ) -> Interval:
        seed = self._pictures.seed
        return bootstrap.of_distance(distance, rows, value, seed, name, self._resamples)


def _features(model: FeatureModel) -> str:
    known = {READER: "the reader's features", INCEPTION: "Inception's features"}
    return known.get(model.name, f"features of {model.name}")


def _matcher(name: str) -> str:
    known = {
        "discriminator": "the run's own matching head, which the generator was trained to please",
        "matching": "an encoder and a tower that were trained apart, by pretrain-encoder",
    }
    return known.get(name, name)
