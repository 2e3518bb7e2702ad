"""Read the settings of data sets, backbones and published rows from the YAML files of this folder.

Begin with `recipe`; `row` reads a published row.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from cause_lite.config import HEADS, FitConfig
from cause_lite.datasets import is_folder
from cause_lite.runtime.files import UserError
from cause_lite.runtime.settings import merged, nested, setting_names

FOLDER = Path(__file__).parent
KEYS = {
    "data": {"like", "split", "settings", "heads"},
    "rows": {"data", "backbone", "head", "published", "settings"},
}
SETTINGS = {"backbone", *setting_names(FitConfig)} - {"data.name", "head.kind", "seed"}
PUBLISHED = {"miou", "pacc", "source"}
TABLES = {
    "cocostuff27": "COCO-Stuff-27",
    "cityscapes": "Cityscapes",
    "pascalvoc": "Pascal VOC",
    "coco81": "COCO-81",
    "coco171": "COCO-171",
}


@dataclass(frozen=True)
class Row:
    """A row of a published table: its settings, and the published scores in percent (None: not given)."""

    table: str
    name: str
    backbone: str
    config: FitConfig
    published: dict[str, float | str | None]

    @property
    def key(self) -> str:
        """The row's name among all tables, such as cocostuff27/dino-s8-tr."""
        return f"{self.table}/{self.name}"


def recipe(
    data: str, head: str, seed: int = 0, backbone: str | None = None, changes: Mapping[str, object] | None = None
) -> FitConfig:
    """Return the settings for a data set (or a folder of images) and a head.

    Parameters
    ----------
    data, head
        The data set's name or a folder; `tr` or `mlp`.
    seed, backbone
        The seed; a backbone in place of the recipe's.
    changes
        Other settings, by name, as in {"head.epochs": 4}.

    Raises
    ------
    UserError
        For an unknown data set, head or setting, or a value out of range.
    """
    about = _data("folder" if is_folder(data) else data)
    if is_folder(data):
        data = str(Path(data).absolute())  # so that a run works from any folder
    elif (changes or {}).get("data.clusters") is not None:
        raise UserError(f"{data}: clusters are for a folder of your own; this data set has a cluster for each class")
    elif (changes or {}).get("data.window") is not None or (changes or {}).get("data.bands") is not None:
        raise UserError(f"{data}: window and bands are for a folder of your own; leave them out")
    if head not in HEADS:
        raise UserError(f"head: must be one of {', '.join(HEADS)}, not {head!r}")
    settings = merged(about["settings"], about["heads"].get(head, {}))
    chosen = {"data.name": data, "head.kind": head, "seed": seed} | ({"backbone": backbone} if backbone else {})
    return FitConfig(**merged(settings, nested(chosen))).replace(changes or {})


def evaluation_split(data: str) -> str:
    """Return the split that scores are reported on."""
    return _data("folder" if is_folder(data) else data)["split"]


def data_names() -> list[str]:
    """Return the names of the data sets that have a recipe."""
    return sorted(path.stem for path in (FOLDER / "data").glob("*.yaml") if path.stem != "folder")


def rows(table: str | None = None) -> list[Row]:
    """Return the rows of one table, or of all, in the order of the tables."""
    return [
        row(f"{t}/{path.stem}")
        for t in TABLES
        if table in (None, t)
        for path in sorted((FOLDER / "rows" / t).glob("*"))
    ]


def row(key: str) -> Row:
    """Return the row of a key, TABLE/ROW, such as cocostuff27/dino-s8-tr.

    Raises
    ------
    UserError
        For an unknown one, naming the nearest.
    """
    path = FOLDER / "rows" / f"{key}.yaml"
    if key.count("/") != 1 or key.split("/")[0] not in TABLES or not path.is_file():
        keys = [f"{p.parent.name}/{p.stem}" for p in sorted((FOLDER / "rows").glob("*/*.yaml"))]
        near = difflib.get_close_matches(key, keys, 3, 0) or keys[:3]
        raise UserError(f"no row named {key!r}; did you mean {', '.join(near)}? `cause-lite reproduce` alone lists all")
    return read_row(path)


