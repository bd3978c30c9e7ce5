"""The command line: bad input gets one line and exit code 2; pictures, data."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from ray_cluster import BIN
from runner import Runner, until
from servers import S3Server
from small_configs import write_config

from t2i_ray.cli.commands import prepare_source
from t2i_ray.cli.commit import git_commit
from t2i_ray.config import load_config
from t2i_ray.launch import with_absolute_paths

Bad = tuple[list[str], list[str]]


def t2i(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A command that is to end before it needs a cluster."""
    return subprocess.run(
        [sys.executable, "-m", "t2i_ray", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), "COLUMNS": "200", **env},
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path, "bad")


def test_help_and_version(tmp_path: Path) -> None:
    output = t2i("--help", cwd=tmp_path).stdout
    listed = {line.strip("│ ").partition(" ")[0] for line in output.splitlines()}
    assert listed >= {"train", "compare", "runs", "generate", "evaluate", "prepare", "sync"}
    assert t2i("--version", cwd=tmp_path).stdout.strip().count(".") == 2
    script = subprocess.run([BIN / "t2i-ray", "--version"], capture_output=True, text=True)
    assert script.stdout == t2i("--version", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["trian.steps=5"], ["trian", "unknown key"]),
        (["train.micro_batches=3"], ["train.micro_batches=3", "batch_size=16", "use"]),
        (["cluster.workers=3"], ["cluster.workers=3", "train.micro_batches=2", "fewer workers"]),
        (["encoder.kind=word2vec"], ["encoder", "word2vec", "bigru"]),
        (["storage.uri=/proc/nowhere"], ["storage.uri=/proc/nowhere"]),
        (["storage.uri=ftp://host/x"], ["storage.uri=ftp://host/x", "s3://"]),
        (["storage.uri=s3://"], ["storage.uri=s3://", "bucket"]),
        (["tracking.uri=file:/tmp/x"], ["tracking.uri=file:/tmp/x", "sqlite"]),
    ],
)
def test_bad_config_ends_before_anything_starts(
    config: Path, overrides: list[str], says: list[str]
) -> None:
    done = t2i("train", str(config), *overrides, cwd=config.parent)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    for part in says:
        assert part in line
    assert "Traceback" not in done.stdout + done.stderr
    assert not (config.parent / "store/runs").exists()


def test_whatever_the_encoding_of_uncommitted_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("T2I_RAY_COMMIT", raising=False)
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    (tmp_path / "a").write_bytes(b"one\n")
    for command in (["init", "-q"], ["add", "a"], [*who, "commit", "-q", "-m", "a"]):
        subprocess.run(["git", *command], check=True)
    (tmp_path / "a").write_bytes("gr\u00fcn\n".encode("latin1"))
    commit, diff = git_commit()
    assert len(commit) == 40
    assert "+gr\ufffdn" in diff


def no_folder(_: Path) -> Bad:
    source = "data.source={kind: folder, path: /nowhere/pictures}"
    return [source], ["path", "/nowhere/pictures"]


def no_captions(tmp_path: Path) -> Bad:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "pictures/a.png")
    source = f"data.source={{kind: folder, path: {tmp_path}/pictures}}"
    return [source], ["captions", "captions.jsonl"]


def no_font(tmp_path: Path) -> Bad:
    (tmp_path / "font.ttf").write_text("not a font")
    source = f"data.source={{kind: emoji, font: {tmp_path}/font.ttf}}"
    return [source], ["font", "font.ttf"]


def no_model(_: Path) -> Bad:
    return (
        ["encoder={kind: huggingface, model: nobody/no-such-model}"],
        ["encoder.model", "nobody/no-such-model"],
    )


def too_many_workers(_: Path) -> Bad:
    return (
        ["cluster.threads=64"],
        ["cluster.workers=1", "64 CPUs", "fewer"],
    )


@pytest.mark.parametrize("bad", [no_folder, no_captions, no_font, no_model, too_many_workers])
def test_bad_input_ends_before_a_worker_starts(
    runner: Runner, tmp_path: Path, bad: Callable[[Path], Bad]
) -> None:
    overrides, says = bad(tmp_path)
    env = {"HF_HUB_OFFLINE": "1"}
    if bad is too_many_workers:  # a cluster that is joined may grow: ours, of this machine, not
        env["RAY_ADDRESS"] = "local"
    output = runner.train(bad.__name__, *overrides, code=2, env=env)
    line = output.strip().splitlines()[-1]
    assert line.startswith("error: "), output
    for part in says:
        assert part in line
    assert "Traceback" not in output
    assert not (runner.folder / f"store/runs/{bad.__name__}").exists()  # the name is still free


