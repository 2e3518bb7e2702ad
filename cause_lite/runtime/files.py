"""Write files that are whole or absent, read them with errors that a reader can act on, and name the folders."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs
import psutil
from filelock import FileLock, Timeout

OLD = ".old"  # where a folder that is written over waits until the new one is in its place


class UserError(Exception):
    """An error whose message says what was wrong, where, and what to do; the command line prints it as one line."""


def cache_dir() -> Path:
    """Return the folder for what can be made again, created if absent: `$CAUSE_CACHE`, or one in the user's cache."""
    folder = Path(os.environ.get("CAUSE_CACHE") or platformdirs.user_cache_dir("cause-lite"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def data_dir() -> Path:
    """Return the folder of data sets, which downloads go to as well: `$CAUSE_DATA`, or one in the cache."""
    return Path(os.environ.get("CAUSE_DATA") or cache_dir() / "data")


def project_dir() -> Path:
    """Return the folder that holds `data/`: the checkout, or the installed package."""
    package = Path(__file__).resolve().parents[1]
    return package if (package / "data").is_dir() else package.parent


def is_path(name: str | Path) -> bool:
    """Return whether a name can only be a path: it has a separator, or begins with a dot or a tilde."""
    return isinstance(name, Path) or name.startswith((".", "~")) or "/" in name or os.sep in name


def write_whole(path: Path, write: Callable[[Path], object], over: bool = False) -> None:
    """Let `write` fill a temporary file or folder beside `path`, then rename it: readers see all or nothing.

    A file is replaced. A folder that another process has made meanwhile stays, unless it is to be written `over`.

    Raises
    ------
    UserError
        When the disk refuses the write; nothing is left behind then.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_orphans(path)
        write(temporary)
        if over and path.is_dir():
            os.replace(path, temporary / OLD)
        try:
            os.replace(temporary, path)
        except OSError:
            if not (temporary.is_dir() and path.is_dir()):  # else another process made the same folder meanwhile
                raise
        if over:
            shutil.rmtree(path / OLD, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{path}: could not be written ({error.strerror or error}); free space or name another folder"
        ) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _remove_orphans(path: Path) -> None:
    """Remove the temporary files of `path` whose processes were killed while they wrote."""
    start, end = f".{path.stem}.", f".part{path.suffix}"
    for other in path.parent.iterdir():
        if other.name.startswith(start) and other.name.endswith(end):
            process = other.name[len(start) : -len(end)]
            if process.isdigit() and not psutil.pid_exists(int(process)):
                shutil.rmtree(other, ignore_errors=True) if other.is_dir() else other.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keep other processes out of a folder within the block; the folder is created if absent.

    The lock goes with the process, however it ends. With `wait`, the block starts once the folder is free.

    Raises
    ------
    UserError
        When another process holds the lock and it is not to `wait`, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=-1 if wait else 0):
            yield
    except Timeout as error:
        raise UserError(f"{folder}: another process is writing there; wait or name another folder") from error
    except OSError as error:
        raise UserError(f"{folder}: could not be written ({error.strerror or error}); name another folder") from error


def write_json(path: Path, content: object) -> None:
    """Write plain content as JSON with sorted keys, whole or not at all, as `write_whole` does."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, "utf-8", "backslashreplace"))


def read_json(path: Path) -> dict:
    """Return the JSON object that a file holds.

    Raises
    ------
    UserError
        Naming the file, when it is absent, damaged or holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: could not be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UserError(f"{path}: is not valid JSON ({error}); restore it or delete it") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}; expected an object")
    return content


def read_torch(path: Path) -> object:
    """Return the tensors and plain values of a file that `torch.save` wrote; nothing in it is executed.

    Raises
    ------
    UserError
        Naming the file, when it is absent, damaged, or holds anything else.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged bytes torch raises nearly any kind
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: is not a file of tensors that is safe to load ({reason})") from error
