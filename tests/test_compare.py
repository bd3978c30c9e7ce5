"""Runs compared: honest numbers, every kind of end told, pages that are safe to open."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.entities import Metric
from mlflow_server import MlflowServer
from past import CAPTIONS, Past, encoders_sweep
from PIL import Image
from scipy import stats

from t2i_ray import report
from t2i_ray.cli import main
from t2i_ray.compare import Comparison, compare, figures, log_to_parent, report_sweep
from t2i_ray.compare.page import text
from t2i_ray.compare.publish import write_files
from t2i_ray.compare.sections import left_out, sections
from t2i_ray.compare.settings import _differing, to_trials
from t2i_ray.compare.statistics import (
    mean,
    paired_difference,
    pareto_front,
    standard_error,
    t_interval,
)
from t2i_ray.compare.style import LIGHT, colours_of
from t2i_ray.config import UserError, flatten, operational_names, parse_config
from t2i_ray.config.identity import identity_of
from t2i_ray.tracking import PastRun
from t2i_ray.tracking.about import param

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="session")
def past(tmp_path_factory: pytest.TempPathFactory) -> Past:
    """A database with all that is compared here."""
    folder = tmp_path_factory.mktemp("past")
    past = Past(f"sqlite:///{folder}/mlflow.db", folder, "small", steps=8)
    encoders_sweep(past)
    past.grids = False
    past.sweep("empty")
    past.sweep("rates", "val/frechet_reader")
    for seed in (0, 1, 2):
        for rate, score in ((0.1, 0.5), (0.2, 0.5 + 0.01 * seed)):
            past.trial("rates", {"encoder": "bigru", "optim.lr_g": rate}, seed, score)
    past.trial("rates", {"encoder": "bigru", "optim.lr_g": 0.2}, 3, 0.9, status="RUNNING")
    past.trial("rates", {"encoder": "bigru", "optim.lr_g": 0.1}, 4, 0.9, reason="pruned at step 2",
               status="KILLED")  # fmt: skip
    params = {"encoder.kind": "bigru", "train.steps": "8", "storage.uri": "/a"}
    past.run("plain", params=params, scores={"val/agreement/mean": 0.5})
    past.run("slow $x", params=params | {"optim.lr_g": "0.1", "storage.uri": "/b"}, curves=False)
    frozen = {"encoder.kind": "huggingface", "encoder.model": "xlnet/xlnet-base-cased"}
    past.run("frozen", params=params | frozen | {"optim.lr_g": "0.2"})
    past.run("someone else's", scores={"accuracy": 1.0})
    past.run("twin", params=params)
    past.run("twin", params=params)
    return past


@pytest.fixture(scope="session")
def confirmed(past: Past) -> Comparison:
    return compare(["encoders"], past.uri)


# ------------------------------------------------------------------------------ statistics


def test_statistics_are_those_of_the_book() -> None:
    values = [2.0, 4.0, 4.0, 6.0]  # deviation sqrt(8 / 3)
    assert mean(values) == 4
    assert standard_error(values) == pytest.approx((8 / 3) ** 0.5 / 2)
    interval = t_interval(values)
    assert interval is not None
    assert interval[1] - 4 == pytest.approx(3.182446 * (8 / 3) ** 0.5 / 2, rel=1e-6)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval == pytest.approx((expected.low, expected.high))
    assert (mean([]), standard_error([1.0]), t_interval([1.0])) == (None, None, None)


def test_a_difference_is_paired_by_seed() -> None:
    one = {5: 0.71, 1: 0.60, 2: 0.65, 9: 9.0}
    other = {1: 0.58, 2: 0.62, 5: 0.70, 4: -9.0}
    found = paired_difference(one, other)
    assert found.seeds == (1, 2, 5)
    assert found.only_one == (4, 9)
    assert found.mean == pytest.approx(0.02)  # of 0.02, 0.03, 0.01
    expected = stats.ttest_rel([0.60, 0.65, 0.71], [0.58, 0.62, 0.70]).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high))
    assert not found.shown  # 0.02 -+ 4.30 * 0.01 / sqrt(3) holds zero
    assert paired_difference({1: 0.5}, {1: 0.4}).interval is None
    assert paired_difference({1: 0.5}, {2: 0.4}).mean is None
    assert paired_difference({1: 0.5, 2: 0.6}, {1: 0.4, 2: 0.5}).shown


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([(3, 1)], [0]),
        ([(1, -1), (2, -2), (3, -3)], [0, 1, 2]),
        ([(3, -1), (2, -2), (1, -3)], [2]),
        ([(1, -5), (1, -6), (2, -6)], [1]),  # dearer and no better
        ([(1, -5), (2, -7), (1, -5)], [0, 2, 1]),  # equal ones share their place
        ([(1, -5), (2, -4), (3, -6), (4, -5.5)], [0, 2]),
        ([(1, 2, 3), (2, 1, 3), (2, 2, 2), (2, 2, 3)], [0, 1, 2]),
    ],
)
def test_pareto_front(points: list[tuple[float, ...]], front: list[int]) -> None:
    assert pareto_front(points) == front


# ------------------------------------------------------------------------ what is compared


def test_every_measure_of_each_contender(confirmed: Comparison) -> None:
    (section,) = [each for each in sections(confirmed) if each.title == "All measures"]
    assert section.table is not None
    assert section.table.columns == ("measure", "better", *confirmed.contenders)
    rows = {row[0]: row[1:] for row in section.table.rows}
    assert rows.keys() == {"agreement/mean", "frechet_reader"}
    better, *cells = rows["frechet_reader"]
    assert better == "smaller"
    for row, cell in zip(confirmed.contenders.values(), cells, strict=True):
        values = [90 - 80 * score for score in row.scores.values()]
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert cell == f"{np.mean(values):.4f} ± {(high - low) / 2:.4f}"


def test_the_answer_comes_from_the_confirmation_alone(past: Past, confirmed: Comparison) -> None:
    assert confirmed.stage == "confirm"
    assert confirmed.metric_of("confirm") == "test/agreement/mean"
    assert [len(row.scores) for row in confirmed.rows] == [5, 5, 5]
    for row in confirmed.rows:
        assert sorted(row.scores) == [100, 101, 102, 103, 104]
        logged = [
            run.metrics["test/agreement/mean"]
            for run in confirmed.runs
            if run.tags["t2i_ray.setting"] == row.setting and run.tags["t2i_ray.stage"] == "confirm"
        ]
        assert row.mean == pytest.approx(sum(logged) / 5)
    assert list(confirmed.contenders)[-1] == "bigru"
    best, second = confirmed.contenders[EVIL], confirmed.contenders["minilm"]
    expected = stats.ttest_rel(list(best.scores.values()), list(second.scores.values()))
    low, high = expected.confidence_interval(0.95)
    assert f"[{low:.4f}, {high:.4f}]" in confirmed.headline
    assert f"{EVIL} beats minilm by" in confirmed.headline
    assert "5 paired seeds" in confirmed.headline
    assert not [w for w in confirmed.warnings if "flattered" in w or "Few seeds" in w]


def test_only_what_finished_is_averaged_and_the_rest_is_listed(confirmed: Comparison) -> None:
    counts = {row.setting: row for row in confirmed.search}
    pruned = counts["encoder=bigru, lr_g=0.0003"]
    assert (sorted(pruned.scores), pruned.count("pruned")) == ([0, 1], 1)
    failed = counts["encoder=minilm, lr_g=0.0003"]
    assert (sorted(failed.scores), failed.count("failed")) == ([0, 2], 1)
    listed = left_out(confirmed)
    assert sorted(row[3] for row in listed) == ["failed", "pruned", "pruned"]
    assert any("g_loss is NaN at step 12" in row[4] for row in listed)
    assert {row.metric for row in confirmed.search} == {"val/agreement/mean"}


def test_a_search_is_told_to_flatter(past: Past) -> None:
    found = compare(["rates"], past.uri)
    assert found.metric == "val/frechet_reader"
    assert not found.larger
    low, high = found.rows  # the smaller mean first
    assert list(low.values.items()) == [("encoder", "bigru"), ("optim.lr_g", 0.2)]
    assert (low.mean or 0) < (high.mean or 0)
    assert (low.count("unfinished"), high.count("pruned")) == (1, 1)
    # Differences 0, -0.8, -1.6: mean -0.8, and half a width of 4.303 * 0.8 / sqrt(3).
    ((names, difference),) = found.differences.items()
    assert names == ("encoder=bigru, lr_g=0.2", "encoder=bigru, lr_g=0.1")
    assert difference.mean == pytest.approx(-0.8)
    assert difference.interval == pytest.approx((-0.8 - 1.9873, -0.8 + 1.9873), abs=1e-3)
    assert found.headline.startswith("No difference shown between")
    assert "0.8000 [-1.1873, 2.7873]" in found.headline
    text = " ".join(found.warnings)
    for part in ("flattered", "Pruned runs", "Few seeds", "3 seeds"):
        assert part in text


def test_ordinary_runs_differ_by_their_params(past: Past) -> None:
    found = compare(["plain", "slow $x", "frozen"], past.uri)
    assert found.metric == "val/agreement/mean"
    assert {row.encoder for row in found.rows} == {"bigru", "xlnet-base-cased"}
    labels = {trial.run.name: trial.setting for trial in found.trials}
    assert labels["frozen"] == "encoder=xlnet-base-cased, lr_g=0.2"
    assert labels["slow $x"] == "encoder=bigru, lr_g=0.1"
    assert labels["plain"] == "encoder=bigru"
    assert "Finished, but not measured: frozen, slow $x." in found.warnings
    assert found.html()
    assert "no grid" not in found.markdown()


def test_each_encoder_has_a_name_of_its_own() -> None:
    def name(**encoder: object) -> dict[str, str]:
        config = parse_config({"name": "n", "train": {"steps": 1}, "encoder": encoder})
        return {key: param(value) for key, value in flatten(config).items()}

    start = {"init_from": "/x", "init_sha256": "0" * 64}
    params = [
        name(kind="bilstm"),
        name(kind="gru", **start),
        name(kind="gru", **start, train="frozen"),
        name(kind="bert"),
        name(kind="bert", train="tuned"),
        name(kind="huggingface", **start),
        name(kind="custom", target="my.file:Mine"),
    ]
    runs = [PastRun(str(i), str(i), "FINISHED", i, each, {}, {}) for i, each in enumerate(params)]
    assert [trial.encoder for trial in to_trials(runs)] == [
        "bilstm",
        "gru pretrained",
        "gru pretrained frozen",
        "bert-base-uncased",
        "bert-base-uncased tuned",
        "huggingface pretrained frozen",
        "Mine",
    ]


def test_encoders_of_one_name_are_told_apart() -> None:
    def name(**encoder: object) -> dict[str, str]:
        config = parse_config({"name": "n", "train": {"steps": 1}, "encoder": encoder})
        return {key: param(value) for key, value in flatten(config).items()}

    params = [
        name(kind="bigru"),
        *(name(kind="bigru", init_from="/x", init_sha256=digit * 64) for digit in "12"),
        name(kind="gru", init_from="/x", init_sha256="1" * 64),
        *(name(kind="custom", target=f"{module}:Mine") for module in ("my.file", "your.file")),
        *(name(kind="huggingface", model=f"{owner}/bert") for owner in ("a", "b", "b")),
    ]
    runs = [PastRun(str(i), str(i), "FINISHED", i, each, {}, {}) for i, each in enumerate(params)]
    assert [trial.encoder for trial in to_trials(runs)] == [
        "bigru",
        "bigru pretrained 11111111",
        "bigru pretrained 22222222",
        "gru pretrained",
        "my.file:Mine",
        "your.file:Mine",
        "a/bert",
        "b/bert",
        "b/bert",
    ]


def test_one_run_and_none(past: Past) -> None:
    single = compare([past.made["plain"]], past.uri)
    assert single.headline.startswith("encoder=bigru: val/agreement/mean 0.5000, 1 seed.")
    assert single.warnings == [w for w in single.warnings if w.startswith("Few seeds")]
    assert "No learning rate varies" in single.markdown()
    assert "There are no two settings" in single.markdown()
    assert log_to_parent(single) is False
    empty = compare(["empty"], past.uri)
    assert empty.headline == "No answer yet: no run has finished."
    assert "There are no runs to compare yet." in empty.html()
    assert empty.pictures() == {}
    whole = compare(
        ["small"], past.uri, "val/agreement/mean"
    )  # the experiment: several sweeps and plain runs
    settings = {row.setting for row in whole.search}
    assert "rates: encoder=bigru, lr_g=0.2" in settings  # not mixed with another sweep's
    assert "someone else's" not in {run.name for run in whole.runs}


def test_operational_fields_make_no_setting() -> None:
    names = operational_names()
    for encoder in ({"kind": "bigru"}, {"kind": "huggingface", "model": "m"}):
        config = parse_config({"name": "n", "train": {"steps": 1}, "encoder": encoder})
        others = flatten(config).keys() - identity_of(config).keys()
        assert {name for name in others if not name.startswith("guard.")} <= names
        assert not names & identity_of(config).keys()


def test_guards_limits_are_a_setting_only_where_they_count() -> None:
    def run(action: str, rate: str) -> PastRun:
        params = {"encoder.kind": "bigru", "guard.action": action, "guard.rate": rate}
        return PastRun("r", "r", "FINISHED", 0, params, {}, {})

    stop, other = run("stop", "0.5"), run("stop", "0.9")
    back, slower = run("rollback", "0.5"), run("rollback", "0.9")
    for runs, differing in (
        ([stop, other], []),
        ([stop, back], ["guard.action"]),
        ([back, slower], ["guard.rate"]),
    ):
        assert _differing(runs, ["bigru"] * 2) == differing


# ---------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("names", "metric", "says"),
    [
        (["encoders"], "d_loss", ["metric=d_loss", "loss", "val/agreement/mean"]),
        (["encoders"], "val/agreement/scent", ["metric=val/agreement/scent", "val/agreement/mean"]),
        (["encoders"], "perf/cpu_seconds", ["metric=perf/cpu_seconds", "val/agreement/mean"]),
        (["nobody"], None, ["name='nobody'", "its experiments", "small"]),
        (['it\'s "it"'], None, ["no experiment, sweep or run"]),
        (["twin"], None, ["name='twin'", "several", "give an id"]),
        (["encoders", "rates"], None, ["metric=null", "val/frechet_reader", "--metric"]),
        ([], None, ["names", "nothing to compare"]),
    ],
)
def test_what_is_refused(past: Past, names: list[str], metric: str | None, says: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        compare(names, past.uri, metric)
    assert "\n" not in str(caught.value)
    for part in says:
        assert part in str(caught.value)


def test_an_mlflow_that_is_away(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tracking_uri=http://127\.0\.0\.1:9: MLflow does not"):
        compare(["x"], "http://127.0.0.1:9")
    with pytest.raises(UserError, match="no such database"):
        compare(["x"], f"sqlite:///{tmp_path}/none.db")
    assert not list(tmp_path.iterdir())
    assert report_sweep("http://127.0.0.1:9", "x") is None


# ------------------------------------------------------------------------------ the report


class Page(HTMLParser):
    """What a browser would load or run, and what it would show."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = ("src", "href", "srcset", "action", "data", "poster")
        self.addresses += [value or "" for name, value in attrs if name in named]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_loads_nothing_and_runs_nothing(confirmed: Comparison) -> None:
    html = confirmed.html()
    page = Page(html)
    assert not {"script", "i", "b", "link", "iframe", "object"} & set(page.tags)
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert len(page.addresses) == 2 * len(confirmed.pictures()) - 1  # samples have one theme
    assert "http://" not in html
    assert "https://" not in html
    assert "prefers-color-scheme: dark" in html
    assert f"{EVIL} beats minilm" in page.text
    assert "g_loss is NaN at step 12 <i>&</i> | $x$" in page.text
    assert "Losses do not rank models" in page.text
    for published in ("0.1273", "0.9893", "0.4807", "1.4696", "5.8187", "0.7353"):
        assert published in page.text


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# What a browser made of the page beside it: of each picture its width, and whether all fits.
FRAME = """<iframe src="report.html" width="1200" height="900"></iframe><pre></pre><script>
onload = () => {
  const page = document.querySelector("iframe").contentDocument;
  const shown = {
    title: page.title,
    widths: [...page.images].map((image) => image.naturalWidth),
    fits: page.documentElement.scrollWidth <= page.documentElement.clientWidth,
  };
  document.querySelector("pre").textContent = JSON.stringify(shown);
};
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_page(confirmed: Comparison, tmp_path: Path) -> None:
    html = confirmed.html()
    (tmp_path / "report.html").write_text(html)
    (tmp_path / "frame.html").write_text(FRAME)
    flags = [
        "--headless",
        "--no-sandbox",  # which root can't have
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
    ]
    command = [str(CHROMIUM), *flags, (tmp_path / "frame.html").as_uri()]
    browser = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in browser.stderr, browser.stderr  # nothing was refused, nothing failed
    shown = json.loads(browser.stdout.partition("<pre>")[2].partition("</pre>")[0])
    assert f"<title>{shown['title']}</title>" in html
    assert len(shown["widths"]) == len(confirmed.pictures())
    assert min(shown["widths"]) > 300
    assert shown["fits"]


def test_markdown_shows_names_as_they_are(confirmed: Comparison) -> None:
    page = confirmed.markdown("figures")
    assert EVIL not in page
    assert "![test/agreement/mean of each setting, by seed](figures/scores.png)" in page
    assert "<i>" not in page
    assert "![" not in confirmed.markdown()
    assert text("a|b `c` *d* [e](f)\n~g~ <h>") == (r"a\|b \`c\` \*d\* \[e\](f) \~g\~ &lt;h&gt;")
    for table in re.findall(r"(?:^\|.*\n)+", page, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_pictures(confirmed: Comparison) -> None:
    pictures = confirmed.pictures()
    names = ["cost", "learning_rates", "losses", "progress", "samples", "scores"]
    assert sorted(pictures) == [f"{name}.png" for name in names]
    for png in pictures.values():
        assert Image.open(io.BytesIO(png)).width > 400
    assert figures.cost(confirmed, LIGHT) == pictures["cost.png"]
    assert (confirmed.grids.seed, confirmed.grids.step) == (100, 8)
    assert {section.picture for section in sections(confirmed)} - {None} == set(pictures)


def test_grids_stand_side_by_side_only_with_the_same_captions() -> None:
    images = np.zeros((8, 32, 32, 3), np.uint8)
    images[:, :, :, 0] = np.arange(8)[:, None, None] * 20
    one, other = (report.sample_grid(images + i, ["a red flower", "a rose"]) for i in (0, 9))
    joined = np.asarray(Image.open(io.BytesIO(report.side_by_side({"x": one, "y": other}, 32, 3))))
    left = report.MARGIN * 2 + report.CAPTION_WIDTH
    tile = 96 + report.GAP
    for row in range(2):
        for column in range(3):
            y = report.LINE + report.MARGIN + row * tile + 40
            x = left + column * tile + 40
            red = 20 * (4 * row + column)
            assert joined[y, x, 0] == red
            assert joined[y, x + 3 * tile - report.GAP + report.MARGIN, 0] == red + 9
    another = report.sample_grid(images, ["a red flower", "a lily"])
    with pytest.raises(ValueError, match="same captions"):
        report.side_by_side({"x": one, "y": another}, 32, 3)


def test_grids_that_do_not_compare_are_left_out(past: Past) -> None:
    past.sweep("odd")
    for encoder, captions in (("a", CAPTIONS), ("b", CAPTIONS[::-1]), ("c", CAPTIONS)):
        run = past.trial("odd", {"encoder": encoder}, 0, 0.5)
        past.grid(run, 0, 0.5, captions)
    found = compare(["odd"], past.uri)
    assert "samples.png" not in found.pictures()
    assert "The grids do not show the same captions." in found.markdown()
    assert "one pair shows no difference" in found.headline
    found = compare(["rates"], past.uri)
    assert "No seed has a sample grid of every contender" in found.markdown()


def test_a_family_of_one_loss_is_drawn_beside_one_of_two(past: Past) -> None:
    """Its bound is of a density: it may lie below zero, where no GAN's loss does."""
    params = {"encoder.kind": "bigru", "model.family": "gan_cls"}
    past.run("gan", params=params, scores={"val/agreement/mean": 0.6})
    vae = params | {"model.family": "cvae"}
    run = past.run("vae", params=vae, scores={"val/agreement/mean": 0.5}, curves=False)
    past.client.log_batch(run, [Metric("g_loss", -1.5 - i / 8, i, i) for i in range(1, 9)])
    found = compare(["gan", "vae"], past.uri)
    assert [*found.contenders] == ["family=gan_cls", "family=cvae"]
    assert "| family=cvae | -2.5000 | -2.0625 | -1.6250 | – | – | – | 1 |" in found.markdown()
    drawn = np.asarray(Image.open(io.BytesIO(found.pictures()["losses.png"])).convert("RGB"))
    colour = colours_of(found, LIGHT)(found.contenders["family=cvae"])
    assert (drawn == list(bytes.fromhex(colour[1:]))).all(2).sum() > 200  # its curve, not cut off