def read_row(path: Path) -> Row:
    """Read a row's file, with everything that it inherits.

    Raises
    ------
    UserError
        Naming the file and the field at fault.
    """
    about = _read(path, KEYS["rows"])
    for field in ("data", "backbone", "head", "published"):
        if field not in about:
            raise UserError(f"{path}: `{field}` is missing")
    if not isinstance(about["published"], dict) or about["published"].keys() != PUBLISHED:
        raise UserError(f"{path}: `published` must hold {', '.join(sorted(PUBLISHED))} and nothing else")
    backbone = _read(_existing(FOLDER / "backbones", about["backbone"], path, "backbone"))
    check_settings(backbone, path)
    _existing(FOLDER / "data", about["data"], path, "data")
    try:
        base = recipe(about["data"], about["head"])
        config = base.replace(flattened(merged(backbone, about.get("settings", {}))))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Row(path.parent.name, path.stem, about["backbone"], config, about["published"])


def _existing(folder: Path, name: object, path: Path, field: str) -> Path:
    """Return the file of a name in `folder`, which the `field` of `path` gives; raise UserError without one."""
    target = folder / f"{name}.yaml"
    if not isinstance(name, str) or "/" in name or not target.is_file():
        names = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise UserError(f"{path}: `{field}` must be one of {names}, not {name!r}")
    return target


def _data(name: str) -> dict:
    """Read a data set's recipe, with what it inherits by `like`."""
    path = FOLDER / "data" / f"{name}.yaml"
    if "/" in name or not path.is_file():
        raise UserError(f"no recipe for the data set {name!r}; choose from {', '.join(data_names())}, or a folder")
    about = {"settings": {}, "heads": {}} | _read(path, KEYS["data"])
    if "like" in about:
        base = _data(about.pop("like"))
        heads = {h: merged(base["heads"].get(h, {}), about["heads"].get(h, {})) for h in HEADS}
        about = base | about | {"settings": merged(base["settings"], about["settings"]), "heads": heads}
    return about


def _read(path: Path, keys: set[str] | None = None) -> dict:
    """Read a YAML file of known keys; raise UserError naming the file and the key that is unknown or mistyped."""
    try:
        about = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not readable YAML ({' '.join(str(error).split())})") from error
    if not isinstance(about, dict) or not all(isinstance(key, str) for key in about):
        raise UserError(f"{path}: expected named settings, not a {type(about).__name__}")
    if keys is None:
        return about
    check_keys(about, keys, path)
    if not isinstance(about.get("settings", {}), dict) or not isinstance(about.get("heads", {}), dict | list):
        raise UserError(f"{path}: `settings` and `heads` must hold named settings")
    check_settings(about.get("settings", {}), path)
    heads = about.get("heads", {})
    for head, settings in heads.items() if isinstance(heads, dict) else ():
        if head not in HEADS or not isinstance(settings, dict):
            raise UserError(f"{path}: `heads` must hold named settings of {', '.join(HEADS)}, not {head!r}")
        check_settings(settings, path)
    return about


def check_keys(given: dict, known: set[str], path: Path) -> None:
    """Raise UserError naming the first key that is not known, and the nearest that is."""
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), sorted(known), 1)
            raise UserError(f"{path}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def check_settings(settings: dict, path: Path) -> None:
    """Raise UserError naming the first setting that is not known, and the nearest that is."""
    check_keys(flattened(settings), SETTINGS, path)


def flattened(settings: Mapping[str, object]) -> dict[str, object]:
    """Turn {"head": {"epochs": 4}} into {"head.epochs": 4}."""
    flat: dict[str, object] = {}
    for name, value in settings.items():
        inner = flattened(value) if isinstance(value, dict) else None
        flat |= {name: value} if inner is None else {f"{name}.{key}": leaf for key, leaf in inner.items()}
    return flat
