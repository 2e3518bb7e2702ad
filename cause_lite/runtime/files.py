"""Write files that are whole or absent, read them with errors that a reader can act on, and name the folders."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import platformdirs
import psutil
from filelock import FileLock, Timeout

from cause_lite.runtime.progress import say


class UserError(Exception):
    """An error whose message says what was wrong, where, and what to do; the command line prints it as one line."""


def cache_dir() -> Path:
    """Return the folder for what can be made again: `$CAUSE_CACHE`, the user's cache, or else a temporary folder.

    Raises UserError when `$CAUSE_CACHE` names a folder that cannot be written.
    """
    folder, reason = _cache_path(), "Permission denied"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError as error:
        reason = error.strerror or str(error)
    if os.environ.get("CAUSE_CACHE"):
        raise UserError(f"CAUSE_CACHE={folder}: could not be written ({reason}); name another folder")
    return Path(_temporary_cache(folder).name)


def _cache_path() -> Path:
    """Return where the cache is to be, whether that folder exists or not."""
    return Path(os.environ.get("CAUSE_CACHE") or platformdirs.user_cache_dir("cause-lite"))


@cache
def _temporary_cache(folder: Path) -> tempfile.TemporaryDirectory:
    """Make a cache that this process removes when it ends, in place of a folder that cannot be written; say so."""
    say(f"{folder}: could not be written; nothing is cached beyond this run (set CAUSE_CACHE to a folder that can be)")
    return tempfile.TemporaryDirectory(prefix="cause-lite-")


def data_dir() -> Path:
    """Return the folder of data sets, which downloads go to as well: `$CAUSE_DATA`, or one in the cache."""
    return Path(os.environ.get("CAUSE_DATA") or _cache_path() / "data")


@contextlib.contextmanager
def empty_cache() -> Iterator[None]:
    """Let the cache be an empty folder within the block."""
    from accelerate.utils import patch_environment  # imports torch, which `cause-lite --help` does without

    with tempfile.TemporaryDirectory() as folder, patch_environment(CAUSE_CACHE=folder):
        yield


def project_dir() -> Path:
    """Return the folder that holds `data/`: the checkout, or the installed package."""
    package = Path(__file__).resolve().parents[1]
    return package if (package / "data").is_dir() else package.parent


def is_path(name: str | Path) -> bool:
    """Return whether a name can only be a path: it has a separator, or begins with a dot or a tilde."""
    return isinstance(name, Path) or name.startswith((".", "~")) or "/" in name or os.sep in name


def content_hash(path: Path) -> bytes:
    """Return the SHA-256 digest of a file's bytes; a file is read again only when its size or time has changed."""
    status = path.stat()
    return _content_hash(path.resolve(), status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@cache
def _content_hash(path: Path, size: int, *changed: int) -> bytes:
    """Hash the file; `size` and `changed` are there to be part of the cache's key."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def write_whole(path: Path, write: Callable[[Path], object], over: bool = False) -> None:
    """Let `write` fill a temporary file or folder beside `path`, then rename it: readers see all or nothing.

    A file is replaced. A folder that another process has made meanwhile stays, unless it is to be written `over`.
    Raises UserError when the disk refuses the write; nothing is left behind then.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_orphans(path)
        write(temporary)
        if over and path.is_dir():
            shutil.rmtree(path)
        try:
            os.replace(temporary, path)
        except OSError:
            if not (temporary.is_dir() and path.is_dir()):  # else another process made the same folder meanwhile
                raise
    except OSError as error:
        raise UserError(
            f"{path}: could not be written ({error.strerror or error}); free space or name another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            _remove(temporary)


def _remove_orphans(path: Path) -> None:
    """Remove the temporary files of `path` whose processes were killed while they wrote."""
    start, end = f".{path.stem}.", f".part{path.suffix}"
    for other in path.parent.glob(f"{glob.escape(start)}*{glob.escape(end)}"):
        process = other.name[len(start) : -len(end)]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            _remove(other)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keep other processes out of a folder, created if absent; with `wait`, the block starts once the folder is free.

    The lock goes with the process, however it ends. Raises UserError when another process holds the lock and it is
    not to `wait`, or the folder cannot be written.
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
    """Return the JSON object that a file holds; raise UserError, naming the file, when it holds none."""
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

    Raises UserError, naming the file, when it is absent, damaged, or holds anything else.
    """
    import torch  # `cause-lite --help` does without

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged bytes torch raises nearly any kind
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: is not a file of tensors that is safe to load ({reason})") from error
