"""Attribute agreement: the reader, the measures, their statistics."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from t2i_ray.config import Data, Folder, SyntheticFlowers, UserError
from t2i_ray.data import Prepared, open_prepared, prepare
from t2i_ray.evaluate import (
    Measures,
    Reader,
    ensure_reader,
    frechet_distance,
    load_reader,
    measure,
    reader,
    wilson,
)
from t2i_ray.storage import LocalStore

DATA = Data(source=SyntheticFlowers(images=1200, seed=3), image_size=32, load_size=38)
EASY = ["petal_colour", "centre_colour", "background", "leaves", "lighting"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    return LocalStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module", autouse=True)
def short_training() -> object:
    """Enough for everything but the number and the shape of petals."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "STEPS", 130)
        yield


@pytest.fixture(scope="module")
def prepared(store: LocalStore) -> Prepared:
    return open_prepared(store, prepare(DATA, store))


@pytest.fixture(scope="module")
def trained(store: LocalStore, prepared: Prepared) -> Reader:
    ensure_reader(store, prepared, DATA)
    return load_reader(store, prepared, DATA)


def own_pictures(prepared: Prepared, captions: np.ndarray) -> np.ndarray:
    """The pictures that the captions were written for."""
    samples = np.searchsorted(prepared.first_caption, captions, side="right") - 1
    return prepared.images(samples)[:, 3:35, 3:35]


def by_name(measures: Measures) -> dict[str, float]:
    return {one.attribute: one.share for one in measures.agreements}


@pytest.fixture(scope="module")
def of_real(trained: Reader, prepared: Prepared) -> Measures:
    return measure(
        trained, prepared, lambda ids: own_pictures(prepared, ids), split="val", count=300
    )


def test_the_reader_reads_real_test_pictures(trained: Reader) -> None:
    assert set(trained.accuracy) == {*EASY, "petal_shape", "petal_count"}
    for name in EASY:
        assert trained.accuracy[name] >= 0.95, name
    assert trained.accuracy["petal_shape"] > 0.35  # of 0.25 by chance


def test_real_pictures_agree_with_their_captions(of_real: Measures, trained: Reader) -> None:
    for one in of_real.agreements:
        low, high = one.low - 0.1, one.high + 0.1  # another split than the accuracy's
        assert low <= trained.accuracy[one.attribute] <= high
        assert one.low <= one.share <= one.high
        assert one.count < 300 or one.attribute == "petal_colour"


def test_unrelated_pictures_agree_by_chance(trained: Reader, prepared: Prepared) -> None:
    def shuffled(ids: np.ndarray) -> np.ndarray:
        return own_pictures(prepared, np.random.default_rng(0).permutation(ids))

    found = measure(trained, prepared, shuffled, split="val", count=300)
    for one in found.agreements:
        chance = (one.uniform + one.commonest) / 2
        assert abs(one.share - chance) < 0.15, one
        assert one.commonest >= one.uniform


def test_only_named_attributes_count(trained: Reader, prepared: Prepared) -> None:
    asked: list[np.ndarray] = []

    def generate(ids: np.ndarray) -> np.ndarray:
        asked.append(ids)
        return own_pictures(prepared, ids)

    found = measure(trained, prepared, generate, split="test", count=400, seed=1)
    ids = np.concatenate(asked)
    assert ids.dtype == np.int64
    assert max(map(len, asked)) <= 256
    assert len(ids) == found.count == 400
    samples = np.searchsorted(prepared.first_caption, ids, side="right") - 1
    # More were asked for than the split has: every picture had its turn.
    assert set(samples.tolist()) == set(prepared.ids("test").tolist())
    read = trained.read(own_pictures(prepared, ids)).values
    for one in found.agreements:
        named = prepared.named[one.attribute][ids]
        right = read[one.attribute] == prepared.attributes[one.attribute][samples]
        assert one.count == named.sum()
        assert one.share == right[named].mean()


