import numpy as np
import pytest

from t2i_ray.config import SyntheticFlowers
from t2i_ray.data.accept import accept
from t2i_ray.data.record import Record
from t2i_ray.data.sources.flower_captions import NAMED, NUMBERS, WORDS
from t2i_ray.data.sources.synthetic import (
    ATTRIBUTE_VALUES,
    BACKGROUNDS,
    CENTRE_COLOURS,
    PETAL_COUNTS,
    SyntheticSource,
    draw_flower,
    draw_sample,
    split_of,
)


def draw_record(seed: int, index: int, size: int) -> Record:
    return accept(draw_sample(seed, index, size), size)


RECORDS = [draw_record(0, index, 32) for index in range(400)]


def phrases(attribute: str, value: str) -> list[str]:
    """Every wording of a value, exact numbers included."""
    found = list(WORDS[attribute][value])
    if attribute == "petal_count":
        found += [value, *(NUMBERS[number] for number in PETAL_COUNTS[value][0])]
    return found


def says(caption: str, phrase: str) -> bool:
    return f" {phrase} " in f" {caption.replace(',', ' ')} "


def test_a_picture_is_a_function_of_seed_and_index() -> None:
    again = draw_record(0, 17, 32)
    assert (again.image == RECORDS[17].image).all()
    assert again.captions == RECORDS[17].captions
    assert again.attributes == RECORDS[17].attributes
    other = draw_record(1, 17, 32)
    assert other.captions != again.captions
    assert (other.image != again.image).any()


def test_attributes_and_captions_do_not_depend_on_the_size() -> None:
    large = draw_record(0, 5, 76)
    assert large.image.shape == (76, 76, 3)
    assert large.captions == RECORDS[5].captions
    assert large.attributes == RECORDS[5].attributes


def test_captions_name_what_named_says_and_nothing_wrong() -> None:
    for record in RECORDS:
        assert len(record.captions) >= 5
        for caption, named in zip(record.captions, record.named, strict=True):
            for attribute, value in record.attributes.items():
                told = any(says(caption, phrase) for phrase in phrases(attribute, value))
                assert told == (attribute in named), (caption, attribute)
                for other in set(ATTRIBUTE_VALUES[attribute]) - {value}:
                    wrong = set(phrases(attribute, other)) - set(phrases(attribute, value))
                    assert not [phrase for phrase in wrong if says(caption, phrase)], caption


def test_every_caption_names_the_petal_colour_and_others_as_often_as_promised() -> None:
    named = [names for record in RECORDS for names in record.named]
    assert all("petal_colour" in names for names in named)
    for attribute, often in NAMED.items():
        share = np.mean([attribute in names for names in named])
        assert abs(share - often) < 0.05


def test_captions_are_plain_and_varied() -> None:
    captions = [caption for record in RECORDS for caption in record.captions]
    assert len(set(captions)) > 0.9 * len(captions)
    for caption in captions:
        assert "  " not in caption
        assert " the a " not in f" {caption}"
        assert not {"no", "not", "without", "none"} & set(caption.replace(",", "").split())


def test_no_wording_stands_for_two_values() -> None:
    for values in WORDS.values():
        words = [word for several in values.values() for word in several]
        assert len(words) == len(set(words))


def test_words_and_values_agree() -> None:
    assert {name: list(values) for name, values in WORDS.items()} == ATTRIBUTE_VALUES


def test_held_out_combinations_never_occur_in_train() -> None:
    sides: dict[str, set[tuple[str, ...]]] = {"train": set(), "val": set(), "test": set()}
    for record in RECORDS:
        values = record.attributes
        combination = (values["petal_colour"], values["centre_colour"], values["background"])
        sides[record.split].add(combination)
    assert not sides["train"] & sides["test"]
    assert not sides["train"] & sides["val"]
    assert not sides["val"] & sides["test"]


@pytest.mark.parametrize("attribute", ["petal_colour", "centre_colour", "background"])
def test_every_value_is_in_every_split_equally_often(attribute: str) -> None:
    counts: dict[tuple[str, str], int] = {}
    for petal in ATTRIBUTE_VALUES["petal_colour"]:
        for centre in ATTRIBUTE_VALUES["centre_colour"]:
            for background in ATTRIBUTE_VALUES["background"]:
                values = {"petal_colour": petal, "centre_colour": centre, "background": background}
                place = (split_of(values), values[attribute])
                counts[place] = counts.get(place, 0) + 1
    several = len(ATTRIBUTE_VALUES[attribute])
    assert len(counts) == 3 * several
    assert {counts[split, value] for split, value in counts if split != "train"} == {16 // several}


def test_all_petal_counts_from_four_to_twelve_are_drawn() -> None:
    numbers = [number for counts, _ in PETAL_COUNTS.values() for number in counts]
    assert sorted(numbers) == list(range(4, 13))
    assert all(abs(sum(weights) - 1) < 1e-9 for _, weights in PETAL_COUNTS.values())
    told = {word for r in RECORDS for c in r.captions for word in c.split()}
    assert set(NUMBERS.values()) <= told


@pytest.mark.parametrize(
    ("attribute", "colours", "place"),
    [("centre_colour", CENTRE_COLOURS, (16, 16)), ("background", BACKGROUNDS, (1, 30))],
)
def test_the_picture_shows_the_colours_it_should(
    attribute: str, colours: dict[str, tuple[int, int, int]], place: tuple[int, int]
) -> None:
    """The middle has the centre's colour, a corner the background's, whatever else varies."""
    y, x = place
    for index in range(40):
        values = {**RECORDS[index].attributes, "lighting": "bright", "leaves": "bare"}
        picture = draw_flower(values, 5, 32, np.random.default_rng(index)).astype(float)
        patch = picture[y - 1 : y + 2, x - 1 : x + 2].mean((0, 1))
        far = {value: np.abs(patch - colour).sum() for value, colour in colours.items()}
        assert min(far, key=far.__getitem__) == values[attribute]


def test_source_lists_classes_and_reads() -> None:
    source = SyntheticSource(SyntheticFlowers(images=64), 32)
    assert source.keys == sorted(source.keys)
    assert len(source.keys) == 64
    record = accept(source.read(source.keys[3]), 32)
    assert (record.image == RECORDS[3].image).all()
    assert record.class_name in source.classes
    assert len(source.classes) == 32
