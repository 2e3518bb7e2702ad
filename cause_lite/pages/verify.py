"""Compare the numbers that a build of the book computed with data/expected.json, to the last digit that is printed.

Begin with `verify`; `accept` writes the expectation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, ValidationError

from cause_lite.runtime.files import UserError, project_dir, read_json, write_json

REPEATABILITY = 2.8  # deviations by which two runs that vary alike differ in one of twenty cases (ISO 5725-6:1994)
Model = TypeVar("Model", bound=BaseModel)


class Expectation(BaseModel):
    """The value of a number, and with how many decimals it is printed."""

    model_config = ConfigDict(strict=True)

    value: FiniteFloat
    digits: NonNegativeInt


class Expected(BaseModel):
    """The content of data/expected.json: numbers by their keys, and the environment that computed them."""

    model_config = ConfigDict(strict=True)

    environment: dict[str, str]
    numbers: dict[str, Expectation]


class Number(Expectation):
    """A number of a build and how it was made; `spread` is its measured standard deviation, if any."""

    key: str
    unit: str
    spread: Annotated[FiniteFloat, Field(ge=0)] | None
    seed: int | None
    config_hash: str
    commit: str
    environment: dict[str, str]


@dataclass(frozen=True)
class Check:
    """One line of `verify`: `status` is ok, moved, missing (not computed) or new (not expected)."""

    key: str
    status: str
    digits: int
    expected: float | None = None
    found: float | None = None
    allowed: float | None = None
    gpu: str | None = None  # what computed the number, where that is why more is allowed
    differs: tuple[str, ...] = ()  # entries of the environment, in words

    def values(self) -> tuple[str, str, str]:
        """Return as texts, with a digit more than is printed: the record, this build's number, how far it may be."""
        numbers = (self.expected, self.found, self.allowed)
        record, found, allowed = ("-" if one is None else f"{one:.{self.digits + 1}f}" for one in numbers)
        return record, found, f"{allowed}, since {self.gpu} computed it" if self.gpu else allowed

    def told(self) -> str:
        """Return in words what the record says and what this build computed."""
        record, found, allowed = self.values()
        return f"{self.key} ({self.status}): {record} in the record, {found} in this build; allowed: {allowed}"


def records_dir() -> Path:
    """Return the folder in which a build of the book leaves its headline numbers."""
    return project_dir() / "_build" / "records"


def expected_path() -> Path:
    """Return the file of the expected numbers, data/expected.json."""
    return project_dir() / "data" / "expected.json"


def allowance(number: Number) -> tuple[float, str | None]:
    """Return how far a number may be from its record, half a unit of its last printed digit, and None.

    A GPU adds in another order than the processor that made the record. What it computes may be 2.8 standard
    deviations away, where the deviation was measured; then the GPU's name is returned in place of None.
    """
    half, gpu = 0.5 * 10**-number.digits, number.environment.get("accelerator")
    wide = REPEATABILITY * (number.spread or 0)
    return (wide, gpu) if gpu and wide > half else (half, None)


def verify(folder: Path | None = None, expected: Path | None = None) -> list[Check]:
    """Compare what a build computed with what is expected; every key of either side is a line.

    Parameters
    ----------
    folder
        The build's records; by default `records_dir()`.
    expected
        The expectation; by default `expected_path()`.

    Raises
    ------
    UserError
        Naming the file that is damaged.
    """
    wanted, found = _read(Expected, expected or expected_path(), "restore it"), _read_numbers(folder)
    return [_checked(key, wanted, found.get(key)) for key in sorted(wanted.numbers.keys() | found)]


def _checked(key: str, wanted: Expected, number: Number | None) -> Check:
    """Return the line of one key."""
    record = wanted.numbers.get(key)
    if number is None:
        return Check(key, "missing", wanted.numbers[key].digits, wanted.numbers[key].value)
    if record is None:
        return Check(key, "new", number.digits, found=number.value)
    allowed, gpu = allowance(number)
    # A little more than the half, since neither it nor the two values are exact in binary.
    status = "ok" if abs(number.value - record.value) <= allowed * (1 + 1e-9) else "moved"
    differs = tuple(_differences(wanted.environment, number.environment))
    return Check(key, status, number.digits, record.value, number.value, allowed, gpu, differs)


def _differences(then: dict[str, str], now: dict[str, str]) -> list[str]:
    return [
        f"{name}: {then.get(name, 'none')} in the record, {now.get(name, 'none')} in this build"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]


def summary(checks: list[Check]) -> str:
    """Return which numbers do not hold, a line each, and in what this build's environment differs; else nothing."""
    wrong = [check for check in checks if check.status != "ok"]
    if not checks:
        return "nothing was computed; run `make book` first"
    if not wrong:
        return ""
    differs = sorted({entry for check in wrong for entry in check.differs})
    lines = [check.told() for check in wrong]
    lines += ["the environment of the record differs:", *differs] if differs else ["the environments are the same"]
    return "\n  ".join([f"{len(wrong)} of {len(checks)} numbers do not hold:", *lines])


def accept(folder: Path | None = None, expected: Path | None = None) -> int:
    """Write what a build computed as the new expectation, and return the count of numbers.

    Raises UserError, and writes nothing, when the build computed none. The parameters are those of `verify`; a key that
    the build did not compute leaves the expectation.
    """
    numbers = _read_numbers(folder)
    if not numbers:
        raise UserError(f"{folder or records_dir()}: holds no record of a number; run `make book` first")
    content = {key: {"value": number.value, "digits": number.digits} for key, number in numbers.items()}
    environment = next(iter(numbers.values())).environment
    write_json(expected or expected_path(), {"environment": environment, "numbers": content})
    return len(numbers)


def _read_numbers(folder: Path | None) -> dict[str, Number]:
    paths = sorted((folder or records_dir()).glob("*.json"))
    return {number.key: number for number in (_read(Number, path, "build the book again") for path in paths)}


def _read(kind: type[Model], path: Path, remedy: str) -> Model:
    """Return a file as a model; UserError names the file and its first wrong field."""
    content = read_json(path)
    try:
        return kind(**content)
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}; {remedy}") from error


def first_problem(error: ValidationError) -> str:
    """Return the first wrong field of a model, what it holds and what is wrong with it, in words."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    given = "" if first["type"] == "missing" else f", not {first['input']!r}"
    return f"`{place}`: {first['msg']}{given}"