def test_wrong_s3_key_is_one_line_without_secrets(config: Path, s3: S3Server) -> None:
    env = {**s3.env, "AWS_SECRET_ACCESS_KEY": "planted-wrong-secret"}
    done = t2i(
        "train",
        str(config),
        f"storage.uri=s3://{s3.bucket}/runs",
        f"storage.endpoint={s3.endpoint}",
        "tracking.enabled=false",
        cwd=config.parent,
        **env,
    )
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "storage.uri" in line
    assert "planted" not in done.stdout + done.stderr


def test_generate_grid_strip_and_bad_input(runner: Runner, unbroken: str, tmp_path: Path) -> None:
    store = ["-s", str(runner.folder / "store")]
    (tmp_path / "captions.txt").write_text("a blue flower\n\na white flower\n")
    grid, strip = tmp_path / "grid.png", tmp_path / "strip.png"
    captions = ["a red flower", "--file", str(tmp_path / "captions.txt")]
    runner.run("generate", unbroken, *captions, "-o", str(grid), "--count", "3", *store)
    pair = ["a red flower", "a blue flower", "--between", "captions"]
    runner.run("generate", unbroken, *pair, "-o", str(strip), "--count", "5", *store)
    with Image.open(grid) as picture, Image.open(strip) as other:
        assert picture.size[1] > 2 * other.size[1]
        assert len(picture.getcolors(1 << 24) or []) > 50
    (runner.folder / unbroken).mkdir()  # a folder of the run's name in the way
    again = tmp_path / "again.png"
    runner.run("generate", unbroken, *captions, "-o", str(again), "--count", "3", *store)
    assert again.read_bytes() == grid.read_bytes()
    for arguments, says in (
        (["nothing", "a flower"], "nothing"),
        ([unbroken], "captions"),
        ([unbroken, "one", "--between", "captions"], "two captions"),
        ([unbroken, "one", "-o", "/nowhere/x.png"], "/nowhere"),
        ([str(tmp_path), "one"], "generator_ema.safetensors is missing"),
    ):
        output = runner.run("generate", *arguments, *store, code=2)
        assert says in output.strip().splitlines()[-1]


def test_model_in_the_registry_draws(runner: Runner, unbroken: str, tmp_path: Path) -> None:
    """It lies with the run's artifacts, wherever the commands were given."""
    assert not (runner.folder / "mlruns").exists()
    assert list((runner.folder / "store/mlartifacts").glob("**/generator_ema.safetensors"))
    env = {"MLFLOW_TRACKING_URI": f"sqlite:///{runner.folder}/store/mlflow.db"}
    output = str(tmp_path / "model.png")
    runner.run("generate", "models:/unbroken/1", "a red flower", "-o", output, env=env)
    with Image.open(output) as picture:
        assert picture.size[0] > 100


def test_evaluate(runner: Runner, unbroken: str, tmp_path: Path) -> None:
    store = ["-s", str(runner.folder / "store")]
    output = runner.run("evaluate", unbroken, "--count", "64", *store, env={"COLUMNS": "160"})
    assert "petal_colour" in output
    assert "FID" not in output
    metrics = runner.mlflow_run(unbroken).data.metrics
    assert metrics["test/frechet_reader"] > 0
    runner.run("evaluate", unbroken, "--count", "64", *store)
    run_id = runner.mlflow_run(unbroken).info.run_id
    history = runner.mlflow().get_metric_history(run_id, "test/frechet_reader")
    assert len(history) == 1  # measured again, shown once
    logged = runner.mlflow().download_artifacts(run_id, "evaluation/test.json", str(tmp_path))
    stored = runner.folder / f"store/runs/{unbroken}/evaluation/test.json"
    assert Path(logged).read_bytes() == stored.read_bytes()  # intervals, counts and seeds


