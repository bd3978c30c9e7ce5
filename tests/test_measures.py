"""Every measure on cases whose answer is known; what may be given; what is kept and shown."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_configs import networks
from torch import Tensor, nn

from t2i_ray.checkpoint import Checkpoints
from t2i_ray.config import (
    GROUPS,
    KINDS,
    Data,
    Folder,
    OwnFeatures,
    SyntheticFlowers,
    UserError,
    larger_is_better,
    names_taken,
    parse_config,
    validate,
)
from t2i_ray.data import Batches, Prepared, open_prepared, prepare
from t2i_ray.encoders import build_encoder, to_document
from t2i_ray.evaluate import (
    Features,
    Matcher,
    Measures,
    Seeds,
    bootstrap,
    distances,
    features,
    frechet_distance,
    inception,
    measure,
    reader,
)
from t2i_ray.evaluate.run import Wanted, chosen_groups, evaluate_run
from t2i_ray.family import Piece
from t2i_ray.gan_cls import GanCls
from t2i_ray.generate import Pipeline
from t2i_ray.launch import with_absolute_paths
from t2i_ray.runs import RunRecord, run_store
from t2i_ray.storage import LocalStore

DATA = Data(source=SyntheticFlowers(images=400, seed=5), image_size=16, load_size=18)
MARGIN = 1  # of the middle of a picture


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    return LocalStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def prepared(store: LocalStore) -> Prepared:
    return open_prepared(store, prepare(DATA, store))


class Pixels:
    """Features whose distances are those of the pictures."""

    name = "pixels"

    def __call__(self, images: np.ndarray) -> Features:
        return Features(images.reshape(len(images), -1).astype(np.float64))


class Colours:
    """Mean colours, and a classifier's logits: by the largest."""

    name = "colours"

    def __call__(self, images: np.ndarray) -> Features:
        means = images.mean((1, 2), dtype=np.float64)
        return Features(means, logits=means)


def torch_fidelity(module: str) -> ModuleType:
    """A module of the library, whose torchvision does not go with every build of torch."""
    try:
        return importlib.import_module(f"torch_fidelity.{module}")
    except Exception as error:
        pytest.skip(f"torch-fidelity can't be imported: {error}")


def middle(prepared: Prepared, samples: np.ndarray) -> np.ndarray:
    return prepared.images(samples)[:, MARGIN:-MARGIN, MARGIN:-MARGIN]