def test_captions_depend_on_the_seed_alone(trained: Reader, prepared: Prepared) -> None:
    def captions(seed: int) -> list[int]:
        asked: list[int] = []

        def generate(ids: np.ndarray) -> np.ndarray:
            asked.extend(ids.tolist())
            return own_pictures(prepared, ids)

        measure(trained, prepared, generate, split="val", count=20, seed=seed)
        return asked

    assert captions(0) == captions(0) != captions(1)


def test_metrics_hold_only_measures(of_real: Measures, trained: Reader) -> None:
    good = {f"val/agreement/{n}" for n, share in trained.accuracy.items() if share >= 0.95}
    assert set(of_real.metrics) == {*good, "val/agreement/mean", "val/frechet_reader"}
    shares = [of_real.metrics[name] for name in good]
    assert of_real.metrics["val/agreement/mean"] == pytest.approx(np.mean(shares))
    weak = [n for n, share in trained.accuracy.items() if share < 0.95]
    assert weak  # so few steps are not enough for the petals' number
    table = of_real.table()
    for name in trained.accuracy:
        line = next(line for line in table.splitlines() if line.startswith(name))
        assert line.startswith(f"{name} *") == (name in weak)
        assert f"{trained.accuracy[name]:.1%}" in line
    assert "not a measure" in table


def test_outputs_are_plain_and_not_mistaken(of_real: Measures) -> None:
    document = of_real.to_json()
    assert json.loads(json.dumps(document)) == document
    assert document["mean"] == of_real.metrics["val/agreement/mean"]
    for text in (of_real.table(), json.dumps(document), *of_real.metrics):
        assert "FID" not in text.upper()
        assert "INCEPTION" not in text.upper()
    assert "reader's features" in of_real.table()


def test_distance_grows_with_damage(trained: Reader, prepared: Prepared) -> None:
    rng = np.random.default_rng(0)

    def spoilt(strength: float) -> float:
        def generate(ids: np.ndarray) -> np.ndarray:
            noisy = own_pictures(prepared, ids) + strength * rng.standard_normal((1, 32, 32, 3))
            return noisy.clip(0, 255).astype(np.uint8)

        found = measure(trained, prepared, generate, split="val", count=150)
        return found.metrics["val/frechet_reader"]

    clean, some, much = spoilt(0), spoilt(40), spoilt(120)
    assert clean < some < much


