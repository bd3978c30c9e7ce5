"""What is looked at while a run trains: metrics in Prometheus, profiles, the Train page, logs."""

from __future__ import annotations

import gzip
import json
import logging
import re
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.parser import text_string_to_metric_families
from ray_cluster import RayCluster
from runner import Runner, finish, until
from servers import free_port
from small_configs import write_config

from t2i_ray.config import UserError, identity_hash, load_config
from t2i_ray.data import prepare
from t2i_ray.launch.gauges import exported
from t2i_ray.lines import lines_of
from t2i_ray.storage import open_store
from t2i_ray.tracking import describe
from t2i_ray.train import GAUGES, Job, Worker, train, watch
from t2i_ray.train.watch import LOSS

DASHBOARD = Path(__file__).parent.parent / "cluster/grafana/t2i_ray.json"
PAGE = Path(__file__).parent.parent / "docs/operations.md"
EVERY_RANK = {"step_seconds", "data_wait_share"}

# ---------------------------------------------------------------------------------- profiles


@pytest.mark.parametrize(
    ("window", "says"),
    [
        ("10", "train.profile=10: write it as START..STOP"),
        ("a..b", "train.profile=a..b: write it as START..STOP"),
        ("-1..3", "train.profile=-1..3: write it as START..STOP"),
        ("5..5", "train.profile=5..5: it stops where it starts"),
        ("9..4", "train.profile=9..4: it stops where it starts, or before; write e.g. 9..19"),
        ("50..61", "train.profile=50..61: the run has train.steps=60"),
    ],
)
def test_windows_that_are_refused(tmp_path: Path, window: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(write_config(tmp_path, "bad"), [f"train.profile={window}"])
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_window_is_no_part_of_what_the_run_is(tmp_path: Path) -> None:
    path = write_config(tmp_path, "run")
    assert load_config(path, ["train.profile=null"]).train.profiled == range(0)
    config = load_config(path, ["train.profile=0..60"])
    assert config.train.profiled == range(60)
    assert identity_hash(config, "d") == identity_hash(load_config(path), "d")
    with pytest.raises(UserError, match="at most 100 steps"):
        load_config(path, ["train.steps=500", "train.profile=0..101"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("watch")


def train_here(
    folder: Path, name: str, *overrides: str, until: int | None = None
) -> list[dict[str, float]]:
    """Train in this process, without Ray, and give what was shown."""
    options = ["train.steps=12", "checkpoint.every=6", "train.sample_every=0", *overrides]
    config = load_config(write_config(folder, name), options)
    data = prepare(config.data, open_store(config.storage))
    about = describe(config, key=name).to_json()
    shown: list[dict[str, float]] = []
    outcome = train(
        Job(config.model_dump(mode="json"), data, None, about, until=until),
        Worker(),
        show=lambda values: shown.append(dict(values)),
    )
    assert outcome.status == ("FINISHED" if until is None else "RUNNING")
    return shown


def weights(folder: Path, name: str) -> dict[str, str]:
    """sha256 of every tensor file of the last checkpoint: networks, optimisers, the curve."""
    path = folder / f"store/runs/{name}/checkpoints/step_00000012/manifest.json"
    files = json.loads(path.read_text())["files"]
    return {file: sums["sha256"] for file, sums in files.items() if file.endswith(".safetensors")}


@pytest.fixture(scope="module")
def plain(folder: Path) -> dict[str, str]:
    """The weights of a run that was not profiled."""
    train_here(folder, "plain", "tracking.enabled=false")
    assert not (folder / "store/runs/plain/profile").exists()
    return weights(folder, "plain")


def traced(folder: Path, name: str) -> dict[str, list[str]]:
    """By file of a run's profile, the updates that are in its trace."""
    found = {}
    for file in sorted((folder / f"store/runs/{name}/profile").glob("*.json.gz")):
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
        names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
        found[file.name] = [n for n in names if n.startswith("update ")]
        assert any(event["name"] == "aten::mm" and event["dur"] >= 0 for event in events)
    return found


def test_a_profile_is_kept_and_changes_nothing(folder: Path, plain: dict[str, str]) -> None:
    train_here(folder, "traced", "train.profile=3..5")
    assert traced(folder, "traced") == {"steps_00000004_00000005.json.gz": ["update 4", "update 5"]}
    assert weights(folder, "traced") == plain
    table = (folder / "store/runs/traced/profile/steps_00000004_00000005.txt").read_text()
    assert table.startswith("Updates 4 to 5 of rank 0")
    assert "aten::mm" in table
    (shown,) = (folder / "store/mlartifacts").glob("*/artifacts/profile/*.json.gz")
    assert shown.name == "steps_00000004_00000005.json.gz"


def test_a_run_that_goes_on_within_its_window(folder: Path, plain: dict[str, str]) -> None:
    options = ("train.profile=3..8", "tracking.enabled=false")
    train_here(folder, "halved", *options, until=6)
    assert traced(folder, "halved") == {}
    train_here(folder, "halved", *options)
    assert traced(folder, "halved") == {"steps_00000007_00000008.json.gz": ["update 7", "update 8"]}
    assert weights(folder, "halved") == plain


def test_values_are_shown_without_ray(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "EVERY", 0.0)  # not once a second, but after each update
    shown = train_here(folder, "shown", "tracking.enabled=false")
    assert len(shown) == 12
    losses = {LOSS + name for name in ("d_loss", "g_loss", "d_acc_real", "d_acc_fake")}
    for values in shown:
        assert set(values) >= GAUGES.keys() | losses
        assert 0 < values["data_wait_share"] < 1
        assert 0 < values["step_seconds"] < 16 / values["images_per_second"] * 1.01
        assert 0 <= values["checkpoint_lag_steps"] <= 12  # every 6, and one may be on its way
        assert values["spool_rows"] == values["mlflow_outage_seconds"] == 0
    assert [values["step"] for values in shown] == list(range(1, 13))


# -------------------------------------------------------------------------------------- logs


def test_log_lines_begin_with_the_runs_name(caplog: pytest.LogCaptureFixture) -> None:
    ours, others = logging.getLogger("t2i_ray.tracking"), logging.getLogger("t2i_raylet")
    with lines_of("demo"):
        ours.warning("%s is away", "MLflow")
        others.warning("not %s", "ours")
    ours.warning("%d%%", 7)
    assert caplog.messages == ["demo: warning: MLflow is away", "not ours", "7%"]


# -------------------------------------------------------------------- on a cluster: Prometheus


def samples(cluster: RayCluster, run: str) -> dict[tuple[str, str], tuple[float, dict[str, str]]]:
    """What Prometheus would read of a run: by name and rank, the value and all labels."""
    url = f"http://127.0.0.1:{cluster.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, sample.labels["rank"]): (sample.value, sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("ray_t2i_") and sample.labels["run"] == run
    }


def names_on(cluster: RayCluster) -> set[str]:
    """Every name that the node exports."""
    url = f"http://127.0.0.1:{cluster.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {sample.name for family in families for sample in family.samples}


def api(cluster: RayCluster, path: str) -> Any:
    """What the dashboard answers."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{cluster.dashboard_port}{path}",
        headers={"Authorization": f"Bearer {cluster.token}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_a_run_in_prometheus_in_grafana_and_on_the_train_page(runner: Runner) -> None:
    """Two workers; the run also has no MLflow, so as to warn, and is stopped when all was seen."""
    cluster, name = runner.cluster, "watched"
    process = runner.start_training(
        name, "cluster.workers=2", "train.steps=200000", "checkpoint.every=20",
        f"tracking.uri=http://127.0.0.1:{free_port()}",
    )  # fmt: skip
    try:
        both = [(f"ray_{exported('step_seconds')}", rank) for rank in "01"]
        until(lambda: samples(cluster, name).keys() >= {*both, ("ray_t2i_step", "0")})
        until(lambda: samples(cluster, name)["ray_t2i_mlflow_outage_seconds", "0"][0] > 0)
        seen, names = samples(cluster, name), names_on(cluster)
        runs = api(cluster, "/api/train/v2/runs/v1")["train_runs"]
    finally:
        process.send_signal(signal.SIGTERM)
        output = finish(process, code=128 + signal.SIGTERM)

    own = {(f"ray_t2i_{gauge}", "0") for gauge in GAUGES}
    others = {(f"ray_t2i_{gauge}", "1") for gauge in EVERY_RANK}
    losses = {(f"ray_t2i_{LOSS}{x}", "0") for x in ("d_loss", "g_loss", "d_acc_real")}
    assert seen.keys() >= own | others | losses
    assert {rank for key, rank in seen if key not in {f"ray_t2i_{x}" for x in EVERY_RANK}} == {"0"}
    ours = {frozenset(labels) - RAYS_LABELS for _, labels in seen.values()}
    assert ours == {frozenset({"run", "rank"})}
    assert seen["ray_t2i_spool_rows", "0"][0] > 0
    assert seen["ray_t2i_steps", "0"][0] == 200000

    assert metrics_in(dashboard()) - names == set()
    patterns = re.findall(r'__name__=~"([^"]+)"', " ".join(expressions(dashboard())))
    assert all(any(re.fullmatch(pattern, name) for name in names) for pattern in patterns)

    (run,) = (run for run in runs if run["name"] == f"{name}-1")
    assert run["status"] == "RUNNING"
    assert len(run["attempts"][0]["workers"]) == 2

    warned = [line for line in output.splitlines() if "the metrics wait" in line]
    assert warned
    assert all(f"{name}: warning: MLflow: " in line for line in warned)
    key = runner.record(name).key
    assert f"{name}: attempt 1 of {key}, 2 workers" in output


#: Which Ray adds: where it was.
RAYS_LABELS = {
    "Component", "NodeAddress", "SessionName", "Version", "WorkerId",
    "otel_scope_name", "otel_scope_schema_url", "otel_scope_version",
}  # fmt: skip

# ------------------------------------------------------------------------------------ Grafana


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return document


def expressions(document: dict[str, Any]) -> Iterator[str]:
    for panel in document["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    for variable in document["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def metrics_in(document: dict[str, Any]) -> set[str]:
    """Every metric that is named outright."""
    return {name for text in expressions(document) for name in re.findall(r"ray_\w+\b(?!\.)", text)}


def test_the_dashboard_is_of_grafanas_shape() -> None:
    """Its dashboard model of schema version 39, as far as a panel's place and data go."""
    document = dashboard()
    assert document["schemaVersion"] == 39
    assert document["uid"] == "t2i-ray"
    assert {"title", "time", "refresh", "annotations", "templating"} <= document.keys()
    variables = {variable["name"] for variable in document["templating"]["list"]}
    assert variables == {"datasource", "run"}
    panels = document["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["type"] in ("stat", "timeseries")
        assert panel["description"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        assert panel["fieldConfig"]["defaults"]["unit"]
    used = {name for text in expressions(document) for name in re.findall(r"\$(\w+)", text)}
    assert used == {"run"}


def test_the_dashboard_shows_every_gauge() -> None:
    shown = metrics_in(dashboard())
    assert {f"ray_t2i_{gauge}" for gauge in GAUGES} <= shown


def test_grafanas_own_types_read_the_dashboard() -> None:
    """Nothing is lost on the way."""
    register_default_plugins()
    document = dashboard()
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(document)))
    assert again == document | again  # it adds defaults


def test_the_page_on_operations_names_every_metric() -> None:
    page = PAGE.read_text()
    for gauge, about in GAUGES.items():
        assert f"| `ray_t2i_{gauge}` | {about.rstrip('.')}" in page, gauge