def samples_of(prepared: Prepared, captions: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.searchsorted(prepared.first_caption, captions, side="right") - 1
    return found


class Real:
    """Draws the picture that the caption was written for, with noise of a strength."""

    def __init__(self, prepared: Prepared, noise: float = 0.0) -> None:
        self._prepared, self._noise, self._rng = prepared, noise, np.random.default_rng(0)

    def __call__(self, captions: np.ndarray) -> np.ndarray:
        pictures = middle(self._prepared, samples_of(self._prepared, captions))
        noise = self._noise * self._rng.standard_normal(pictures.shape)
        drawn: np.ndarray = (pictures + noise).clip(0, 255).astype(np.uint8)
        return drawn


def take(
    prepared: Prepared,
    generate: object,
    *groups: str,
    model: features.FeatureModel | None = None,
    matchers: Sequence[Matcher] = (),
    count: int = 60,
    resamples: int = 0,
    seed: int = 0,
    split: str = "test",
) -> Measures:
    return measure(
        None,
        prepared,
        generate,  # type: ignore[arg-type]
        split=split,
        count=count,
        seed=seed,
        chosen=groups,
        models=[model or Colours()],
        matchers=matchers,
        data=DATA,
        resamples=resamples,
    )


# ------------------------------------------------------------------------------ intervals


def test_intervals_cover_a_known_mean() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for seed in range(200):
        found = bootstrap.of_mean(rng.exponential(2.0, 60), seed, "x", 40)
        assert found is not None
        covered.append(found[0] <= 2.0 <= found[1])
    assert 0.88 < np.mean(covered) < 0.98


def test_intervals_of_distances_cover_what_plain_percentiles_miss() -> None:
    rng = np.random.default_rng(1)
    distance = distances.frechet_to(rng.standard_normal((300, 8)))
    draws = [rng.standard_normal((100, 8)) for _ in range(60)]
    expected = np.mean([distance(rows) for rows in draws])
    covered, plain = [], []
    for seed, rows in enumerate(draws):
        found = bootstrap.of_distance(distance, rows, distance(rows), seed, "x", 40)
        assert found is not None
        covered.append(found[0] <= expected <= found[1])
        raw = [distance(rows[rng.integers(0, 100, 100)]) for _ in range(40)]
        plain.append(np.quantile(raw, 0.025) <= expected <= np.quantile(raw, 0.975))
    assert np.mean(covered) > 0.85
    assert np.mean(plain) < 0.3


def test_an_interval_is_a_function_of_seed_and_name() -> None:
    values = np.random.default_rng(0).random(30)
    one = bootstrap.of_mean(values, 0, "a", 20)
    assert one == bootstrap.of_mean(values, 0, "a", 20)
    assert one != bootstrap.of_mean(values, 1, "a", 20)
    assert one != bootstrap.of_mean(values, 0, "b", 20)
    assert bootstrap.of_mean(values, 0, "a", 0) is None


# ------------------------------------------------------------------------------ distances


def gaussian(mean: float, spread: float, count: int = 500, width: int = 3) -> np.ndarray:
    """Rows of exactly this mean in each column, and covariance spread^2 times the identity."""
    raw = np.random.default_rng(0).standard_normal((count, width))
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    rows: np.ndarray = spread * white + mean
    return rows


def test_the_library_and_our_frechet_distance_agree() -> None:
    pytest.importorskip("torchmetrics")
    rng = np.random.default_rng(0)
    for count in (300, 20):  # the second: fewer rows than columns
        a, b = rng.standard_normal((count, 30)), rng.gamma(2.0, 1.5, (count + 50, 30))
        expected = frechet_distance(a, b)
        assert distances.library_frechet(a, b) == pytest.approx(expected, rel=1e-5)
        assert distances.frechet_to(b)(a) == pytest.approx(expected, rel=1e-9)
    a = rng.standard_normal((100, 5))
    assert distances.library_frechet(a, a[::-1].copy()) == pytest.approx(0, abs=1e-6)
    # Equal means aside, (s - t)^2 a direction; the means' distance squared on top.
    found = distances.library_frechet(gaussian(0, 1), gaussian(2, 4))
    assert found == pytest.approx(3 * 4 + 3 * 9)


def test_kernel_distance_by_its_definition() -> None:
    pytest.importorskip("torchmetrics")
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((6, 4)), rng.standard_normal((6, 4)) + 1

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 4 + 1) ** 3)

    others = [(i, j) for i in range(6) for j in range(6) if i != j]
    within = sum(kernel(a[i], a[j]) + kernel(b[i], b[j]) for i, j in others) / 30
    across = sum(kernel(x, y) for x in a for y in b) / 36
    assert distances.kernel_distance(a, b, 1) == pytest.approx(within - 2 * across)
    pairs = rng.standard_normal((200, 2, 50, 4))
    same = [distances.kernel_distance(one, other, 1) for one, other in pairs]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(200)  # unbiased


def test_precision_and_recall_of_what_is_known() -> None:
    pytest.importorskip("prdc")
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((40, 3)), rng.standard_normal((40, 3)) + 100
    real = np.concatenate([one, other])
    assert distances.precision_and_recall(real, real) == (1, 1)
    assert distances.precision_and_recall(real + 1000, real) == (0, 0)
    collapsed = np.concatenate([one, one + 1e-3])  # good pictures, of one kind only
    precision, recall = distances.precision_and_recall(collapsed, real)
    assert precision > 0.95
    assert recall <= 0.5


def test_precision_and_recall_as_torch_fidelity_has_them() -> None:
    other = torch_fidelity("metric_prc")
    rng = np.random.default_rng(0)
    generated, real = rng.standard_normal((2, 200, 5))
    found = other.prc_features_to_metric(
        torch.from_numpy(generated * 1.3), torch.from_numpy(real), prc_neighborhood=3, verbose=False
    )
    expected = found["precision"], found["recall"]
    assert distances.precision_and_recall(generated * 1.3, real) == pytest.approx(expected)


