"""Archives from public sources: fetched, checked, and unpacked so that no member is written elsewhere."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from cause_lite.datasets.downloads import CHUNK, digest_of, download
from cause_lite.runtime.files import UserError, write_json

# What unpacking raises on damaged bytes, by the layers that it goes through.
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)


@dataclass(frozen=True)
class Archive:
    """A public archive.

    Parameters
    ----------
    url
        Where it is.
    digest
        Its md5, sha1 or sha256; "" where none is published.
    most_bytes, most_files
        What it may unpack to.
    places
        Where its members go: prefix in the archive -> folder of the data set. Other members are not needed.
    """

    url: str
    digest: str = ""
    most_bytes: int = 10**9
    most_files: int = 100_000
    places: dict[str, str] = field(default_factory=lambda: {"": ""})


def fetch_archive(archive: Archive, root: Path, say: Callable[[str], None]) -> None:
    """Download and unpack an archive into a folder, unless it is marked there as unpacked.

    Raises
    ------
    UserError
        When it cannot be downloaded or unpacked.
    """
    name = archive.url.rsplit("/", 1)[-1]
    mark = root / f".{name}.unpacked"
    if not mark.exists():
        file = download(archive.url, root / name, archive.digest)
        count = unpack(file, root, archive)
        write_json(mark, {"url": archive.url, "sha256": digest_of(file, "sha256"), "files": count})
        file.unlink()
        say(f"{name}: {count:,} files in {root}")


def unpack(file: Path, root: Path, archive: Archive) -> int:
    """Unpack an archive's members into a folder, and return how many files they are.

    Everything is written to a temporary folder inside `root` and moved when all of it is there.

    Parameters
    ----------
    file, root
        The archive's file, and the folder to unpack into.
    archive
        Its limits, and where its members go.

    Raises
    ------
    UserError
        On a damaged archive, a member that leads elsewhere (`..`, an absolute path, a link), or more bytes or files
        than the archive may hold.
    """
    staging = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=root))
    try:
        with (zipfile.ZipFile if zipfile.is_zipfile(file) else tarfile.open)(file) as packed:
            members = list(_members(packed, file))
            if len(members) > archive.most_files or sum(member.size for member in members) > archive.most_bytes:
                raise UserError(f"{file}: would unpack to more than it may ({archive.most_bytes:,} bytes); delete it")
            places = [_place(member.name, archive.places, file) for member in members]
            count = sum(bool(place) for place in places)
            for member, place in zip(members, places, strict=True):
                if place:
                    _copy(member, staging / place, file)
        if not count:
            raise UserError(f"{file}: holds none of {', '.join(archive.places)}; it is another archive; delete it")
        _merge(staging, root)
        return count
    except DAMAGED as error:
        raise UserError(f"{file}: is not a whole archive ({type(error).__name__}: {error}); delete it") from error
    except OSError as error:
        raise UserError(f"{root}: could not be written, or {file.name} is damaged ({error})") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@dataclass(frozen=True)
class _Member:
    """A file in an archive: its name, its size in bytes as the archive claims it, and how to open it."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None]


def _members(packed: zipfile.ZipFile | tarfile.TarFile, file: Path) -> Iterator[_Member]:
    """Walk the files of an archive; links and devices are refused."""
    if isinstance(packed, zipfile.ZipFile):
        for member in packed.infolist():
            if stat.S_ISLNK(member.external_attr >> 16):
                raise UserError(f"{file}: {member.filename} is a link; the archive is not to be trusted; delete it")
            if not member.is_dir():
                yield _Member(member.filename, member.file_size, partial(packed.open, member))
        return
    for entry in packed:
        if not (entry.isfile() or entry.isdir()):
            raise UserError(f"{file}: {entry.name} is a link or a device; the archive is not to be trusted; delete it")
        if entry.isfile():
            yield _Member(entry.name, entry.size, partial(packed.extractfile, entry))


def _place(name: str, places: dict[str, str], file: Path) -> str | None:
    """Return where a member goes, relative to the data set; None where it is not needed."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise UserError(f"{file}: member {name!r} leads out of the archive; it is not to be trusted; delete it")
    for prefix, folder in places.items():
        if str(path).startswith(prefix):
            return folder + str(path)[len(prefix) :]
    return None


def _copy(member: _Member, target: Path, file: Path) -> None:
    """Write a member to a file, never more bytes than it claims."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = member.open()
    if source is None:
        raise UserError(f"{file}: {member.name} cannot be read; delete it")
    with source, target.open("wb") as out:
        left = member.size
        while block := source.read(min(CHUNK, left + 1)):
            left -= len(block)
            if left < 0:
                raise UserError(
                    f"{file}: {target.name} unpacks to more than the {member.size:,} bytes it claims; delete it"
                )
            out.write(block)
    if left:
        raise UserError(f"{file}: {target.name} is cut short; delete it")


def _merge(staging: Path, root: Path) -> None:
    """Move every file of `staging` to its place under `root`."""
    for source in sorted(staging.rglob("*")):
        target = root / source.relative_to(staging)
        if source.is_dir():
            target.mkdir(exist_ok=True)
        else:
            os.replace(source, target)