def test_learning_rates_of_one_encoder(past: Past) -> None:
    """Two rates make a map of both; many values make points."""
    past.sweep("both")
    for i, (one, two) in enumerate([(0.1, 0.1), (0.1, 0.2), (0.2, 0.1), (0.2, 0.2)]):
        past.trial("both", {"optim.lr_g": one, "optim.lr_d": two}, 0, 0.5 + i / 100)
    past.sweep("many")
    for i in range(figures.CELLS + 1):
        past.trial("many", {"optim.lr_g": 0.001 * 1.5**i}, 0, 0.6 - 0.01 * (i - 5) ** 2)
    for name in ("both", "many"):
        found = compare([name], past.uri)
        assert "Mean val/agreement/mean in the search." in found.markdown()
        assert Image.open(io.BytesIO(found.pictures()["learning_rates.png"])).height > 300
        assert len(found.contenders) == min(6, len(found.rows))


def test_files_are_written_whole_and_logged(
    past: Past, confirmed: Comparison, tmp_path: Path
) -> None:
    written = write_files(confirmed, tmp_path / "new/out.html", tmp_path / "out.md")
    assert [path.exists() for path in written] == [True, True]
    assert {p.name for p in (tmp_path / "out_files").iterdir()} == set(confirmed.pictures())
    assert "](out_files/losses.png)" in (tmp_path / "out.md").read_text()
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="--html"):
        write_files(confirmed, tmp_path / "taken", None)
    assert not list(tmp_path.glob(".*"))
    assert log_to_parent(confirmed)
    some = [run.run_id for run in confirmed.runs][:2]
    assert not log_to_parent(compare(some, past.uri))  # two trials are not the sweep
    (sweep,) = confirmed.sweeps
    assert compare([sweep.run_id], past.uri).title == sweep.name  # as its driver asks for it
    logged = confirmed.history.files(sweep, "compare")
    assert {"compare/report.html", "compare/report.md", "compare/cost.png"} <= set(logged)
    assert confirmed.history.read(sweep, "compare/report.html") == confirmed.html().encode()


