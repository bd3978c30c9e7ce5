"""What MLflow is told of a run besides its metrics: params, tags, files, the dataset.

Everything here is text, made before MLflow is met, and fits into the checkpoint beside the
spool: so a run can be published in full by a later process. Of environment variables only those
with secrets are read, to leave their values out.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import yaml

from t2i_ray.config import Config, flatten

PARAM_LENGTH = 6000  # MLflow's limits, characters
TAG_LENGTH = 8000
DIFF_LENGTH = 200_000  # ours: the diff travels in every checkpoint

RUN_TAG = "t2i_ray.run"  # by which a run is found again
ATTEMPT_TAG = "t2i_ray.attempt"  # by which a zombie is fenced off
STEP_TAG = "t2i_ray.step"  # up to which step the history is committed
ROLLBACKS_TAG = "t2i_ray.rollbacks"  # where a run went back, and why
FALLBACKS_TAG = "t2i_ray.wrong_fallbacks"  # how often there was no caption as data.wrong has it
REASON_TAG = "t2i_ray.reason"  # why a run failed or was stopped

# Where secrets stand: in URIs, and in variables of these names, unless they are shorter.
# A database's password may hold a slash.
USER_INFO = re.compile(r"(?i)(sql[+\w]*://)[^\s/:@'\"]*:[^\s'\"]*@|(://)[^\s/'\"]*@")
QUERY = re.compile(
    r"(?i)(?<=[?&;])(\w*(?:pass|pwd|secret|token|api_?key|odbc_connect)\w*)=[^&\s'\"]+"
)
SECRET_NAME = re.compile(r"(?i)(secret|password|passwd|token|_key)$")
SECRET_LENGTH = 8


@dataclass(frozen=True)
class Dataset:
    """The prepared data: enough to find it and to know it again."""

    name: str
    digest: str
    uri: str


@dataclass(frozen=True)
class About:
    """A logical run.

    Attributes:
        key: what the run is, in every attempt, e.g. ``<name>-<identity hash>``.
        name: how MLflow lists it.
        attempt: counts the starts of the run, from 1; the highest may publish.
        params: flat, dotted names.
        tags: shown beside the params; a later attempt's replace an earlier one's.
        texts: artifact path -> content.
    """

    key: str
    name: str
    attempt: int = 1
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    dataset: Dataset | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain mapping."""
        return asdict(self)

    def here(self) -> About:
        """The same run, at work in this process: its versions and hardware."""
        own = {name: tag(value) for name, value in {**environment(), **hardware()}.items()}
        return replace(self, tags={**self.tags, **own})

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> About:
        """The inverse of to_json."""
        fields = dict(document)
        dataset = fields.pop("dataset")
        return cls(**fields, dataset=Dataset(**dataset) if dataset else None)


def describe(
    config: Config,
    *,
    key: str,
    attempt: int = 1,
    dataset: Dataset | None = None,
    git_commit: str | None = None,
    git_diff: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> About:
    """What there is to say about one attempt of a configured run.

    Args:
        config: the resolved config.
        key: what the run is, in every attempt: its name and its identity hash.
        attempt: counts the starts of the run, from 1.
        dataset: the prepared data.
        git_commit: full hash.
        git_diff: of the working tree against that commit.
        tags: any others, e.g. the parent of a trial.
    """
    document = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    files = {"config.yaml": scrub(document)}
    if git_diff:
        files["git.diff"] = cut(scrub(git_diff), DIFF_LENGTH)
    # Later attempts may differ in operational fields, so each keeps its own files. The newest's
    # are in the root, too: those before it may have died before they could say anything.
    folders = [""] if attempt == 1 else ["", f"attempt_{attempt}/"]
    texts = {f"{folder}{name}": text for folder in folders for name, text in files.items()}
    every_tag = {
        "mlflow.source.name": "t2i_ray",
        "mlflow.source.type": "JOB",
        **environment(),
        **hardware(),
        **(tags or {}),
    }
    if git_commit:
        every_tag["mlflow.source.git.commit"] = git_commit
        every_tag["t2i_ray.git_diff"] = "yes" if git_diff else "none"
    return About(
        key=key,
        name=config.name,
        attempt=attempt,
        params={name: param(value) for name, value in flatten(config).items()},
        tags={name: tag(value) for name, value in every_tag.items()},
        texts=texts,
        dataset=dataset,
    )


def param(value: Any) -> str:
    """A config value as it would be written in an override, without secrets, at most as long
    as MLflow takes.
    """
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return cut(scrub(text), PARAM_LENGTH)


def tag(value: str) -> str:
    """A tag without secrets, at most as long as MLflow takes."""
    return cut(scrub(value), TAG_LENGTH)


def cut(text: str, length: int) -> str:
    """At most ``length`` characters; what is cut still counts, by a hash at the end."""
    if len(text) <= length:
        return text
    digest = hashlib.sha256(text.encode("utf8", "surrogatepass")).hexdigest()[:12]
    end = f" ... [{len(text)} characters, sha256 {digest}]"
    return text[: length - len(end)] + end


def scrub(text: str) -> str:
    """The text without secrets.

    Those are the ``user:password@`` and the ``?password=...`` of any URI in it, and the values of
    this process's environment variables whose names end as SECRET_NAME says.
    """
    text = QUERY.sub(r"\1=***", without_user(text))
    for form in sorted(_forms_of_secrets(), key=len, reverse=True):
        text = text.replace(form, "***")
    return text


def without_user(text: str) -> str:
    """The text, without ``user:password@`` in any URI in it."""
    return USER_INFO.sub(r"\1\2", text)


def _forms_of_secrets() -> set[str]:
    """As a message may hold them: whole, a line, in the ``repr`` of another text, in a URL."""
    values = [value for name, value in os.environ.items() if SECRET_NAME.search(name)]
    parts = {part.strip() for value in values for part in (value, *value.splitlines())}
    escaped = (
        lambda text: repr(text)[1:-1],
        lambda text: json.dumps(text)[1:-1],
        quote,
        quote_plus,
        lambda text: quote(text, safe=""),
    )
    forms = {form for part in parts for form in (part, *(escape(part) for escape in escaped))}
    return {form for form in forms if len(form) >= SECRET_LENGTH}


def environment() -> dict[str, str]:
    """Versions that a curve may depend on, read without importing the packages."""
    versions = {"env.python": platform.python_version(), "env.platform": platform.platform()}
    for package in ("t2i-ray", "torch", "ray", "mlflow", "transformers", "numpy"):
        try:
            versions[f"env.{package}"] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def hardware() -> dict[str, str]:
    """Processor, cores this process may use, memory, and GPUs if torch is loaded here."""
    found = {
        "hw.cpu": _cpu_model(),
        "hw.cores": str(
            len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
        ),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found["hw.memory_gib"] = f"{memory / 2**30:.1f}"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found["hw.gpus"] = ", ".join(names)
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