def test_a_measure_is_the_same_while_training_and_afterwards(runner: Runner, unbroken: str) -> None:
    own = ["--measures", "own", "--split", "val", "--count", "64"]
    runner.run("evaluate", unbroken, *own, "-s", str(runner.folder / "store"))
    place = runner.folder / f"store/runs/{unbroken}/evaluation/val.json"
    afterwards = json.loads(place.read_text())["metrics"]
    measured = runner.checkpoint(unbroken).documents["state"]["measured"]
    assert {key for key in measured if key.startswith("val/")} == set(afterwards)
    for name, value in afterwards.items():
        assert measured[name] == pytest.approx(value, rel=1e-3), name


def test_prepare_takes_every_field_of_data(tmp_path: Path) -> None:
    sizes = ["images=64", "image_size=16", "load_size=18"]
    settings = [*sizes, "flip=false", "shard_size=80", "max_rejected=0", "wrong=hard"]
    prepare_source("synthetic-flowers", settings, str(tmp_path), None)
    assert len([*tmp_path.glob("data/synthetic-flowers-*/shards/*.npy")]) == 1


def test_a_prepare_that_was_killed_goes_on(tmp_path: Path) -> None:
    """The shards that were whole stay as they are, and what comes of it is the same."""
    command = ["prepare", "synthetic-flowers", "images=1200", "image_size=16", "load_size=18"]
    arguments = [sys.executable, "-m", "t2i_ray", *command, "shard_size=40", "-s", str(tmp_path)]

    def whole() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.glob("data/*/shards/*.json")}

    with subprocess.Popen(arguments) as process:
        until(lambda: len(whole()) >= 3)
        process.kill()
    kept = whole()
    assert 3 <= len(kept) < 30
    assert not [*tmp_path.glob("data/*/manifest.json")]
    output = t2i(*arguments[3:], cwd=tmp_path).stdout
    assert kept.items() <= whole().items()
    assert len(whole()) == 30
    again = t2i(*command, "-s", str(tmp_path / "unbroken"), cwd=tmp_path).stdout
    digest = re.findall("digest ([0-9a-f]{16})", output)
    assert digest == re.findall("digest ([0-9a-f]{16})", again) != []


def test_prepare_a_folder_and_train_on_it(runner: Runner, tmp_path: Path) -> None:
    lines = []
    for i, colour in enumerate(("red", "green", "blue", "yellow") * 12):
        Image.new("RGB", (24, 20), colour).save(tmp_path / f"{i}.png")
        split = ("train", "train", "val", "test")[i // 4 % 4]
        lines.append({"image": f"{i}.png", "caption": f"a {colour} square", "split": split})
    (tmp_path / "broken.png").write_text("no picture")
    lines.append({"image": "broken.png", "caption": "a square", "split": "train"})
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    store = ["-s", str(runner.folder / "store")]
    sizes = ["image_size=16", "load_size=18"]
    output = runner.run("prepare", "folder", f"path={tmp_path}", *sizes, *store)
    assert "digest" in output
    (rejected,) = Path(runner.folder / "store/data").glob("folder-*/rejected.jsonl")
    assert json.loads(rejected.read_text())["key"] == "broken.png"
    runner.train(
        "squares",
        f"data.source={{kind: folder, path: {tmp_path}}}",
        "train.steps=12",
        "tracking.enabled=false",
    )
    assert runner.record("squares").status == "FINISHED"


def test_relative_path_in_a_job_is_refused(config: Path) -> None:
    done = t2i(
        "train",
        str(config),
        "storage.uri=here",
        cwd=config.parent,
        RAY_JOB_CONFIG_JSON_ENV_VAR="{}",
    )
    assert done.returncode == 2
    assert "storage.uri=here" in done.stderr
    assert "absolute" in done.stderr


def test_an_s3_endpoint_of_the_environment_is_handed_on(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers may not have it in theirs."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert with_absolute_paths(load_config(config)).storage.endpoint is None
    on_s3 = load_config(config, ["storage.uri=s3://bucket/x"])
    assert with_absolute_paths(on_s3).storage.endpoint == "http://127.0.0.1:1"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:2")
    assert with_absolute_paths(on_s3).storage.endpoint == "http://127.0.0.1:2"
    given = load_config(config, ["storage={uri: 's3://bucket/x', endpoint: 'http://127.0.0.1:3'}"])
    assert with_absolute_paths(given).storage.endpoint == "http://127.0.0.1:3"
