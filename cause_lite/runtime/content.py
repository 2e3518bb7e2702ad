"""Know files by their content."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path


def content_hash(path: Path) -> bytes:
    """Return the SHA-256 digest of a file's bytes; a file is read again only when its size or time has changed."""
    status = path.stat()
    return _content_hash(path.resolve(), status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@cache
def _content_hash(path: Path, size: int, *changed: int) -> bytes:
    """Hash the file; `size` and `changed` are there to be part of the cache's key."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