def test_inception_score_of_what_is_known() -> None:
    pytest.importorskip("torchmetrics")
    certain = 40 * np.eye(5)[np.arange(2000) % 5]
    assert distances.inception_score(certain) == pytest.approx(5, rel=0.02)
    assert distances.inception_score(np.zeros((100, 5))) == pytest.approx(1)
    assert distances.inception_score(certain[::5]) == pytest.approx(1)


def test_libraries_leave_the_random_state_alone() -> None:
    pytest.importorskip("torchmetrics")
    torch.manual_seed(5)
    before = torch.get_rng_state().tolist()
    rows = np.random.default_rng(0).standard_normal((30, 4))
    for _ in range(2):
        distances.kernel_distance(rows, rows, 1)
        distances.inception_score(rows)
    assert torch.get_rng_state().tolist() == before


def test_joint_distance_sees_what_the_distance_of_pictures_does_not(prepared: Prepared) -> None:
    pytest.importorskip("torchmetrics")
    count = len(prepared.ids("train"))  # the split with the most pictures

    def of(generate: object) -> tuple[float, float]:
        frechet, joint = take(
            prepared, generate, "frechet", "joint", count=count, split="train"
        ).others
        assert (frechet.name, joint.name) == ("frechet_colours", "frechet_joint_colours")
        return frechet.value, joint.value

    def shuffled(captions: np.ndarray) -> np.ndarray:
        """The same pictures, each with another's caption."""
        return np.random.default_rng(0).permutation(Real(prepared)(captions))

    right, swapped = of(Real(prepared)), of(shuffled)
    assert swapped[0] == pytest.approx(right[0], rel=1e-6)
    assert swapped[1] > 1.4 * right[1]


def test_joint_rows_are_scaled_by_mean_norms() -> None:
    pictures, captions = np.array([[3.0, 4.0], [0.0, 15.0]]), np.array([[2.0], [-2.0]])
    scale = distances.joint_scale(pictures, captions)
    assert scale == 5  # (5 + 15) / 2 over 2
    assert distances.joint(pictures, captions, scale).tolist() == [[3, 4, 10], [0, 15, -10]]


# ------------------------------------------------------------------------- single pictures


def test_a_constant_generator_has_no_diversity(prepared: Prepared) -> None:
    for generate, low, high in (
        (lambda captions: np.full((len(captions), 16, 16, 3), 7, np.uint8), 0.0, 0.0),
        (Real(prepared), 0.0, 0.0),  # the caption decides all
        (Real(prepared, noise=8.0), 250.0, 350.0),  # sqrt(2 * 768) * 8, less where it is clipped
    ):
        (value,) = take(prepared, generate, "diversity", model=Pixels(), resamples=20).others
        assert low <= value.value <= high
        assert value.interval is not None
        assert value.interval[0] <= value.value <= value.interval[1]
        assert value.reference is not None
        assert value.reference > 500  # real pictures differ more
        assert value.count == min(60, len(prepared.ids("test")))