# ---------------------------------------------------------------------------- commands


def test_the_command(
    past: Past, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    page = str(tmp_path / "r.html")
    command = ["t2i-ray", "compare", "rates", "--storage", str(past.artifacts)]
    monkeypatch.setattr(sys, "argv", [*command, "--metric", "val/agreement/mean", "--html", page])
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    printed = capsys.readouterr()
    assert printed.err == ""
    for part in ("val/agreement/mean", "lr_g=0.2", "unfinished", "No difference", "Few seeds"):
        assert part in printed.out
    assert "logged as compare/report.html on rates" in printed.out
    assert "lr_g=0.1" in Path(page).read_text()

    monkeypatch.setattr(sys, "argv", [*command, "--metric", "g_loss"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: metric=g_loss: a loss")
    assert len(printed.err.splitlines()) == 1


def test_a_server_is_read_like_a_database(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    there: Any = Past(mlflow_server.uri, tmp_path, "compared", steps=4)
    there.sweep("served")
    for encoder, score in (("a", 0.5), ("b", 0.6)):
        for seed in (0, 1):
            there.trial("served", {"encoder": encoder}, seed, score + 0.001 * seed)
    found = compare(["served"], mlflow_server.uri)
    assert found.grids.step == 4
    assert found.headline.startswith("In the search, b is ahead of a by 0.1000")
    assert report_sweep(mlflow_server.uri, found.sweeps[0].run_id) is not None
    assert "compare/report.html" in found.history.files(found.sweeps[0], "compare")
