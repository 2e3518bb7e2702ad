"""Data sets from their public sources: downloads that resume and are checked, archives that cannot write elsewhere."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import requests

from cause_lite.runtime.files import UserError, data_dir, locked, read_json, write_json
from cause_lite.runtime.progress import bar

CHUNK = 1 << 16  # bytes; at most this much is lost when a connection breaks
TIMEOUT = 60  # seconds without a byte
HASHES = {32: "md5", 40: "sha1", 64: "sha256"}


@dataclass(frozen=True)
class Archive:
    """A public file: where it is, its digest (md5, sha1 or sha256 by length; "": none is published), the most
    bytes and files it may unpack to, and where its members go (prefix in the archive -> folder of the data set).
    """

    url: str
    digest: str
    most_bytes: int
    most_files: int
    places: dict[str, str] = field(default_factory=lambda: {"": ""})


COCO_IMAGES = "http://images.cocodataset.org/zips"
COCO = (
    Archive(f"{COCO_IMAGES}/train2017.zip", "", 25 * 10**9, 130_000, {"train2017/": "images/train2017/"}),
    Archive(f"{COCO_IMAGES}/val2017.zip", "", 2 * 10**9, 6_000, {"val2017/": "images/val2017/"}),
    Archive(
        "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip",
        "", 4 * 10**9, 130_000,
        {"train2017/": "annotations/train2017/", "val2017/": "annotations/val2017/"},
    ),
    Archive(
        "https://www.robots.ox.ac.uk/~xuji/datasets/COCOStuff164kCurated.tar.gz", "", 10**9, 1_000,
        {"COCO/COCOStuff164k/curated/": "curated/", "COCOStuff164k/curated/": "curated/", "curated/": "curated/"},
    ),
)  # fmt: skip
ARCHIVES = {
    "cocostuff": COCO,
    "pascalvoc": (
        Archive(
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            "6cd6e144f989b92b3379bac3b3de84fd", 4 * 10**9, 60_000, {"VOCdevkit/": "VOCdevkit/"},
        ),
    ),
    "potsdam": (
        Archive(
            "https://www.robots.ox.ac.uk/~xuji/datasets/Potsdam.tar.gz", "", 10**10, 40_000,
            {"potsdam/": "", "Potsdam/": "", "": ""},
        ),
    ),
    "MSRC": (
        Archive(
            "https://download.microsoft.com/download/3/3/9/339D8A24-47D7-412F-A1E8-1A415BC48A15/"
            "msrc_objcategimagedatabase_v2.zip",
            "", 10**9, 2_000,
            {
                f"{top}{part}/": f"{part}/"
                for part in ("Images", "GroundTruth") for top in ("", "MSRC_ObjCategImageDatabase_v2/")
            },
        ),
    ),
}  # fmt: skip
LICENCES = {
    "cocostuff": "COCO images: Flickr's terms of use; annotations: CC BY 4.0. https://cocodataset.org/#termsofuse",
    "pascalvoc": "Pascal VOC 2012: images under Flickr's terms of use. http://host.robots.ox.ac.uk/pascal/VOC/",
    "potsdam": "Potsdam: ISPRS 2D semantic labelling contest; free for research. https://www.isprs.org",
    "MSRC": (
        "MSRC, version 2 (Microsoft Research Cambridge): for research use only. "
        "https://www.microsoft.com/en-us/research/project/image-understanding/"
    ),
}
BY_HAND = {
    "cityscapes": (
        "Cityscapes needs an account (free for research): sign up at https://www.cityscapes-dataset.com, download "
        "gtFine_trainvaltest.zip (package 1) and leftImg8bit_trainvaltest.zip (package 3), and unpack both into {root}"
    )
}


def fetch(folder: str, say: Callable[[str], None]) -> Path:
    """Make sure that a data set lies at `data_dir()`/folder: download and unpack what is not there yet.

    Each archive is marked as unpacked once it is, so a run that was cut off goes on with the next one. Raises
    UserError with what to do by hand where a login is needed, nothing can be reached, or what came is not it.
    """
    root = data_dir() / folder
    if folder in BY_HAND:
        raise UserError(BY_HAND[folder].format(root=root))
    with locked(root):
        say(LICENCES[folder])
        for archive in ARCHIVES[folder]:
            fetch_archive(archive, root, say)
    return root


def fetch_archive(archive: Archive, root: Path, say: Callable[[str], None]) -> None:
    """Download and unpack one archive into a folder, unless it is marked there as unpacked. Raises UserError."""
    name = archive.url.rsplit("/", 1)[-1]
    done = root / f".{name}.unpacked"
    if not done.exists():
        file = download(archive.url, root / name, archive.digest)
        count = unpack(file, root, archive)
        write_json(done, {"url": archive.url, "sha256": digest_of(file, "sha256"), "files": count})
        file.unlink()
        say(f"{name}: {count:,} files in {root}")


def download(url: str, target: Path, digest: str = "") -> Path:
    """`url` -> `target`, going on where an earlier try was cut off; the file appears only when whole and right.

    What came so far lies in `target`.part with the server's mark of its version beside it: it is continued only if
    the server still serves the same bytes. Raises UserError on a refusal, a page in place of the file, a break
    (run again to go on), too short a file, or a wrong digest (the part is removed then).
    """
    if target.exists():
        return target
    part, mark = (target.with_name(target.name + end) for end in (".part", ".part.json"))
    target.parent.mkdir(parents=True, exist_ok=True)
    had = part.stat().st_size if part.exists() and mark.exists() else 0
    headers = {"Range": f"bytes={had}-", "If-Range": read_json(mark)["version"]} if had else {}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            whole = _length(answer, url, had, part)
            version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
            if answer.status_code != 416:
                if version and not version.startswith("W/"):
                    write_json(mark, {"version": version})
                _receive(answer, part, append=answer.status_code == 206, whole=whole)
    except requests.RequestException as error:
        raise UserError(f"{url}: broke off ({type(error).__name__}); run the same command again to go on") from error
    except OSError as error:
        raise UserError(f"{part}: could not be written ({error.strerror or error}); free space") from error
    if whole is not None and part.stat().st_size != whole:
        raise UserError(f"{url}: {part.stat().st_size:,} of {whole:,} bytes came; run the same command again to go on")
    if digest and digest_of(part, HASHES[len(digest)]) != digest:
        found = digest_of(part, HASHES[len(digest)])
        part.unlink()
        mark.unlink(missing_ok=True)
        raise UserError(
            f"{url}: the file's {HASHES[len(digest)]} is {found}, expected {digest}; run again to fetch anew"
        )
    os.replace(part, target)
    mark.unlink(missing_ok=True)
    return target


def _length(answer: requests.Response, url: str, had: int, part: Path) -> int | None:
    """The whole file's length by the answer's headers, None where it does not say."""
    if answer.status_code == 416 and had:  # nothing is left to send
        total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        return int(total) if total.isdigit() else had
    if answer.status_code not in (200, 206):
        raise UserError(f"{url}: the server answered {answer.status_code} {answer.reason}; is the address still right?")
    if "text/html" in answer.headers.get("Content-Type", ""):
        raise UserError(f"{url}: the server sent a web page, not the file (a login or an error?); open it in a browser")
    if answer.status_code == 206:
        start, _, total = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        if not start.startswith(f"{had}-"):
            part.unlink(missing_ok=True)
            raise UserError(f"{url}: the server continued at {start!r}, not at byte {had}; run again to fetch anew")
        return int(total) if total.isdigit() else None
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() and "Content-Encoding" not in answer.headers else None


def _receive(answer: requests.Response, part: Path, append: bool, whole: int | None) -> None:
    with part.open("ab" if append else "wb") as file, bar() as progress:
        task = progress.add_task(part.stem, total=whole, completed=file.tell())
        for block in answer.iter_content(CHUNK):
            file.write(block)
            progress.advance(task, len(block))


def digest_of(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def unpack(file: Path, root: Path, archive: Archive) -> int:
    """Unpack an archive's members into `root`, by its places -> how many files.

    Everything is written to a temporary folder inside `root` and moved when all of it is there. Raises UserError
    on a damaged archive, a member that leads elsewhere (`..`, an absolute path, a link), or more bytes or files
    than the archive may hold.
    """
    staging = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=root))
    try:
        with (zipfile.ZipFile if zipfile.is_zipfile(file) else tarfile.open)(file) as packed:
            members = list(_members(packed, file))
            if len(members) > archive.most_files or sum(size for _, size, _ in members) > archive.most_bytes:
                raise UserError(f"{file}: would unpack to more than it may ({archive.most_bytes:,} bytes); delete it")
            count = 0
            for name, size, opener in members:
                place = _place(name, archive.places, file)
                if place:
                    _copy(opener, staging / place, size, file)
                    count += 1
        if not count:
            raise UserError(f"{file}: holds none of {', '.join(archive.places)}; it is another archive; delete it")
        _merge(staging, root)
        return count
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{file}: is not a whole archive ({type(error).__name__}: {error}); delete it") from error
    except OSError as error:
        raise UserError(f"{root}: could not be written, or {file.name} is damaged ({error})") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _members(packed: zipfile.ZipFile | tarfile.TarFile, file: Path):
    """(name, size, opener) of each file in the archive; links and devices are refused."""
    if isinstance(packed, zipfile.ZipFile):
        for member in packed.infolist():
            if stat.S_ISLNK(member.external_attr >> 16):
                raise UserError(f"{file}: {member.filename} is a link; the archive is not to be trusted; delete it")
            if not member.is_dir():
                yield member.filename, member.file_size, lambda member=member: packed.open(member)
        return
    for member in packed:
        if not (member.isfile() or member.isdir()):
            raise UserError(f"{file}: {member.name} is a link or a device; the archive is not to be trusted; delete it")
        if member.isfile():
            yield member.name, member.size, lambda member=member: packed.extractfile(member)


def _place(name: str, places: dict[str, str], file: Path) -> str | None:
    """Where a member goes, relative to the data set; None: it is not needed."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise UserError(f"{file}: member {name!r} leads out of the archive; it is not to be trusted; delete it")
    for prefix, folder in places.items():
        if str(path).startswith(prefix):
            return folder + str(path)[len(prefix) :]
    return None


def _copy(opener: Callable[[], object], target: Path, size: int, file: Path) -> None:
    """One member, never more bytes than it claims."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with opener() as source, target.open("wb") as out:
        left = size
        while block := source.read(min(CHUNK, left + 1)):
            left -= len(block)
            if left < 0:
                raise UserError(f"{file}: {target.name} unpacks to more than the {size:,} bytes it claims; delete it")
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