@pytest.mark.parametrize("mirrored", [False, True])
def test_memorised_pictures_are_found(prepared: Prepared, mirrored: bool) -> None:
    stolen = np.random.default_rng(0).permutation(prepared.ids("train"))

    def steal(captions: np.ndarray) -> np.ndarray:
        """Half of the pictures are training pictures, a little spoilt."""
        drawn = Real(prepared)(captions)
        half = len(captions) // 2
        taken = middle(prepared, stolen[:half]).astype(int) + 1
        drawn[:half] = (taken[:, :, ::-1] if mirrored else taken).clip(0, 255)
        return drawn

    count = min(60, len(prepared.ids("test")))
    found = take(prepared, steal, "memory", model=Pixels(), count=count, resamples=20)
    memorised, nearest = found.others
    assert (memorised.name, nearest.name) == ("memorised_pixels", "nearest_pixels")
    assert memorised.value == pytest.approx(0.5, abs=0.06)
    assert memorised.interval is not None
    assert memorised.interval[0] > 0.3
    near = found.nearest
    assert near is not None
    of_all = [pair.distance for pair in near.pairs]
    assert of_all == sorted(near.generated.tolist())
    copies = near.pairs[: count // 2]
    assert {pair.sample for pair in copies} <= set(stolen[: count // 2].tolist())
    assert len(near.shown) == 8
    for drawn, training in near.shown.astype(int):
        assert np.abs(drawn - training).max() <= 1
    honest = take(prepared, Real(prepared), "memory", model=Pixels(), count=count).others
    assert honest[0].value < 0.1
    assert honest[1].value == pytest.approx(honest[1].reference, rel=0.3)


class Attributes:
    """A matcher that knows which captions each picture has, and how sure it is."""

    name = "known"

    def __init__(self, prepared: Prepared, certainty: float) -> None:
        self._prepared, self._certainty = prepared, certainty
        self._rng = np.random.default_rng(0)

    def similarity(self, images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        assert len(images) == len(captions)
        noise = self._rng.random((len(images), len(captions)))
        known: np.ndarray = self._certainty * np.eye(len(images)) + noise
        return known


class Level:
    """A matcher that finds all pictures and captions equally alike."""

    name = "level"

    def similarity(self, images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        return np.zeros((len(images), len(captions)))


def test_r_precision_of_perfect_random_and_level_matchers(prepared: Prepared) -> None:
    def of(matcher: Matcher, count: int = 300) -> tuple[float, float]:
        found = take(prepared, Real(prepared), "r_precision", matchers=[matcher], count=count)
        (value,) = found.others
        assert value.name == f"r_precision_{matcher.name}"
        assert value.reference is not None
        return value.value, value.reference

    perfect, chance = of(Attributes(prepared, 2.0))
    assert perfect == 1
    assert chance == pytest.approx(0.01)
    # A share of 300 right by chance: within four standard errors.
    assert of(Attributes(prepared, 0.0))[0] < chance + 4 * np.sqrt(chance / 300)
    assert of(Level())[0] == pytest.approx(chance)


def test_blocks_of_captions_are_scored_apart(prepared: Prepared) -> None:
    sizes: list[int] = []

    class Sized(Level):
        def similarity(self, images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
            sizes.append(len(images))
            return super().similarity(images, captions)

    take(prepared, Real(prepared), "r_precision", matchers=[Sized()], count=1500)
    assert sizes == [750, 750]


# -------------------------------------------------------------------- what stands beside


def test_every_value_says_what_it_is(prepared: Prepared) -> None:
    pytest.importorskip("torchmetrics")
    pytest.importorskip("prdc")
    found = take(
        prepared, Real(prepared, 5.0), *GROUPS, matchers=[Level()], resamples=4, seed=3, count=40
    )
    document = found.to_json()
    assert json.loads(json.dumps(document)) == document
    names = [value["name"] for value in document["values"]]
    assert names == [
        "frechet_colours",
        "kernel_colours",
        "precision_colours",
        "recall_colours",
        "diversity_colours",
        "memorised_colours",
        "nearest_colours",
        "frechet_joint_colours",
        "r_precision_level",
    ]  # no Inception Score by any other network, whatever logits it gives
    table = found.table()
    for value in document["values"]:
        assert value["low"] <= value["value"] <= value["high"]
        assert value["resamples"] in (4, 20)
        assert value["seed"] == 3
        assert value["count"] > 0
        larger = larger_is_better(value["name"])
        assert value["better"] == {True: "larger", False: "smaller", None: "neither"}[larger]
        assert value["what"] in table
        assert found.metrics[f"test/{value['name']}"] == value["value"]
    for text in (table, json.dumps(document), *found.metrics):
        assert "FID" not in text.upper()
        assert "INCEPTION" not in text.upper()


def test_measures_do_not_change_each_other(prepared: Prepared) -> None:
    both = take(prepared, Real(prepared), "diversity", "memory", resamples=5)
    alone = take(prepared, Real(prepared), "memory", resamples=5)
    assert both.others[1:] == alone.others


class Inception(Colours):
    name = "inception"


def test_only_inception_has_the_names_of_the_literature(prepared: Prepared) -> None:
    pytest.importorskip("torchmetrics")
    groups = ("frechet", "kernel", "inception_score")
    found = take(prepared, Real(prepared), *groups, model=Inception())
    assert [value.name for value in found.others] == ["fid", "kid", "inception_score"]
    for name in ("inception", "inception2", "myfid", "kidnet", "reader", "a_b", "Big"):
        with pytest.raises(UserError, match="name"):
            own(name=name)


# ------------------------------------------------------------------ the catalogue of names


def test_each_name_has_one_direction() -> None:
    directions = {
        "agreement/mean": True,
        "agreement/petal_colour": True,
        "frechet_reader": False,
        "fid": False,
        "kid": False,
        "precision_reader": True,
        "recall_dino": True,
        "inception_score": True,
        "diversity_reader": True,
        "memorised_reader": False,
        "nearest_reader": None,
        "frechet_joint_reader": False,
        "r_precision_discriminator": True,
        "d_loss": None,
    }
    for name, larger in directions.items():
        for metric in (name, f"val/{name}", f"test/{name}"):
            assert larger_is_better(metric) is larger, metric
    for kind in KINDS.values():
        assert larger_is_better(kind.name("reader")) is kind.larger, kind


def test_the_docs_name_all_of_them() -> None:
    docs = (Path(__file__).parent.parent / "docs/measures.md").read_text(encoding="utf8")
    table = [line for line in docs.splitlines() if line.startswith("| `")]
    for kind in KINDS.values():
        letter = "k" if kind.group == "r_precision" else "m"
        name = kind.template.format(model=f"<{letter}>", attribute="<attribute>")
        (line,) = [line for line in table if line.startswith(f"| `{name}`")]
        assert f"`{kind.group}`" in line
        better = {True: "larger", False: "smaller", None: "neither"}[kind.larger]
        assert f"| {better}" in line


def test_names_of_what_is_taken() -> None:
    assert names_taken(["agreement", "frechet"], ["scent"], []) == [
        "agreement/mean",
        "frechet_reader",
        "agreement/scent",
    ]
    assert names_taken(["agreement", "precision_recall"], [], []) == []
    assert names_taken([*GROUPS], [], ["inception"])[:2] == ["fid", "kid"]
    assert names_taken(["frechet", "r_precision"], ["scent"], ["matching"]) == [
        "frechet_reader",
        "frechet_matching",
        "r_precision_matching",
    ]
    assert set(GROUPS) == {kind.group for kind in KINDS.values()}


# ------------------------------------------------------------------------- feature models


class Means(nn.Module):
    """A network of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.mean((2, 3)) * self.scale


class Needy(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()


def own(**changes: object) -> OwnFeatures:
    given = {"name": "means", "weights": "a.safetensors", "target": f"{__name__}:Means"}
    return validate(OwnFeatures, {**given, **changes})


def test_a_module_of_the_users_own(tmp_path: Path, prepared: Prepared) -> None:
    save_file({"scale": torch.tensor([1.0, 2.0, 3.0])}, tmp_path / "own.safetensors")
    settings = own(weights=str(tmp_path / "own.safetensors"), mean=(0, 0, 0), std=(1, 1, 1))
    model = features.load_own(settings)
    pictures = middle(prepared, prepared.ids("val")[:3])
    expected = pictures.mean((1, 2)) / 255 * [1, 2, 3]
    assert np.allclose(model(pictures).rows, expected, atol=1e-5)
    larger = features.normalised(pictures, settings.model_copy(update={"size": 40}))
    assert larger.shape == (3, 3, 40, 40)
    assert 0 <= larger.min() <= larger.max() <= 1
    found = take(prepared, Real(prepared), "diversity", model=model)
    assert set(found.metrics) == {"test/diversity_means"}


def test_weights_at_home(
    tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    save_file({"scale": torch.ones(3)}, tmp_path / "own.safetensors")
    assert features.load_own(own(weights="~/own.safetensors")).name == "means"
    document = {"name": "n", "train": {"steps": 1}, "storage": {"uri": "store"}}
    for place in ("~/inception.safetensors", "inception.safetensors"):
        run = parse_config({**document, "evaluation": {"inception": place}})
        found = with_absolute_paths(run).evaluation.inception
        assert found == str(tmp_path / "inception.safetensors")


def message(kind: int, *parts: bytes) -> bytes:
    """A field of a protocol buffer that holds bytes."""
    body = b"".join(parts)
    assert len(body) < 128
    return bytes([kind << 3 | 2, len(body)]) + body


def number(kind: int, value: int) -> bytes:
    return bytes([kind << 3, value])


def onnx_graph(operator: bytes) -> bytes:
    """An ONNX file of one operator, x [n, 3, ?, ?] to y."""

    def value(name: bytes, *sizes: bytes) -> bytes:
        shape = b"".join(message(1, size) for size in sizes)
        tensor = message(1, number(1, 1), message(2, shape))  # float32
        return message(1, name) + message(2, tensor)

    free, channels = message(2, b"n"), number(1, 3)
    node = message(1, b"x") + message(2, b"y") + message(4, operator)
    graph = [
        message(1, node),
        message(2, b"graph"),
        message(11, value(b"x", free, channels, message(2, b"h"), message(2, b"w"))),
        message(12, value(b"y", free, channels, number(1, 1), number(1, 1))),
    ]
    return number(1, 8) + message(7, *graph) + message(8, number(2, 13))


def test_an_onnx_graph(tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "means.onnx"
    path.write_bytes(onnx_graph(b"GlobalAveragePool"))
    model = features.load_own(own(weights=str(path), target=None))
    pictures = middle(prepared, prepared.ids("val")[:70])
    expected = pictures.mean((1, 2)) / 127.5 - 1
    assert np.allclose(model(pictures).rows, expected, atol=1e-5)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert features.load_own(own(weights="~/means.onnx", target=None)).name == "means"
    path.write_bytes(b"no graph")
    with pytest.raises(UserError, match="can't be read as ONNX"):
        features.load_own(own(weights=str(path), target=None))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weights": "a.pt"}, "can run code"),
        ({"weights": "a.pth"}, "can run code"),
        ({"target": None}, "needs a target"),
        ({"weights": "a.onnx"}, "takes none"),
        ({"target": "os"}, "target"),
        ({"std": (0, 1, 1)}, "divide by 0"),
        ({"weights": "/nowhere/a.safetensors"}, "no such file"),
        ({"target": "nowhere.at:All"}, "can't be imported"),
        ({"target": f"{__name__}:Needy"}, "take no arguments"),
        ({"target": "t2i_ray.runs:now"}, "derives from torch.nn"),
    ],
)
def test_what_is_no_feature_model(changes: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        features.load_own(own(**changes))
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_safetensors_or_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    torch.save({"scale": torch.ones(3)}, path)  # a pickle, whatever it is called
    for tensors, says in (
        (None, "pickles, which can run code; convert it"),
        ({"scale": torch.ones(4)}, r"tensor scale is \[4\], and the network has \[3\]"),
        ({"other": torch.ones(3)}, "tensor scale is absent"),
        ({"scale": torch.ones(3), "other": torch.ones(1)}, "tensor other is .*has none"),
    ):
        if tensors:
            save_file(tensors, path)
        with pytest.raises(UserError, match=says):
            features.load_own(own(weights=str(path)))


def test_features_that_are_no_rows(tmp_path: Path, prepared: Prepared) -> None:
    save_file({"scale": torch.full((3,), torch.nan)}, tmp_path / "own.safetensors")
    model = features.load_own(own(weights=str(tmp_path / "own.safetensors")))
    with pytest.raises(UserError, match="not finite"):
        model(middle(prepared, prepared.ids("val")[:2]))


def test_inception_from_safetensors(tmp_path: Path, prepared: Prepared) -> None:
    """Random weights: what matters is that they arrive, and that nothing else is read."""
    torch_fidelity("feature_extractor_inceptionv3")
    path = tmp_path / "inception.safetensors"
    with pytest.raises(UserError, match=r"evaluation.inception=.*no such file"):
        inception.OfInception(path)
    torch.manual_seed(1)
    tensors = {name: torch.rand_like(t.float()) for name, t in _inception_tensors().items()}
    save_file(tensors, path)
    model = inception.OfInception(path)
    found = model(middle(prepared, prepared.ids("val")[:2]))
    assert found.rows.shape == (2, 2048)
    assert found.logits is not None
    weight = tensors["fc.weight"].double().numpy()
    assert np.allclose(found.logits, found.rows @ weight.T, rtol=1e-3)
    torch.save(tensors, path)
    with pytest.raises(UserError, match="pickles"):
        inception.OfInception(path)


def _inception_tensors() -> dict[str, Tensor]:
    network = inception._network()
    return {n: t for n, t in network.state_dict().items() if not n.endswith("batches_tracked")}


# ------------------------------------------------------------------------------ the command


def make_run(
    store: LocalStore, prepared: Prepared, data: Data, name: str, matching: float = 0.0
) -> RunRecord:
    """A run that was never trained, at its first checkpoint."""
    config = parse_config(
        {
            "name": name,
            "data": data.model_dump(mode="json"),
            "encoder": {"kind": "bigru", "embedding_dim": 4, "hidden_dim": 4, "dim": 8},
            # The norms have a state, which is saved with the weights.
            "model": networks(4, 4, [8, 8], spectral_norm=True),
            "train": {"steps": 1, "batch_size": 8, "matching": matching},
            "tracking": {"enabled": False},
        }
    )
    torch.manual_seed(0)
    encoder = build_encoder(config.encoder, prepared.captions)
    gan = GanCls(config, encoder.module, encoder.dim)
    piece = Batches(prepared, data, seed=0, batch_size=8, micro_batches=1).piece(0, 0)
    right, wrong = (
        torch.from_numpy(encoder.rows([prepared.captions[i] for i in ids]))
        for ids in (piece.right, piece.wrong)
    )
    pixels = torch.from_numpy(piece.images.transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1
    gan.refresh_ema_statistics([Piece(pixels, right, wrong, torch.randn(8, 4))])
    documents = {
        "config": config.model_dump(mode="json"),
        "encoder": to_document(encoder),
        "tracking": {},
    }
    checkpoints = Checkpoints(run_store(store, name).within("checkpoints"), keep=1)
    checkpoints.save(1, gan.state(), documents)
    checkpoints.wait()
    return RunRecord(
        name=name, id="0", hash="0", identity={}, data=prepared.prefix, status="FINISHED", steps=1
    )


@pytest.fixture(scope="module")
def run(store: LocalStore, prepared: Prepared) -> RunRecord:
    return make_run(store, prepared, DATA, "run", matching=1.0)


@pytest.fixture(autouse=True)
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "STEPS", 3)


def evaluated(store: LocalStore, run: RunRecord, count: int = 40, **wanted: object) -> str:
    given = Wanted(**{"resamples": 4, **wanted})  # type: ignore[arg-type]
    return evaluate_run(store, run, "test", count, wanted=given)


def test_the_document_has_every_number_and_keeps_earlier_ones(
    store: LocalStore, run: RunRecord
) -> None:
    table = evaluated(store, run)
    assert table.startswith("run, step 1: 40 pictures from captions of the split test, seed 0")
    key = "runs/run/evaluation/test.json"
    first = json.loads(store.read(key))
    names = {value["name"] for value in first["values"] if "agreement" not in value["name"]}
    assert names == {
        "frechet_reader",
        "diversity_reader",
        "memorised_reader",
        "nearest_reader",
        "r_precision_discriminator",
    }
    assert first["step"] == 1
    assert len(first["nearest"]) == first["count"]
    assert set(first["nearest"][0]) == {"caption", "sample", "distance"}
    assert first["nearest_in"] == "reader"
    assert store.read("runs/run/evaluation/test_nearest.png").startswith(b"\x89PNG")
    evaluated(store, run, groups=["diversity"])
    second = json.loads(store.read(key))
    assert second["metrics"] == first["metrics"]
    assert {v["name"] for v in second["values"]} == {v["name"] for v in first["values"]}
    assert second["agreements"] == first["agreements"]
    evaluated(store, run, groups=["diversity"], seed=1)  # other pictures
    third = json.loads(store.read(key))
    assert set(third["metrics"]) == {"test/diversity_reader"}
    assert third["seed"] == 1
    evaluated(store, run, groups=["diversity"], resamples=0)
    assert json.loads(store.read(key))["values"][0]["low"] is None


def test_features_of_the_users_own_by_the_command(
    tmp_path: Path, store: LocalStore, run: RunRecord
) -> None:
    pytest.importorskip("torchmetrics")
    save_file({"scale": torch.ones(3)}, tmp_path / "own.safetensors")
    file = tmp_path / "own.yaml"
    weights = tmp_path / "own.safetensors"
    file.write_text(f"name: means\nweights: {weights}\ntarget: {__name__}:Means\n")
    table = evaluated(store, run, groups=["frechet"], features=file, count=30)
    assert "frechet_means" in table
    assert f"features of means: weights {weights}" in table
    document = json.loads(store.read("runs/run/evaluation/test.json"))
    assert set(document["metrics"]) == {"test/frechet_reader", "test/frechet_means"}
    assert list(document["models"]) == ["means"]


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"groups": ["fid"]}, "no group is called fid; there are agreement, frechet"),
        ({"groups": ["inception_score"]}, "--inception"),
        ({"inception": "/nowhere/i.safetensors"}, "nowhere|torch-fidelity"),
        ({"features": Path("/nowhere.yaml")}, "nowhere.yaml"),
    ],
)
def test_what_can_not_be_measured(
    store: LocalStore, run: RunRecord, wanted: dict[str, object], says: str
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        evaluate_run(store, run, "test", 40, wanted=Wanted(**wanted))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_run_without_matching_has_no_matcher(store: LocalStore, prepared: Prepared) -> None:
    plain = make_run(store, prepared, DATA, "plain")
    assert "r_precision" not in evaluated(store, plain)
    with pytest.raises(UserError, match="no matching head"):
        evaluated(store, plain, groups=["r_precision"])


def test_pictures_without_attributes(tmp_path: Path) -> None:
    """No reader and no agreement, but whatever another network can tell."""
    lines = []
    for i in range(40):
        (tmp_path / f"{i}.ppm").write_bytes(b"P6 18 18 255\n" + bytes([i * 6, 0, 99]) * 18 * 18)
        split = ("train", "train", "val", "test")[i % 4]
        lines.append({"image": f"{i}.ppm", "caption": f"shade {i}", "split": split})
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = Data(source=Folder(path=str(tmp_path)), image_size=16, load_size=18)
    store = LocalStore(tmp_path / "store")
    shades = open_prepared(store, prepare(data, store))
    plain = make_run(store, shades, data, "shades")
    save_file({"scale": torch.ones(3)}, tmp_path / "own.safetensors")
    file = tmp_path / "own.yaml"
    weights = tmp_path / "own.safetensors"
    file.write_text(f"name: means\nweights: {weights}\ntarget: {__name__}:Means\n")
    with pytest.raises(UserError, match=r"no attributes in this data.*--inception"):
        evaluated(store, plain)
    with pytest.raises(UserError, match="--measures agreement: no attributes"):
        evaluated(store, plain, groups=["agreement"], features=file)
    evaluated(store, plain, groups=["diversity", "memory"], features=file, count=10)
    document = json.loads(store.read("runs/shades/evaluation/test.json"))
    names = ["diversity_means", "memorised_means", "nearest_means"]
    assert list(document["metrics"]) == [f"test/{name}" for name in names]


def test_a_caption_that_comes_again_is_drawn_with_another_noise(
    store: LocalStore, run: RunRecord, prepared: Prepared
) -> None:
    checkpoint = Checkpoints(run_store(store, "run").within("checkpoints"), keep=1).latest()
    assert checkpoint is not None
    pipeline = Pipeline.from_checkpoint(checkpoint)
    ids = np.array([3, 4, 3])
    count = len(prepared.captions)

    def draw(seed: int) -> np.ndarray:
        return pipeline.images([prepared.captions[i] for i in ids], Seeds(count, seed)(ids))

    drawn = draw(seed=0)
    assert (drawn[0] != drawn[2]).any()
    # The first time, noise is by the caption's number, as it always was.
    texts = [prepared.captions[i] for i in (3, 4)]
    assert (drawn[:2] == pipeline.images(texts, [3, 4])).all()
    assert (draw(seed=0) == drawn).all()
    assert (draw(seed=1) != drawn).any()


def test_groups_by_commas() -> None:
    assert chosen_groups(None) == []
    assert chosen_groups("frechet, kernel,") == ["frechet", "kernel"]
    Wanted(["all"])
