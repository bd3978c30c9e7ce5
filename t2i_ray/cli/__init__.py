"""The command line. Each command imports what it needs, so that ``--help`` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from t2i_ray import __version__

app = typer.Typer(
    name="t2i-ray",
    help="Train text-to-image GANs on a Ray cluster, and compare them honestly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)

ConfigPath = Annotated[Path, typer.Argument(help="A run's YAML, such as configs/demo.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Fields to change: train.steps=1000 optim.lr_d=1e-4")
]
StorageUri = Annotated[
    str,
    typer.Option("--storage", "-s", envvar="T2I_RAY_STORAGE", help="Where the runs are kept."),
]
Endpoint = Annotated[
    str | None,
    typer.Option(envvar="AWS_ENDPOINT_URL", help="URL of an S3 server other than AWS."),
]
AllowTarget = Annotated[
    list[str] | None,
    typer.Option(
        help="A class, module:Class, that may be imported although only a stored config names it."
    ),
]
HOME = "~/t2i_ray"


def main() -> None:
    """Run the command line; a user's error is one line and exit code 2."""
    try:
        app()
    except Exception as error:
        from t2i_ray.config import UserError
        from t2i_ray.storage import StorageError

        if not isinstance(error, UserError | StorageError):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UserError) else 1) from None


def version(value: bool) -> None:
    """Print the version and leave."""
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of every command."""


@app.command()
def train(config: ConfigPath, overrides: Overrides = None) -> None:
    """Train a run on the Ray cluster; the same command again continues it."""
    from t2i_ray.cli.commit import git_commit
    from t2i_ray.config import load_config

    loaded = load_config(config, overrides)
    from t2i_ray import launch

    commit, diff = git_commit()
    raise typer.Exit(launch.train(loaded, commit=commit, diff=diff))


@app.command("pretrain-encoder")
def pretrain_encoder(
    config: ConfigPath,
    overrides: Overrides = None,
    objective: Annotated[
        str,
        typer.Option(
            help="matching: pictures find their captions; autoencode: codes rebuild captions."
        ),
    ] = "matching",
) -> None:
    """Train a run's text encoder alone; other runs begin with it by encoder.init_from."""
    from t2i_ray.cli.commands import pretrain

    raise typer.Exit(pretrain(config, overrides or [], objective))


@app.command()
def tune(
    # No Path: with --resume this is the first override, and a Path would take // for /.
    sweep: Annotated[
        str | None, typer.Argument(help="A sweep's YAML, such as tune_configs/smoke.yaml.")
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        str | None, typer.Option(help="The name of a sweep to go on with, instead of its file.")
    ] = None,
    allow_target: AllowTarget = None,
    storage: StorageUri = HOME,
    endpoint: Endpoint = None,
) -> None:
    """Run a sweep's trials on the Ray cluster; the same command again goes on with it.

    --storage and --endpoint say where --resume looks; a file says that itself.
    """
    from t2i_ray.cli.commands import start_sweep
    from t2i_ray.config import allow

    allow(allow_target or [])
    raise typer.Exit(start_sweep(sweep, overrides or [], resume, storage, endpoint))


@app.command()
def prepare(
    source: Annotated[
        str, typer.Argument(help="Its kind: folder, oxford-102, parquet ... (docs/data.md).")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="The source's fields and data's: path=pictures load_size=76"),
    ] = None,
    storage: StorageUri = HOME,
    endpoint: Endpoint = None,
) -> None:
    """Turn a source of pictures and captions into the prepared form that runs read."""
    from t2i_ray.cli.commands import prepare_source

    prepare_source(source, settings or [], storage, endpoint)


@app.command()
def doctor(
    config: ConfigPath,
    overrides: Overrides = None,
    timeout: Annotated[
        float, typer.Option(min=5, help="Seconds after which a check is given up.")
    ] = 24,
) -> None:
    """Try out all that a run, or a sweep, needs: from here, and from every node."""
    from t2i_ray.cli.commands import look_at_all

    raise typer.Exit(look_at_all(config, overrides or [], timeout))


@app.command()
def runs(storage: StorageUri = HOME, endpoint: Endpoint = None) -> None:
    """List the runs of a storage, and where each stands."""
    from t2i_ray.cli.commands import show_runs

    show_runs(storage, endpoint)


