"""Downloads that go on where they were cut off, and that appear under their name only when whole and right."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import requests

from cause_lite.runtime.files import UserError, read_json, write_json
from cause_lite.runtime.progress import bar

CHUNK = 1 << 16  # bytes; at most this much is lost when a connection breaks
TIMEOUT = 60  # seconds without a byte
HASHES = {32: "md5", 40: "sha1", 64: "sha256"}


def download(url: str, target: Path, digest: str = "") -> Path:
    """Download a file to `target`, going on where an earlier try was cut off; what is already there is taken as it is.

    What came so far lies in `target`.part with the server's mark of its version beside it. It is continued only if the
    server still serves the same bytes. `digest` is an md5, sha1 or sha256, or "" where none is published. Raises
    UserError on a refusal, a web page, a break (run again to go on), too short a file, or a wrong digest.
    """
    if target.exists():
        return target
    part, mark = (target.with_name(target.name + end) for end in (".part", ".part.json"))
    target.parent.mkdir(parents=True, exist_ok=True)
    start = part.stat().st_size if part.exists() and mark.exists() else 0
    headers = {"Range": f"bytes={start}-", "If-Range": read_json(mark)["version"]} if start else {}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            length = _file_length(answer, url, start, part)
            version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
            if answer.status_code != 416:
                if version and not version.startswith("W/"):
                    write_json(mark, {"version": version})
                _receive(answer, part, append=answer.status_code == 206, length=length)
    except requests.RequestException as error:
        raise UserError(f"{url}: broke off ({type(error).__name__}); run the same command again to go on") from error
    except OSError as error:
        raise UserError(f"{part}: could not be written ({error.strerror or error}); free space") from error
    if length is not None and part.stat().st_size != length:
        raise UserError(f"{url}: {part.stat().st_size:,} of {length:,} bytes came; run the same command again to go on")
    if digest:
        _check_digest(url, part, mark, digest)
    os.replace(part, target)
    mark.unlink(missing_ok=True)
    return target


def _check_digest(url: str, part: Path, mark: Path, digest: str) -> None:
    """Raise UserError, and remove the part, when its digest is not the expected one."""
    kind = HASHES[len(digest)]
    found = digest_of(part, kind)
    if found != digest:
        part.unlink()
        mark.unlink(missing_ok=True)
        raise UserError(f"{url}: the file's {kind} is {found}, expected {digest}; run again to fetch anew")


def _file_length(answer: requests.Response, url: str, start: int, part: Path) -> int | None:
    """Return the whole file's length by the answer's headers, None where they do not say it."""
    if answer.status_code == 416 and start:  # nothing is left to send
        total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        return int(total) if total.isdigit() else start
    if answer.status_code not in (200, 206):
        raise UserError(f"{url}: the server answered {answer.status_code} {answer.reason}; is the address still right?")
    if "text/html" in answer.headers.get("Content-Type", ""):
        raise UserError(f"{url}: the server sent a web page, not the file (a login or an error?); open it in a browser")
    if answer.status_code == 206:
        sent, _, total = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        if not sent.startswith(f"{start}-"):
            part.unlink(missing_ok=True)
            raise UserError(f"{url}: the server continued at {sent!r}, not at byte {start}; run again to fetch anew")
        return int(total) if total.isdigit() else None
    total = answer.headers.get("Content-Length", "")
    return int(total) if total.isdigit() and "Content-Encoding" not in answer.headers else None


def _receive(answer: requests.Response, part: Path, append: bool, length: int | None) -> None:
    """Write what the server sends to a file, and show how far it is."""
    with part.open("ab" if append else "wb") as file, bar() as progress:
        task = progress.add_task(part.stem, total=length, completed=file.tell())
        for block in answer.iter_content(CHUNK):
            file.write(block)
            progress.advance(task, len(block))


def digest_of(path: Path, kind: str) -> str:
    """Return the md5, sha1 or sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()
