"""Wrong captions: whose they are, how often, and when there are none."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_gan import make_config
from test_data import colours, flowers, make_folder

from t2i_ray.config import Config, Recurrent, UserError, identity_of, parse_config
from t2i_ray.data import (
    Batches,
    ChangedCaptions,
    Prepared,
    WrongCaptions,
    counter_rng,
    open_prepared,
    prepare,
)
from t2i_ray.data.words import BLOCK, nearest, tfidf
from t2i_ray.data.wrong import Kind
from t2i_ray.encoders import build_encoder
from t2i_ray.evaluate.pictures import real_pictures
from t2i_ray.launch import prepare_data
from t2i_ray.storage import LocalStore
from t2i_ray.train.feed import Feed


def captions_of(i: int) -> tuple[str, list[str]]:
    """Class and captions of picture i of forty."""
    if i < 10:
        return "rose", [f"a red rose with {i % 5} petals", "a red flower"]
    if i < 20:
        return "poppy", [f"a red poppy with {i % 5} petals"]
    if i < 30:
        both = ["a white lotus on dark water"] if i == 20 else []
        return "lily", [f"a white lily on dark water, {i}", *both]
    if i < 35:
        return "lotus", ["a white lotus on dark water"]
    return ("fern" if i == 35 else ""), [f"green leaves {i}"]


def make(path: Path, name: str, rows: list[dict[str, Any]]) -> tuple[Config, LocalStore, Prepared]:
    store = LocalStore(path / f"{name}-store")
    data = make_folder(path / name, rows)
    config = make_config(micro_batches=2).model_copy(update={"data": data})
    return config, store, open_prepared(store, prepare(data, store))


@pytest.fixture(scope="module")
def garden(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, LocalStore, Prepared]:
    path = tmp_path_factory.mktemp("garden")
    rows = colours(path / "in", split=lambda i: "val" if i in (9, 19) else "train")
    for i, row in enumerate(rows):
        del row["caption"]
        row["class"], row["captions"] = captions_of(i)
        row |= {} if row["class"] else {"class": None}
    return make(path, "in", rows)


@pytest.fixture(scope="module")
def without_classes(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Config, LocalStore, Prepared]:
    path = tmp_path_factory.mktemp("plain")
    return make(path, "in", colours(path / "in"))


def with_wrong(config: Config, kind: str) -> Config:
    document = config.model_dump(mode="json")
    document["data"]["wrong"] = kind
    return parse_config(document)


def most_similar(prepared: Prepared) -> dict[int, int]:
    """Each class's, by scikit-learn."""
    text = pytest.importorskip("sklearn.feature_extraction.text")
    train = [s for s in prepared.ids("train") if prepared.class_ids[s] >= 0]
    by_class: dict[int, list[str]] = {}
    for sample in train:
        mine = [prepared.captions[c] for c in prepared.captions_of(sample)]
        by_class.setdefault(int(prepared.class_ids[sample]), []).extend(mine)
    model = text.TfidfVectorizer(token_pattern=r"\w+").fit(itertools.chain(*by_class.values()))
    means = {c: np.asarray(model.transform(mine).mean(0))[0] for c, mine in by_class.items()}

    def cosine(a: int, b: int) -> float:
        lengths = np.linalg.norm(means[a]) * np.linalg.norm(means[b])
        return float(means[a] @ means[b] / lengths)

    return {a: max((b for b in sorted(means) if b != a), key=lambda b: cosine(a, b)) for a in means}


def chances(prepared: Prepared, kind: str, sample: int) -> dict[int, float]:
    """How likely each caption is to be the wrong one of a sample, by the definition."""
    classes = prepared.class_ids.tolist()
    own = {prepared.captions[c] for c in prepared.captions_of(sample)}
    train = [s for s in prepared.ids("train").tolist() if s != sample]
    others = [s for s in train if classes[s] != classes[sample] or classes[s] < 0]
    chosen: list[int] = []
    if classes[sample] >= 0 and kind != "other_class":
        wanted = (
            classes[sample] if kind == "same_class" else most_similar(prepared)[classes[sample]]
        )
        chosen = [s for s in train if classes[s] == wanted]
    for pictures in (chosen, others):
        found = {
            int(c): 1 / len(prepared.captions_of(s))
            for s in pictures
            for c in prepared.captions_of(s)
            if prepared.captions[c] not in own
        }
        if found:
            return {c: weight / sum(found.values()) for c, weight in found.items()}
    raise AssertionError("none is wrong")