def test_training_is_not_disturbed(trained: Reader, store: LocalStore, prepared: Prepared) -> None:
    def states() -> list[object]:
        numpys = repr(np.random.get_state(legacy=False))
        return [torch.get_rng_state().tolist(), random.getstate(), numpys]

    before, threads = states(), torch.get_num_threads()
    place = store.within("elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "STEPS", 2)
        ensure_reader(place, prepared, DATA)
        again = load_reader(place, prepared, DATA)
    measure(again, prepared, lambda i: own_pictures(prepared, i), split="val", count=8)
    assert states() == before
    assert torch.get_num_threads() == threads


def test_the_same_reader_comes_out_again(
    tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "STEPS", 3)
    readers: list[dict[str, bytes]] = []
    threads = torch.get_num_threads()
    for count in (1, 2):  # of threads, and a seed
        store = LocalStore(tmp_path / str(count))
        torch.manual_seed(count)
        torch.set_num_threads(count)
        ensure_reader(store, prepared, DATA)
        readers.append({key: store.read(key) for key in store.list("readers")})
    torch.set_num_threads(threads)
    assert readers[0] == readers[1]
    assert len(readers[0]) == 2


def test_a_reader_is_made_once(
    trained: Reader, store: LocalStore, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(reader, "_train", refuse)
    ensure_reader(store, prepared, DATA.model_copy(update={"flip": False}))
    with pytest.raises(AssertionError):  # another size of picture is another reader
        ensure_reader(store, prepared, DATA.model_copy(update={"image_size": 24}))


def test_a_missing_or_damaged_reader_is_named(
    tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "STEPS", 1)
    store = LocalStore(tmp_path)
    with pytest.raises(UserError, match="run t2i-ray evaluate"):
        load_reader(store, prepared, DATA)
    ensure_reader(store, prepared, DATA)
    manifest, weights = sorted(store.list("readers"), key=lambda key: key.endswith("safetensors"))
    good = store.read(weights)
    for key, bad in ((weights, good[:-1] + b"\1"), (manifest, b"{"), (manifest, b"[]")):
        store.write(key, bad)
        with pytest.raises(UserError, match="damaged"):
            load_reader(store, prepared, DATA)
        ensure_reader(store, prepared, DATA)  # mends it
        assert load_reader(store, prepared, DATA).accuracy
        assert store.read(weights) == good


def test_other_sizes_are_read_too(trained: Reader, prepared: Prepared) -> None:
    small = own_pictures(prepared, prepared.first_caption[:50])
    large = small.repeat(2, 1).repeat(2, 2)
    one, two = trained.read(small), trained.read(large)
    for name in EASY:
        assert (one.values[name] == two.values[name]).all()
    assert np.allclose(one.features, two.features, atol=1e-3)


def test_data_without_attributes_is_refused(tmp_path: Path) -> None:
    for i in range(8):
        (tmp_path / f"{i}.ppm").write_bytes(b"P6 16 16 255\n" + bytes([i * 30]) * 768)
    lines = [json.dumps({"image": f"{i}.ppm", "caption": f"picture {i}"}) for i in range(8)]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    data = Data(source=Folder(path=str(tmp_path)), image_size=16, load_size=16)
    store = LocalStore(tmp_path / "store")
    plain = open_prepared(store, prepare(data, store))
    with pytest.raises(UserError, match="no attributes in this data: nothing to agree with"):
        ensure_reader(store, plain, data)


# ----------------------------------------------------------------------------- statistics


def rows(mean: list[float], spread: list[float], turn: float = 0.0) -> np.ndarray:
    """Rows whose mean is exactly mean, and whose covariance is diag(spread^2), turned."""
    rng = np.random.default_rng(0)
    raw = rng.standard_normal((500, 2))
    raw -= raw.mean(0)
    raw = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    c, s = np.cos(turn), np.sin(turn)
    exact: np.ndarray = (raw * spread) @ np.array([[c, s], [-s, c]]) + mean
    return exact


def test_frechet_distance_in_closed_form() -> None:
    # Equal covariances: the squared distance of the means.
    assert frechet_distance(rows([0, 0], [1, 2]), rows([3, 4], [1, 2])) == pytest.approx(25)
    # Covariances that commute: the squared distances of the standard deviations add.
    assert frechet_distance(rows([0, 0], [1, 2]), rows([0, 1], [4, 4])) == pytest.approx(9 + 4 + 1)
    # A quarter turn exchanges the axes; an eighth needs tr (A^1/2 B A^1/2)^1/2, in two dimensions
    # sqrt(tr AB + 2 sqrt(det AB)).
    assert frechet_distance(rows([0, 0], [1, 3]), rows([0, 0], [1, 3], np.pi / 2)) == pytest.approx(
        8
    )
    cross = np.sqrt(np.trace(np.diag([1, 9]) @ [[5, 4], [4, 5]]) + 2 * 9)
    turned = frechet_distance(rows([0, 0], [1, 3]), rows([0, 0], [1, 3], np.pi / 4))
    assert turned == pytest.approx(20 - 2 * cross)
    assert frechet_distance(np.arange(4.0)[:, None], np.arange(4.0)[:, None]) == pytest.approx(0)


def test_frechet_distance_of_the_same_set_is_nothing() -> None:
    few = np.random.default_rng(0).standard_normal((5, 40))  # fewer rows than columns
    assert frechet_distance(few, few[::-1]) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(few, few + 1) == pytest.approx(40, rel=1e-6)


def test_wilson_interval() -> None:
    # Newcombe 1998, table I: 81 of 263, and 0 of 20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
    assert wilson(242, 242)[1] == 1
    assert wilson(20, 20) == pytest.approx((1 - 0.1611, 1), abs=1e-4)
    assert wilson(0, 0) == (0, 1)
