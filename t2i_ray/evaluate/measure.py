"""Take the measures that were chosen, from one set of generated pictures."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from t2i_ray import config
from t2i_ray.config import GROUPS, WHILE_TRAINING
from t2i_ray.data import Prepared
from t2i_ray.evaluate.agreement import Agreement, agreements_of, mean_interval
from t2i_ray.evaluate.bootstrap import Interval
from t2i_ray.evaluate.features import FeatureModel, OfReader
from t2i_ray.evaluate.matching import Matcher
from t2i_ray.evaluate.pictures import Generate, Pictures, RealPictures
from t2i_ray.evaluate.reader import Reader
from t2i_ray.evaluate.taking import Taking
from t2i_ray.evaluate.values import Measures


def measure(
    reader: Reader | None,
    prepared: Prepared,
    generate: Generate,
    *,
    split: str,
    count: int,
    seed: int = 0,
    chosen: Collection[str] = WHILE_TRAINING,
    models: Sequence[FeatureModel] = (),
    matchers: Sequence[Matcher] = (),
    data: config.Data | None = None,
    resamples: int = 0,
    real: RealPictures | None = None,
) -> Measures:
    """Generate from captions of a split and measure what came out.

    Captions and resamples depend on seed, split and count alone; no global state is touched.

    Args:
        reader: of this data and picture size; None: data has no attributes.
        prepared: the data.
        generate: caption ids int64 [n <= 256] to uint8 pictures [n, S, S, 3], each of a new noise.
        split: whose captions, and whose real pictures, are used.
        count: pictures to generate.
        seed: of the choice of captions, and of resamples.
        chosen: groups of measures, of config.GROUPS.
        models: in whose features distances are taken besides the reader's.
        matchers: that R-precision is taken with.
        data: config of the data; None: the reader's.
        resamples: behind the interval of a distance, means have five times as many; 0: none.
        real: the split's real pictures, if they are kept from one evaluation to the next.

    Raises:
        UserError: the split has fewer than four pictures, or a library is missing.
    """
    data = data or (reader.data if reader else None)
    if data is None:
        raise ValueError("measure: give a reader, or data")
    pictures = Pictures(prepared, data, generate, split, count, seed, real)
    by_reader = [OfReader(reader)] if reader else []
    taking = Taking(pictures, [*by_reader, *models], matchers, resamples)
    agreements: list[Agreement] = []
    interval = None
    if reader and "agreement" in chosen:
        agreements, interval = _agreements(
            pictures, by_reader[0], reader, prepared, seed, resamples
        )
    others = [value for group in GROUPS if group in chosen for value in taking(group)]
    return Measures(
        split=split,
        count=count,
        seed=seed,
        agreements=agreements,
        mean_interval=interval,
        others=others,
        resamples=resamples,
        real_count=len(pictures.real),
        nearest=taking.nearest,
    )


def _agreements(
    pictures: Pictures,
    model: FeatureModel,
    reader: Reader,
    prepared: Prepared,
    seed: int,
    resamples: int,
) -> tuple[list[Agreement], Interval]:
    """What the reader sees in the pictures against what captions say, and the mean's interval."""
    read = pictures.features(model, "generated").values or {}
    told = prepared, pictures.samples, pictures.captions
    agreements = agreements_of(read, reader.accuracy, *told)
    return agreements, mean_interval(agreements, read, *told, seed, resamples)
