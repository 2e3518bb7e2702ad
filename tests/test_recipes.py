"""Recipes: thirty rows with their published values, inheritance, and errors that name file and field."""

from __future__ import annotations

import re

import pytest
import yaml

from cause_lite.checkpoints.segmenter_folder import read_config
from cause_lite.commands.console import settings_of
from cause_lite.config import FitConfig
from cause_lite.lab import recipes
from cause_lite.lab.recipes.reading import flattened
from cause_lite.runtime.files import UserError, write_json


def test_every_published_row_is_there():
    rows = recipes.rows()
    assert len(rows) == 30 == len({row.key for row in rows})
    counts = {"cocostuff27": 10, "cityscapes": 8, "pascalvoc": 8, "coco81": 2, "coco171": 2}
    assert {t: sum(r.table == t for r in rows) for t in recipes.TABLES} == counts
    assert {r.name.rsplit("-", 1)[0] for r in rows} == {p.stem for p in (recipes.FOLDER / "backbones").glob("*.yaml")}
    for row in rows:
        assert row.name.endswith(f"-{row.config.head.kind}") and row.config.data.name == row.table
        assert 0 < row.published["miou"] < 100 and row.published["source"]


def test_the_settings_that_the_list_of_choices_names_exist():
    settings = flattened(recipes.recipe("scenes", "tr", 0).model_dump())
    decisions = yaml.safe_load((recipes.FOLDER / "decisions.yaml").read_text(encoding="utf-8"))
    quoted = {word for entry in decisions for word in re.findall("`([^`]+)`", entry["ours"])}
    named = {word.partition("=")[0].partition(":")[0] for word in quoted} - {"as_released"}
    assert len(named) > 10 and named <= settings.keys()


def test_rows_inherit_and_differ_as_the_release_does():
    mlp, tr = (recipes.row(f"cocostuff27/dino-b8-{head}").config for head in ("mlp", "tr"))
    assert (mlp.data.size, mlp.scored_size, mlp.head.clip, mlp.probe.epochs) == (224, 320, 0.1, 1)
    assert (tr.data.size, tr.scored_size, tr.head.clip, tr.probe.epochs) == (320, 320, 2.0, 5)
    assert recipes.row("cityscapes/dino-s8-tr").config.head.weight_decay == 0
    assert recipes.row("pascalvoc/dino-s8-tr").config.data.fit == "squash"
    assert recipes.row("coco171/dino-s8-tr").config.head.positive_threshold == 0.55
    assert recipes.row("cocostuff27/dinov2-b14-tr").config.data.size == 322
    default = FitConfig()
    assert tr.clusterbook == default.clusterbook
    assert tr.head == default.head


def written(folder, text: str):
    path = folder / "rows" / "cocostuff27" / "new-tr.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


GOOD = "data: cocostuff27\nbackbone: dino-s8\nhead: tr\npublished: {miou: 1, pacc: null, source: x}\n"


@pytest.mark.parametrize(
    "text, named",
    [
        (GOOD + "setings: {size: 3}\n", "unknown key 'setings'; did you mean 'settings'"),
        (GOOD + "settings: {data: {siez: 3}}\n", "unknown key 'data.siez'; did you mean 'data.size'"),
        (GOOD + "settings: {data: {size: large}}\n", "data.size: .*integer, not 'large'"),
        (GOOD + "settings: {data: {size: -1}}\n", "data.size: must be greater than or equal to 1, not -1"),
        (GOOD + "settings: {optimisation: {precision: fp8}}\n", "optimisation.precision: must be 'fp64', .*not 'fp8'"),
        (GOOD + "settings: {head: {clip: .nan}}\n", "head.clip: .*finite number"),
        (GOOD + "settings: {optimisation: {compiled: 1}}\n", "optimisation.compiled: .*boolean, not 1"),
        (GOOD + "settings: [size]\n", "`settings`"),
        (GOOD.replace("dino-s8", "dino-s9"), "`backbone` must be one of dino-b8.*, not 'dino-s9'"),
        (GOOD.replace("data: cocostuff27", "data: ../evil"), r"`data` must be one of .*, not '\.\./evil'"),
        (GOOD.replace("head: tr", "head: cnn"), "head: must be one of .*, not 'cnn'"),
        (GOOD.replace("head: tr\n", ""), "`head` is missing"),
        (GOOD.replace("miou: 1", "mIoU: 1"), "`published` must hold miou"),
        ("- a\n- b\n", "expected named settings, not a list"),
        ("a: [", "not readable YAML"),
        ("!!python/object/apply:os.system ['true']\n", "not readable YAML"),
        ("", "expected named settings, not a NoneType"),
    ],
)
def test_a_mistake_names_file_and_field(tmp_path, text, named):
    with pytest.raises(UserError, match=named) as error:
        recipes.read_row(written(tmp_path, text))
    assert "new-tr.yaml" in str(error.value)


def test_a_good_row_is_read(tmp_path):
    row = recipes.read_row(written(tmp_path, GOOD + "settings: {clusterbook: {concepts: 7}}\n"))
    assert row.config.clusterbook.concepts == 7 and row.published["pacc"] is None


def test_an_unknown_row_gets_its_neighbours():
    with pytest.raises(UserError, match="did you mean cocostuff27/dino-s8-tr"):
        recipes.row("cocostuff27/dino-s8-trr")


def test_settings_are_checked_on_their_own():
    with pytest.raises(UserError, match=r"optimisation\.batch_size: must be greater than or equal to 1"):
        FitConfig().replace({"optimisation.batch_size": 0})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"head.epoch": 3}, r"unknown setting 'head\.epoch'; did you mean 'head\.epochs'"),
        ({"head.ema_decay": 1.5}, r"head\.ema_decay: must be less than or equal to 1, not 1\.5"),
        ({"head.dropout": 2}, r"head\.dropout: must be less than 1, not 2"),
        ({"head.temperature": 0}, r"head\.temperature: must be greater than 0, not 0"),
        ({"head.negative_threshold": 0.9}, r"negative_threshold 0\.9 must not be above positive_threshold 0\.3"),
        ({"head.clip": 0.0}, r"head\.clip: must be greater than 0"),
        ({"seed": True}, r"seed: .*integer, not True"),
        ({"head": 3}, r"head: .*not 3"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(changes, complaint):
    with pytest.raises(UserError, match=complaint):
        FitConfig().replace(changes)


def test_settings_on_the_command_line_are_read_as_yaml():
    assigned = settings_of(["head.epochs=4", "head.clip=null", "head.kind=mlp", "head.dropout=0.2"])
    assert assigned == {"head.epochs": 4, "head.clip": None, "head.kind": "mlp", "head.dropout": 0.2}
    for wrong, complaint in (("head.epochs", "expected NAME=VALUE"), ("a=[", "not valid YAML")):
        with pytest.raises(UserError, match=complaint):
            settings_of([wrong])


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"num_concepts": 512}, "unknown setting 'num_concepts'.*fit again"),
        ({"backbone": "resnet18?levels=3"}, r"backbone: settings do not follow a name after `\?`.*fit again"),
        (None, "absent.*fit again"),
    ],
)
def test_a_fit_of_an_earlier_version_is_refused_by_the_name_of_its_setting(tmp_path, config, complaint):
    write_json(tmp_path / "fit.json", {"config": config} if config else {})
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))}/fit.json: .*{complaint}"):
        read_config(tmp_path)