@pytest.mark.parametrize("kind", ["other_class", "same_class", "hard"])
def test_each_kind_draws_by_its_definition(
    garden: tuple[Config, LocalStore, Prepared], kind: Kind
) -> None:
    _, _, prepared = garden
    wrong = WrongCaptions(prepared, kind)
    # Alone in their class, or with one caption all together; the class unknown; lily 20, which
    # has the captions of the most similar class itself.
    fallbacks = {"other_class": 0, "same_class": 1 + 5 + 4, "hard": 4 + 1}
    assert wrong.fallbacks == fallbacks[kind]
    tries = 4000
    for sample in (0, 3, 12, 20, 21, 30, 35, 36):
        drawn = wrong.draw(np.full(tries, sample), counter_rng(1, "test", sample))
        counts, expected = Counter(drawn.tolist()), chances(prepared, kind, sample)
        assert set(counts) == set(expected)
        for caption, chance in expected.items():
            assert abs(counts[caption] - tries * chance) < 5 * (tries * chance) ** 0.5


def test_the_most_similar_class(garden: tuple[Config, LocalStore, Prepared]) -> None:
    _, _, prepared = garden
    names = prepared.manifest.classes
    found = {names[a]: names[b] for a, b in most_similar(prepared).items()}
    assert found | {"fern": ""} == {
        "rose": "poppy", "poppy": "rose", "lily": "lotus", "lotus": "lily", "fern": ""
    }  # fmt: skip


def test_words_weigh_as_scikit_learns_do() -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text")
    fitted = ["A red, red flower!", "the rose", "", "the flower is red", "жёлтый цветок"]
    given = ["the red flower, the very red one", "unheard of", "Жёлтый"]
    model = text.TfidfVectorizer(token_pattern=r"\w+").fit(fitted)
    np.testing.assert_allclose(
        tfidf(fitted, given).toarray(), model.transform(given).toarray(), atol=1e-15
    )
    assert nearest([["x y"], ["p q"], ["x z", "w"], ["p"], ["y x"]]).tolist() == [4, 3, 0, 1, 0]
    assert nearest([[f"word{i // 2}"] for i in range(2 * BLOCK)]).tolist() == [
        i ^ 1 for i in range(2 * BLOCK)
    ]


def test_a_caption_that_hardly_any_picture_of_the_class_has(tmp_path: Path) -> None:
    rows = colours(tmp_path / "in", split=lambda i: "train")
    for i, row in enumerate(rows):
        row["caption"] = "rare" if i == 7 else "common"
        row["class"] = "many"
    _, _, prepared = make(tmp_path, "in", [*rows[:-1], rows[-1] | {"class": "other"}])
    wrong = WrongCaptions(prepared, "same_class")
    assert wrong.fallbacks == 1
    drawn = wrong.draw(np.arange(39), counter_rng(0, "test"))
    assert [prepared.captions[c] for c in drawn] == ["rare"] * 7 + ["common"] + ["rare"] * 31


@pytest.mark.parametrize("kind", ["same_class", "hard"])
def test_a_piece_is_a_function_of_step_and_micro(
    garden: tuple[Config, LocalStore, Prepared], kind: str
) -> None:
    config, _, prepared = garden
    data = with_wrong(config, kind).data
    one, other, plain = (
        Batches(prepared, each, seed=2, batch_size=16, micro_batches=2)
        for each in (data, data, config.data)
    )
    places = [(step, micro) for step in range(5) for micro in range(2)]
    pieces = {place: one.piece(*place) for place in places}
    for place in reversed(places):
        assert (other.piece(*place).wrong == pieces[place].wrong).all()
        assert (plain.piece(*place).right == pieces[place].right).all()
    assert any((plain.piece(*place).wrong != pieces[place].wrong).any() for place in places)


