"""The config: overrides, errors that name field, value and remedy, identity, shipped files."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from t2i_ray.config import (
    CharCnnRnn,
    Config,
    Recurrent,
    Search,
    Section,
    Sweep,
    UserError,
    flatten,
    identity_hash,
    identity_of,
    json_schema,
    load_config,
    parse_config,
    sweep_schema,
)

CONFIGS = Path(__file__).parent.parent / "configs"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def minimal(**changes: object) -> Config:
    return parse_config({"name": "a", "train": {"steps": 10}, **changes})


def test_overrides_reach_any_depth_and_are_yaml(tmp_path: Path) -> None:
    source = "{source: {kind: synthetic-flowers}}"
    path = written(tmp_path, f"name: a\ntrain: {{steps: 10}}\ndata: {source}\n")
    config = load_config(
        path, ["optim.lr_d=1e-4", "data.source.images=100", "data.flip=false", "name=b"]
    )
    assert (config.optim.lr_d, config.data.flip, config.name) == (1e-4, False, "b")
    assert config.data.source.images == 100  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "overrides", "says"),
    [
        ("name: a\ntrain: {steps: 10}\nspeed: 9\n", [], ["speed", "unknown key"]),
        ("name: a\ntrain: {steps: 10, stepz: 9}\n", [], ["train.stepz", "unknown key"]),
        ("name: a\n", [], ["train", "missing"]),
        ("name: a\ntrain: {steps: many}\n", [], ["train.steps", "many"]),
        ("name: a\ntrain: {steps: 1, micro_batches: 3}\n", [], ["micro_batches=3", "64", "use"]),
        ("name: a\ntrain: {steps: 1}\n", ["cluster.workers=2"], ["workers=2", "micro_batches=1"]),
        ("name: a\ntrain: {steps: 1}\n", ["encoder.kind=lstmm"], ["encoder", "lstmm", "bigru"]),
        ("name: a\ntrain: {steps: 1}\n", ["data.source.kind=imagenet"], ["imagenet", "folder"]),
        ("name: a\ntrain: {steps: 1}\n", ["data.image_size=32"], ["g_channels", "64", "32"]),
        ("name: a\ntrain: {steps: 1}\n", ["data.load_size=60"], ["load_size=60", "64 or more"]),
        ("name: a\ntrain: {steps: 1}\n", ["encoder.dim=9"], ["encoder", "encoder.kind"]),
        ("name: a/b\ntrain: {steps: 1}\n", [], ["name", "a/b"]),
        ("name: a\ntrain: {steps: 1}\n", ["train.steps"], ["train.steps", "key.sub=value"]),
        ("name: a\ntrain: {steps: 1}\n", ["name.x=1"], ["name.x=1", "not a section"]),
        ("name: [a\n", [], ["not YAML"]),
        ("- a\n", [], ["mapping"]),
    ],
)
def test_errors_name_field_value_and_remedy(
    tmp_path: Path, text: str, overrides: list[str], says: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(written(tmp_path, text), overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in says:
        assert part in message


@pytest.mark.parametrize(
    ("best", "wrong"),
    [("val/frechet_reader", "max"), ("val/fid", "max"), ("val/agreement/mean", "min")],
)
def test_the_best_checkpoint_is_not_the_worst(best: str, wrong: str) -> None:
    right = {"max": "min", "min": "max"}[wrong]
    says = rf"checkpoint\.best_mode={wrong}: checkpoint\.best={best} .*write {right}"
    with pytest.raises(UserError, match=says):
        minimal(checkpoint={"best": best, "best_mode": wrong})
    minimal(checkpoint={"best": best, "best_mode": right})
    minimal(checkpoint={"best": "d_loss", "best_mode": wrong})  # of which nobody knows


def test_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml"):
        load_config(tmp_path / "none.yaml")


def test_identity_ignores_what_the_curve_does_not_depend_on() -> None:
    base = identity_hash(minimal(), "d")
    operational: list[dict[str, object]] = [
        {"cluster": {"threads": 4}},
        {"storage": {"uri": "/elsewhere"}},
        {"checkpoint": {"every": 7}},
        {"tracking": {"experiment": "x"}},
        {"train": {"steps": 10, "log_every": 5}},
        {"name": "b"},
        {"encoder": {"kind": "bigru", "init_from": "/x"}},  # what lies there has a sum of its own
    ]
    for change in operational:
        assert identity_hash(minimal(**change), "d") == base, change
    others: list[dict[str, object]] = [
        {"seed": 1},
        {"optim": {"lr_g": 1e-3}},
        {"train": {"steps": 11}},
        {"train": {"steps": 10, "micro_batches": 2}},
        {"encoder": {"kind": "bigru", "dim": 8}},
        {"encoder": {"kind": "gru"}},
        {"encoder": {"kind": "bigru", "init_from": "/x", "init_sha256": "0" * 64}},
    ]
    for change in others:
        assert identity_hash(minimal(**change), "d") != base, change
    assert identity_hash(minimal(), "other data") != base


def test_every_field_says_whether_it_is_identity_and_what_it_is() -> None:
    def check(section: type[Section]) -> None:
        for name, field in section.model_fields.items():
            if name == "kind" or field.description is None:
                subsection = isinstance(field.annotation, type) and issubclass(
                    field.annotation, Section
                )
                assert subsection or name in ("kind", "encoder"), f"{section.__name__}.{name}"
            else:
                assert isinstance(field.json_schema_extra, dict), f"{section.__name__}.{name}"
                assert "identity" in field.json_schema_extra, f"{section.__name__}.{name}"

    def below(section: type[Section]) -> set[type[Section]]:
        return {section}.union(*map(below, section.__subclasses__()))

    sections = {s for s in below(Section) if s.__module__.startswith("t2i_ray.config.")}
    assert {Config, Search, Sweep, CharCnnRnn, Recurrent} < sections
    for section in sections - {Sweep}:  # whose fields are sections
        check(section)


def test_identity_and_flat_forms_agree() -> None:
    config = minimal()
    flat = flatten(config)
    assert set(identity_of(config)) < set(flat)
    assert flat["encoder.kind"] == "bigru"
    assert "cluster.workers" not in identity_of(config)
    assert "data.source.images" not in identity_of(config)


def test_no_field_could_hold_a_credential() -> None:
    for name in flatten(minimal()):
        for word in ("password", "secret", "token", "access_key"):
            assert word not in name.replace("max_tokens", "")


@pytest.mark.parametrize(
    ("folder", "schema"), [("configs", json_schema()), ("tune_configs", sweep_schema())]
)
def test_checked_in_schemas_are_current_and_fit_what_is_shipped(
    folder: str, schema: dict[str, object]
) -> None:
    there = CONFIGS.parent / folder
    assert json.loads((there / "schema.json").read_text()) == schema
    for path in there.glob("*.yaml"):
        document = yaml.safe_load(path.read_text())
        jsonschema.validate(document, schema)
        assert path.read_text().startswith("# yaml-language-server: $schema=schema.json\n")
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**document, "trian": {}}, schema)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configs_are_valid(path: Path) -> None:
    config = load_config(path)
    assert parse_config(config.model_dump(mode="json")) == config


def test_paper_config_is_the_paper() -> None:
    config = load_config(CONFIGS / "gan_cls_64.yaml")
    assert config.model.noise_dim == 100
    assert config.model.text_dim == 128
    assert config.model.g_channels == [512, 256, 128, 64]
    assert config.model.d_channels == [64, 128, 256, 512]
    assert config.train.batch_size == 64
    assert config.optim.lr_g == config.optim.lr_d == 2e-4
    assert config.optim.beta1 == 0.5
    assert config.encoder.dim == 1024  # type: ignore[union-attr]
