"""The demo's own config, for about 90 seconds: what it has learnt by then."""

from __future__ import annotations

import json
from pathlib import Path

from runner import Runner

DEMO = Path(__file__).parent.parent / "configs" / "demo.yaml"
STEPS = 400  # of 64 pictures


def test_demo_learns(runner: Runner, tmp_path: Path) -> None:
    options = [f"storage.uri={tmp_path}", f"train.steps={STEPS}", "train.sample_every=0"]
    runner.run("train", str(DEMO), *options, "tracking.enabled=false")
    print(runner.run("evaluate", "demo", "--count", "400", "-s", str(tmp_path)))
    measured = json.loads((tmp_path / "runs/demo/evaluation/test.json").read_text())
    agreement = {row["attribute"]: row for row in measured["agreements"]}
    for row in agreement.values():
        assert row["is_measure"], row
    assert agreement["background"]["share"] > 0.9
    assert agreement["petal_colour"]["share"] > 0.5  # chance: 0.125
    assert agreement["centre_colour"]["share"] > 0.5  # chance: 0.25