def changes(prepared: Prepared, caption: int, *, any_word: bool = False) -> set[str]:
    """The caption with each word in turn replaced by whatever stands there elsewhere."""
    train = [c for s in prepared.ids("train") for c in prepared.captions_of(s)]
    rows = {c: ["", *re.findall(r"\w+", prepared.captions[c].lower()), ""] for c in train}
    fits: dict[tuple[str, str], set[str]] = {}
    for row in rows.values():
        for before, word, after in zip(row, row[1:], row[2:], strict=False):
            fits.setdefault((before, after), set()).add(word)
    having: dict[str, set[int]] = {}
    for sample in prepared.ids("train").tolist():
        for word in {word for c in prepared.captions_of(sample) for word in rows[c]}:
            having.setdefault(word, set()).add(sample)
    sample = int(np.searchsorted(prepared.first_caption, caption, side="right")) - 1

    def may_replace(word: str, other: str) -> bool:
        together, alone = having[word] & having[other], len(having[word]) * len(having[other])
        seldom = len(together) * len(prepared.ids("train")) < alone / 2
        return word != other and (any_word or (seldom and sample not in having[other]))

    row = rows[caption]
    return {
        " ".join([*row[1:i], other, *row[i + 1 : -1]])
        for i in range(1, len(row) - 1)
        for other in fits[row[i - 1], row[i + 1]]
        if may_replace(row[i], other)
    }


def test_one_word_is_changed_for_one_that_fits_there(
    garden: tuple[Config, LocalStore, Prepared],
) -> None:
    _, _, prepared = garden
    changed = ChangedCaptions(prepared, "train")
    train = [int(c) for s in prepared.ids("train") for c in prepared.captions_of(s)]
    assert changed.unchanged == sum(not changes(prepared, c, any_word=True) for c in train) > 0
    assert any(not changes(prepared, c) and changes(prepared, c, any_word=True) for c in train)
    lone = train[0]
    for caption in train:
        wanted = changes(prepared, caption)
        drawn = changed.draw(
            np.full(400, caption), np.full(400, lone), counter_rng(0, "test", caption)
        )
        found = {" ".join(re.findall(r"\w+", text.lower())) for text in drawn}
        assert found == (wanted or {prepared.captions[lone]}), prepared.captions[caption]


def test_what_is_not_changed_stays_as_it_was_written(tmp_path: Path) -> None:
    rows = colours(tmp_path / "in", split=lambda i: "train")
    for i, row in enumerate(rows):
        row["caption"] = f"A Flower, {'blue' if i % 2 else 'red'}; on soil!"
    _, _, prepared = make(tmp_path, "in", rows)
    changed = ChangedCaptions(prepared, "train")
    drawn = changed.draw(np.array([0, 1]), np.array([3, 3]), counter_rng(0, "test"))
    assert drawn == ["A Flower, blue; on soil!", "A Flower, red; on soil!"]
    assert changed.unchanged == 0


def test_pieces_with_one_word_changed(garden: tuple[Config, LocalStore, Prepared]) -> None:
    config, _, prepared = garden
    config = with_wrong(config, "one_word")
    encoder = build_encoder(Recurrent(kind="gru"), prepared.captions, config.storage)
    rows, cpu = encoder.rows(prepared.captions), torch.device("cpu")
    one, other = (Feed(config, prepared, rows, cpu, read=encoder.rows) for _ in range(2))
    places = [(step, micro) for step in range(5) for micro in range(2)]
    pieces = {place: one.piece(*place) for place in places}
    for place in reversed(places):
        assert torch.equal(other.piece(*place).wrong, pieces[place].wrong)
    words = torch.cat([(piece.wrong != piece.right).sum(1) for piece in pieces.values()])
    assert (words > 0).all()
    assert (words == 1).float().mean() > 0.5  # the others have a caption of another class
    with pytest.raises(UserError, match=r"data\.wrong=one_word with a frozen encoder"):
        parse_config(config.model_dump(mode="json") | {"encoder": {"kind": "bert", "model": "x"}})


def test_other_class_draws_as_ever(
    tmp_path: Path, without_classes: tuple[Config, LocalStore, Prepared]
) -> None:
    """Sums of what was drawn before there was a choice."""

    def digest(batches: Batches) -> str:
        pieces = [batches.piece(step, micro) for step in range(20) for micro in range(2)]
        drawn = b"".join(piece.right.tobytes() + piece.wrong.tobytes() for piece in pieces)
        return hashlib.sha256(drawn).hexdigest()[:16]

    store = LocalStore(tmp_path)
    prepared = open_prepared(store, prepare(flowers(), store))
    drawn = Batches(prepared, flowers(), seed=3, batch_size=24, micro_batches=2)
    assert digest(drawn) == "4df2145d65bb6308"
    rows = colours(tmp_path / "in", split=lambda i: "train")
    for i, row in enumerate(rows):
        row["caption"] = "rare" if i == 5 else "common"
        row |= {"class": "ab"[i % 2]} if i > 3 else {}
    rows[7]["captions"] = ["rare too"]
    config, _, prepared = make(tmp_path, "in", rows)
    drawn = Batches(prepared, config.data, seed=0, batch_size=40, micro_batches=2)
    assert digest(drawn) == "e2679fab120fb201"


