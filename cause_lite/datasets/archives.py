"""Archives from public sources: fetched, checked, and unpacked so that no member is written elsewhere."""

from __future__ import annotations

import lzma
import os
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cause_lite.datasets.downloads import digest_of, download
from cause_lite.runtime.files import UserError, write_json

# What unpacking raises on damaged bytes, by the layers that it goes through.
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError)


@dataclass(frozen=True)
class Archive:
    """A public archive: its address, its digest ("": none is published), and what it may unpack to.

    `places` says where its members go, prefix in the archive -> folder of the data set; others are not needed.
    """

    url: str
    digest: str = ""
    most_bytes: int = 10**9
    most_files: int = 100_000
    places: dict[str, str] = field(default_factory=lambda: {"": ""})


def fetch_archive(archive: Archive, root: Path, say: Callable[[str], None]) -> None:
    """Download and unpack an archive into a folder, unless it is marked there as unpacked."""
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

    Everything is written to a temporary folder inside `root` and moved when all of it is there. Raises UserError on a
    damaged archive, a member that leads elsewhere (`..`, an absolute path, a link), or more bytes or files than the
    archive may hold.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=root) as staging:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as zipped:
                    places = _places(zipped.infolist(), archive, file)
                    zipped.extractall(staging, places)
            else:
                with tarfile.open(file) as tape:
                    places = _places(tape.getmembers(), archive, file)
                    tape.extractall(staging, [m for m in tape if m.name in places], filter="data")
            for name, place in places.items():
                (root / place).parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(staging) / name, root / place)
            return len(places)
    except DAMAGED as error:
        raise UserError(f"{file}: is not a whole archive ({type(error).__name__}: {error}); delete it") from error
    except OSError as error:
        raise UserError(f"{root}: could not be written, or {file.name} is damaged ({error})") from error


def _name(member: zipfile.ZipInfo | tarfile.TarInfo) -> str:
    return member.filename if isinstance(member, zipfile.ZipInfo) else member.name


def _places(members: Sequence[zipfile.ZipInfo | tarfile.TarInfo], archive: Archive, file: Path) -> dict[str, str]:
    """Return where each file that is needed goes, relative to the data set, by its name in the archive."""
    files = [m for m in members if not (m.is_dir() if isinstance(m, zipfile.ZipInfo) else m.isdir())]
    size = sum(member.file_size if isinstance(member, zipfile.ZipInfo) else member.size for member in files)
    if len(files) > archive.most_files or size > archive.most_bytes:
        raise UserError(f"{file}: would unpack to more than it may ({archive.most_bytes:,} bytes); delete it")
    places = {}
    for member in files:
        path = PurePosixPath(_name(member).replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            raise UserError(f"{file}: member {_name(member)!r} leads out of the archive; not to be trusted; delete it")
        if not (isinstance(member, zipfile.ZipInfo) or member.isfile()):
            raise UserError(f"{file}: {path} is a link or a device; the archive is not to be trusted; delete it")
        prefix = next((prefix for prefix in archive.places if str(path).startswith(prefix)), None)
        if prefix is not None:
            places[_name(member)] = archive.places[prefix] + str(path)[len(prefix) :]
    if not places:
        raise UserError(f"{file}: holds none of {', '.join(archive.places)}; it is another archive; delete it")
    return places
