"""The rooms import one way only, and heavy libraries stay in the rooms that need them."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "t2i_ray"

# From the top down: a room may import those after it.
ROOMS = [
    "cli",
    "doctor",
    "sweep",
    "launch",
    "train",
    "compare",
    "evaluate",
    "report",
    "tracking",
    "generate",
    "checkpoint",
    "runs",
    "claims",
    "families",
    "pretrain",
    "cvae",
    "cgan",
    "gan_cls",
    "family",
    "learner",
    "augment",
    "encoders",
    "data",
    "losses",
    "models",
    "batch_norm",
    "storage",
    "config",
    "lines",
]
ONLY_IN = {
    "ray": {"doctor", "launch", "sweep"},
    "mlflow": {"tracking"},
    "transformers": {"encoders"},
    "boto3": {"storage"},
    "matplotlib": {"report", "compare"},
    "jinja2": {"compare"},
    "onnxruntime": {"evaluate"},
    "prdc": {"evaluate"},
    "scipy": {"compare", "data"},
    "h5py": {"data"},
    "sklearn": {"evaluate"},
    "torch_fidelity": {"evaluate"},
    "torchmetrics": {"evaluate"},
    "typer": {"cli"},
}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def files() -> list[tuple[str, Path]]:
    """Every file of the package with its room."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return [
        (path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path)
        for path in paths
        if path.name not in ("__init__.py", "__main__.py") or path.parent != PACKAGE
    ]


@pytest.mark.parametrize(("room", "path"), files(), ids=lambda value: str(value)[-40:])
def test_imports_point_down(room: str, path: Path) -> None:
    assert room in ROOMS, f"{room} has no place in the order of rooms"
    for module in imports(path):
        parts = module.split(".")
        if parts[0] == "t2i_ray" and len(parts) > 1 and parts[1] in ROOMS:
            assert ROOMS.index(parts[1]) >= ROOMS.index(room), f"{path.name} imports {module}"
        if parts[0] in ONLY_IN:
            assert room in ONLY_IN[parts[0]], f"{path.name} imports {module}"


def test_data_and_models_stay_light() -> None:
    for room, path in files():
        heads = {module.split(".")[0] for module in imports(path)}
        if room in ("config", "storage", "runs", "data"):
            assert "torch" not in heads, path
        if room in ("models", "batch_norm", "losses"):
            assert heads <= {"torch", "__future__", "collections", "itertools", "math", "typing"}, (
                path
            )


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from t2i_ray.cli import app\n"
        "heavy = {'torch', 'ray', 'mlflow', 'transformers', 'boto3', 'numpy', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("of", "heavy"),
    [
        ("t2i_ray.launch", ["torch", "mlflow", "transformers", "ray.train", "pandas"]),
        ("t2i_ray.launch.trainer", ["torch", "mlflow", "transformers"]),
    ],
    ids=["driver", "controller"],
)
def test_what_starts_before_the_workers_imports_little(of: str, heavy: list[str]) -> None:
    code = f"import sys, {of}\nprint(sorted(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_pickle_is_read() -> None:
    for _, path in files():
        text = path.read_text(encoding="utf8")
        for forbidden in ("pickle.load", "torch.load(", "allow_pickle=True", "joblib"):
            assert forbidden not in text, f"{path.name}: {forbidden}"
        assert not re.search(r"(?<![\w.])eval\(", text), path.name
