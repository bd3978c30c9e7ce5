"""The demo's own config with a quarter of its pictures: what it has learnt in a minute."""

from __future__ import annotations

import json
from pathlib import Path

from runner import Runner

DEMO = Path(__file__).parent.parent / "configs" / "demo.yaml"
IMAGES, STEPS = 1500, 220  # of 64 pictures


def test_demo_learns(runner: Runner, tmp_path: Path) -> None:
    sizes = [f"data.source.images={IMAGES}", f"train.steps={STEPS}", "train.sample_every=0"]
    options = [f"storage.uri={tmp_path}", "tracking.enabled=false"]
    runner.run("train", str(DEMO), *sizes, *options)
    print(runner.run("evaluate", "demo", "--count", "400", "-s", str(tmp_path)))
    measured = json.loads((tmp_path / "runs/demo/evaluation/test.json").read_text())
    agreement = {row["attribute"]: row for row in measured["agreements"]}
    least = {"background": 0.8, "petal_colour": 0.5, "centre_colour": 0.5}  # chance: 1/4, 1/8, 1/4
    for attribute in agreement.keys() - {"petal_shape", "petal_count"}:  # they need all pictures
        assert agreement[attribute]["is_measure"], agreement[attribute]
    for attribute, share in least.items():
        assert agreement[attribute]["share"] > share, agreement[attribute]
