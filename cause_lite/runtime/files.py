"""Files that are whole or absent, and errors that a reader can act on."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pooch
import psutil


class UserError(Exception):
    """What was wrong, where, and what to do; the command line prints it as one line."""


def cache_dir() -> Path:
    """The folder for what can be made again: `$CAUSE_CACHE`, or the user's cache folder."""
    folder = Path(os.environ.get("CAUSE_CACHE") or pooch.os_cache("cause-lite"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def data_dir() -> Path:
    """Where data sets lie, and are downloaded to: `$CAUSE_DATA`, or a folder of the cache."""
    return Path(os.environ.get("CAUSE_DATA") or cache_dir() / "data")


def project_dir() -> Path:
    """The folder that holds `data/`: the checkout, or the installed package."""
    here = Path(__file__).resolve().parents[1]
    return here if (here / "data").is_dir() else here.parent


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file or folder beside `path`, then rename it: readers see all or nothing.

    Raises UserError when the disk refuses the write; nothing is left behind then.
    """
    path = Path(path)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_orphans(path)
        write(part)
        try:
            os.replace(part, path)
        except OSError:
            if not (part.is_dir() and path.is_dir()):  # else another process made the same folder meanwhile
                raise
    except OSError as error:
        raise UserError(
            f"{path}: could not be written ({error.strerror or error}); free space or name another folder"
        ) from error
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _remove_orphans(path: Path) -> None:
    """Remove what processes that were killed while they wrote `path` left beside it."""
    start, end = f".{path.stem}.", f".part{path.suffix}"
    for other in path.parent.iterdir():
        if other.name.startswith(start) and other.name.endswith(end):
            number = other.name[len(start) : -len(end)]
            if number.isdigit() and not psutil.pid_exists(int(number)):
                shutil.rmtree(other, ignore_errors=True) if other.is_dir() else other.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold a folder (made if absent) for this process alone; the lock goes with the process, however it ends.

    Raises UserError when another process holds it, unless it is to `wait` for its turn, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise UserError(f"{folder}: another process is writing there; wait or name another folder") from error
            yield
    except OSError as error:
        raise UserError(f"{folder}: could not be written ({error.strerror or error}); name another folder") from error


def write_json(path: Path, content: object) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> dict:
    """Read a JSON object. Raises UserError naming the file when it is absent or damaged."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: could not be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UserError(f"{path}: is not valid JSON ({error}); restore it or delete it") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__} where an object is expected")
    return content


def read_torch(path: Path) -> object:
    """Tensors and plain values from a file that `torch.save` wrote; nothing in it is executed.

    Raises UserError naming the file when it is absent, damaged, or holds anything else.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged bytes torch raises nearly any kind
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: is not a file of tensors that is safe to load ({reason})") from error