def test_a_piece_says_what_is_of_one_class(
    garden: tuple[Config, LocalStore, Prepared],
) -> None:
    """Pictures of unknown class differ from all others, and not from themselves."""
    config, _, prepared = garden
    rows = np.arange(len(prepared.captions), dtype=np.int64)[:, None]
    document = config.model_dump(mode="json")
    document["model"]["family"] = "matching"
    document["train"] |= {"batch_size": 96, "micro_batches": 1}
    feed = Feed(parse_config(document), prepared, rows, torch.device("cpu"))
    piece = feed.piece(0, 0)
    assert piece.classes is not None
    sample = np.searchsorted(prepared.first_caption, piece.right[:, 0].numpy(), side="right") - 1
    known = prepared.class_ids[sample]
    same = (sample[:, None] == sample) | ((known[:, None] == known) & (known >= 0))
    assert ((piece.classes[:, None] == piece.classes).numpy() == same).all()
    assert (known < 0).sum() > 4
    drawn = Feed(config, prepared, rows, torch.device("cpu")).piece(0, 0)
    assert drawn.classes is None  # families have no use for it


@pytest.mark.parametrize("kind", ["same_class", "hard"])
def test_data_without_classes_are_refused_before_workers_start(
    without_classes: tuple[Config, LocalStore, Prepared],
    garden: tuple[Config, LocalStore, Prepared],
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    config, store, prepared = without_classes
    assert prepare_data(config, store) == prepared.prefix
    with pytest.raises(UserError, match=rf"^data\.wrong={kind}: .*use data\.wrong=other_class"):
        prepare_data(with_wrong(config, kind), store)
    assert capsys.readouterr().out == ""
    config, store, prepared = garden
    prepare_data(with_wrong(config, kind), store)
    count = {"same_class": 10, "hard": 5}[kind]
    assert f"data.wrong={kind}: {count} of 38 training pictures" in capsys.readouterr().out
    there = Feed(with_wrong(config, kind), prepared, np.zeros((1, 1)), torch.device("cpu"))
    assert there.fallbacks == count
    prepare_data(with_wrong(config, "one_word"), store)
    assert re.search(r"one_word: \d+ of 48 training captions", capsys.readouterr().out)


def test_one_class_has_no_other(tmp_path: Path) -> None:
    rows = colours(tmp_path / "in", split=lambda i: "train", **{"class": lambda i: "all"})
    _, _, prepared = make(tmp_path, "in", rows)
    with pytest.raises(UserError, match=r"data\.wrong=hard: no picture .* has another class"):
        WrongCaptions(prepared, "hard")
    drawn = WrongCaptions(prepared, "same_class").draw(np.arange(40), counter_rng(0, "test"))
    assert (drawn != np.arange(40)).all()


def test_what_is_held_out_is_the_same_for_all(
    without_classes: tuple[Config, LocalStore, Prepared],
    garden: tuple[Config, LocalStore, Prepared],
) -> None:
    config, _, prepared = garden
    rows = np.arange(len(prepared.captions), dtype=np.int64)[:, None]
    cpu = torch.device("cpu")
    kinds = ("other_class", "same_class", "hard")
    feeds = [Feed(with_wrong(config, kind), prepared, rows, cpu) for kind in kinds]
    training, held_out = (
        [f.piece(0, 0) for f in g] for g in (feeds, [f.of_split("val") for f in feeds])
    )
    assert not torch.equal(training[0].wrong, training[1].wrong)
    held_out.append(
        Feed(with_wrong(config, "one_word"), prepared, rows, cpu).of_split("val").piece(0, 0)
    )
    for piece in held_out[1:]:
        assert torch.equal(piece.wrong, held_out[0].wrong)
    config, _, prepared = without_classes
    images, _ = real_pictures(prepared, with_wrong(config, "hard").data, "val")
    assert len(images) == len(prepared.ids("val"))
    assert identity_of(with_wrong(config, "hard"))["data.wrong"] == "hard"
