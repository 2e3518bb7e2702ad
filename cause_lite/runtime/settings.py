"""Groups of settings: checked, immutable, named by group as in `head.epochs`, with errors that a reader can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cause_lite.runtime.files import UserError

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Cosine = Annotated[float, Field(ge=-1, le=1)]


class Settings(BaseModel):
    """A group of settings: immutable, of strict types, with no unknown names and no NaN."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class SettingsTree(Settings):
    """All settings of a program: single ones, and groups of them.

    Raises UserError, naming each setting whose value is unknown, of another type or out of range, and what it must be.
    """

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise UserError("; ".join(_explanations(error, setting_names(type(self))))) from error

    def replace(self, changes: Mapping[str, object]) -> Self:
        """Return a copy with other settings, named as in {"head.epochs": 4}."""
        return type(self)(**merged(self.model_dump(), nested(changes)))


def nested(changes: Mapping[str, object]) -> dict[str, Any]:
    """Turn {"head.epochs": 4, "seed": 1} into {"head": {"epochs": 4}, "seed": 1}."""
    tree: dict[str, Any] = {}
    for name, value in changes.items():
        *groups, leaf = name.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[leaf] = value
    return tree


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the settings of `changes`, group by group; a text in place of a group is its name."""
    groups = {
        key: merged({"name": base[key]} if isinstance(base[key], str) else base[key], changes[key])
        for key in base.keys() & changes.keys()
        if isinstance(base[key], dict | str) and isinstance(changes[key], dict)
    }
    return {**base, **changes, **groups}


def setting_names(settings: type[BaseModel]) -> list[str]:
    """Return the names of all settings, such as head.epochs."""
    names = []
    for name, field in settings.model_fields.items():
        kind: Any = field.annotation
        group = isinstance(kind, type) and issubclass(kind, Settings)
        names += [f"{name}.{inner}" for inner in setting_names(kind)] if group else [name]
    return names


def _explanations(error: ValidationError, known: list[str]) -> Iterator[str]:
    """Say of each wrong setting its name, its value and what it must be; suggest the `known` name of a misspelt one."""
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, known, 1, 0.4)
            yield f"unknown setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        else:
            message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            yield f"{name}: {message}" + ("" if isinstance(item["input"], dict) else f", not {item['input']!r}")