@app.command()
def generate(
    model: Annotated[
        str,
        typer.Argument(help="A run's name, a folder, or an MLflow model (models:/name/1)."),
    ],
    captions: Annotated[list[str] | None, typer.Argument(help="What to draw.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="More captions, one a line.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG to write.")] = Path(
        "grid.png"
    ),
    count: Annotated[int, typer.Option(min=1, help="Pictures per caption.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first picture's noise.")] = 0,
    between: Annotated[
        str | None,
        typer.Option(help="A strip from one to the other: captions (two of them) or noise."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Draw captions of which the model can read nothing.")
    ] = False,
    allow_target: AllowTarget = None,
    storage: StorageUri = HOME,
    endpoint: Endpoint = None,
) -> None:
    """Draw pictures from captions."""
    from t2i_ray.cli.pictures import draw
    from t2i_ray.config import allow

    allow(allow_target or [])
    draw(model, captions or [], file, output, count, seed, between, force, storage, endpoint)


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="A run's name.")],
    split: Annotated[str, typer.Option(help="val or test.")] = "test",
    count: Annotated[int, typer.Option(min=2, help="How many pictures to generate.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of captions, noise and intervals.")] = 0,
    measures: Annotated[
        str | None,
        typer.Option(
            help="Groups by commas, such as frechet,kernel (docs/measures.md lists them), or all, "
            "or own: the run's evaluation.measures. None: what takes little time."
        ),
    ] = None,
    inception: Annotated[
        Path | None,
        typer.Option(help="Inception's weights (.safetensors): FID, KID, Inception Score."),
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="YAML of a network of your own to measure by.")
    ] = None,
    resamples: Annotated[
        int | None,
        typer.Option(min=0, help="Resamples behind an interval; 0: no intervals. None: 200."),
    ] = None,
    matcher: Annotated[
        str | None,
        typer.Option(help="A run of pretrain-encoder by matching, to measure by as well."),
    ] = None,
    allow_target: AllowTarget = None,
    storage: StorageUri = HOME,
    endpoint: Endpoint = None,
) -> None:
    """Measure a run's pictures: whether they show what captions say, and are like real ones."""
    from t2i_ray.cli.commands import measure
    from t2i_ray.config import allow

    allow(allow_target or [])
    measure(
        run, split, count, seed, measures, inception, features, resamples, matcher, storage,
        endpoint,
    )  # fmt: skip


@app.command()
def compare(
    names: Annotated[
        list[str], typer.Argument(help="Experiments, sweeps, runs, or runs' ids, in MLflow.")
    ],
    metric: Annotated[
        str | None,
        typer.Option(help="What ranks: a measure. None: the sweep's, else val/agreement/mean."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="The report as one HTML file.")] = None,
    md: Annotated[Path | None, typer.Option(help="The report in Markdown.")] = None,
    log: Annotated[
        bool, typer.Option(help="Whether to log the report on the sweep's run in MLflow.")
    ] = True,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow; none: MLFLOW_TRACKING_URI, else the storage's own.")
    ] = None,
    storage: StorageUri = HOME,
    endpoint: Endpoint = None,
) -> None:
    """Say which setting did best, by how much, and for which compute."""
    from t2i_ray.cli.commands import compare_runs

    compare_runs(names, metric, html, md, log, tracking_uri, storage, endpoint)


@app.command()
def sync(
    names: Annotated[list[str] | None, typer.Argument(help="Runs; none: all.")] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="Another MLflow than the run was started with.")
    ] = None,
    storage: StorageUri = HOME,
    endpoint: Endpoint = None,
) -> None:
    """Send MLflow what an outage kept back, and set right how runs ended."""
    from t2i_ray.cli.commands import sync_runs

    raise typer.Exit(sync_runs(names or [], tracking_uri, storage, endpoint))


@app.command()
def schema(
    sweep: Annotated[bool, typer.Option("--sweep", help="A sweep's instead.")] = False,
) -> None:
    """Print the JSON Schema of a run's YAML."""
    import json

    from t2i_ray.config import json_schema, sweep_schema

    print(json.dumps(sweep_schema() if sweep else json_schema(), indent=2))
