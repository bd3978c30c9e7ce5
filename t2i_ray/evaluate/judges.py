"""Who judges a run's pictures: the reader of its data, networks with features, and a matcher.

The same while training and afterwards; made once for a run, whatever it is asked.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from t2i_ray.checkpoint import Checkpoints
from t2i_ray.config import GROUPS, INCEPTION, Config, OwnFeatures, UserError, read_yaml, validate
from t2i_ray.data import Prepared
from t2i_ray.evaluate.distances import check_libraries
from t2i_ray.evaluate.features import FeatureModel, load_own
from t2i_ray.evaluate.inception import OfInception
from t2i_ray.evaluate.matching import PRETRAINED_TENSORS, Matcher, of_pretrained
from t2i_ray.evaluate.reader import Reader, ensure_reader
from t2i_ray.runs import read_run, run_store
from t2i_ray.storage import Store


@dataclass(frozen=True)
class Judges:
    """All of them.

    Attributes:
        reader: of the data; None: the data has no attributes to read.
        models: in whose features distances are taken, besides the reader.
        matchers: that R-precision is taken with.
        about: name of a model -> what it is.
    """

    reader: Reader | None
    models: list[FeatureModel]
    matchers: list[Matcher]
    about: dict[str, str]

    @classmethod
    def find(
        cls, store: Store, prepared: Prepared, config: Config, features: Path | None = None
    ) -> Judges:
        """Those that the section evaluation names; a reader that is not there yet is trained.

        Args:
            store: the root of the storage.
            prepared: the data.
            config: of the run whose pictures are judged.
            features: YAML of a network of the user's own. Only from a command line: it may name a
                Python class.

        Raises:
            UserError: one can't be had.
        """
        evaluation = config.evaluation
        reader = ensure_reader(store, prepared, config.data) if prepared.attributes else None
        models: list[FeatureModel] = []
        matchers: list[Matcher] = []
        about = {}
        if evaluation.inception:
            inception = OfInception(evaluation.inception)
            models.append(inception)
            about[INCEPTION] = f"weights {evaluation.inception}, sha256 {inception.sha256}"
        if name := evaluation.matcher:
            folder = run_store(store, name).within("checkpoints")
            newest = Checkpoints(folder, keep=1).latest(only=PRETRAINED_TENSORS)
            matcher = of_pretrained(name, newest, prepared, config.data)
            models.append(matcher)
            matchers.append(matcher)
            about[matcher.name] = _provenance(store, name, prepared)
        if features:
            own = validate(OwnFeatures, read_yaml(features))
            models.append(load_own(own))
            about[own.name] = f"weights {own.weights}" + (f" in {own.target}" if own.target else "")
        return cls(reader, models, matchers, about)

    def lacking(self) -> dict[str, str]:
        """Groups of measures that can't be taken, and why."""
        lacking = {}
        if not self.reader:
            lacking["agreement"] = "no attributes in this data: nothing to agree with"
        if not self.reader and not self.models:
            by_features = {*GROUPS} - {"agreement", "inception_score", "r_precision"}
            lacking |= dict.fromkeys(by_features, NOTHING)
        if not any(model.name == INCEPTION for model in self.models):
            lacking["inception_score"] = (
                "give Inception's weights by evaluation.inception or --inception"
            )
        if not self.matchers:
            lacking["r_precision"] = (
                "this run's discriminator has no matching head, as train.matching above 0 gives "
                "one; give a run of 't2i-ray pretrain-encoder' by evaluation.matcher or --matcher"
            )
        return lacking

    def able(self, groups: Collection[str]) -> list[str]:
        """Those of the groups that can be taken, in the order of config.GROUPS.

        Raises:
            UserError: none can, or a library that one needs is missing.
        """
        lacking = self.lacking()
        able = [group for group in GROUPS if group in groups and group not in lacking]
        if not able:
            asked = [group for group in GROUPS if group in groups]
            why = lacking[asked[0]] if self.reader or self.models else NOTHING
            raise UserError(f"evaluation.measures=[{', '.join(asked)}]: none can be taken: {why}")
        check_libraries(able)
        if self.models and "frechet" in able:
            check_libraries(["kernel"])  # it is the same library's
        return able


def _provenance(store: Store, matcher: str, prepared: Prepared) -> str:
    record = read_run(store, matcher)
    manifest = store.read_json(f"{record.data}/manifest.json", {}) if record else {}
    other = manifest.get("digest") != prepared.digest
    return f"the tower of the run {matcher}" + (", trained on other data" if other else "")


NOTHING = (
    "no attributes in this data, so no reader to take distances by; give evaluation.matcher or "
    "evaluation.inception, or, to evaluate, --matcher, --inception or --features"
)
