"""Unlabelled photographs for pre-training: public sources -> one packed, memory-mapped file without duplicates.

A photograph is squeezed into a square of `SIDE` pixels and its aspect is kept beside it, so that every record has
one size and a crop can still be drawn in true proportions.
"""

from __future__ import annotations

import hashlib
import io
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from cause_lite.datasets.archives import Archive, fetch_archive
from cause_lite.datasets.folders import read_photograph
from cause_lite.datasets.images import LazyRows, Squaring
from cause_lite.datasets.picture_files import IMAGE_ENDS
from cause_lite.datasets.split import Split
from cause_lite.runtime.files import (
    UserError,
    cache_dir,
    data_dir,
    locked,
    project_dir,
    read_json,
    write_json,
    write_whole,
)
from cause_lite.runtime.progress import track

SIDE = 160  # pixels a side of a record
SMALLEST = 96  # pixels; photographs whose shorter side is less are left out
SAME = 2  # differing bits of 64 up to which two photographs are taken for the same one
SHOWN = 4  # and up to which a photograph is taken for one of an evaluation set
FITTED = {"bsds500": 1, "imagenet-sample": 4}  # of which sources a segmenter is fitted on one file in so many
CLUSTERS = 27  # that it finds; as many as COCO-Stuff has coarse classes
EVALUATION = ("MSRC/Images/*", "CamVid/train/*", "CamVid/val/*", "CamVid/test/*")  # where photographs of them lie


@dataclass(frozen=True)
class Source:
    """A public repository at one commit, which of its files are taken, and on which terms; see photo_sources.yaml."""

    name: str
    repository: str
    commit: str
    pattern: str
    every: int
    terms: str
    count: int
    sha256: str

    @property
    def archive(self) -> Archive:
        """Return the repository at that commit as a zip file; its bytes may change, its content not: see `sha256`."""
        root = f"{self.repository.rpartition('/')[2]}-{self.commit}/"
        url = f"https://github.com/{self.repository}/archive/{self.commit}.zip"
        return Archive(url, "", 3 * 10**9, 40_000, {root: f"{self.name}/"})


@dataclass(frozen=True)
class Photos:
    """Records (N, SIDE, SIDE, 3) uint8, memory-mapped; width / height of each (N,); and what they are made of."""

    images: np.ndarray
    aspects: np.ndarray
    about: dict


SOURCES = tuple(
    Source(**entry)
    for entry in yaml.safe_load(Path(__file__).with_name("photo_sources.yaml").read_text(encoding="utf-8"))
)


def folder() -> Path:
    """Return where the sources lie, each in a folder of its name."""
    return data_dir() / "photos"


def packed_dir() -> Path:
    """Return where the packed photographs lie."""
    return cache_dir() / "photos"


def files(source: Source) -> list[Path]:
    """Return the photographs of a source that are taken, in the order of their names."""
    root = folder() / source.name
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    return [root / name for name in names if re.fullmatch(source.pattern, name)][:: source.every]


def fetch(say: Callable[[str], None]) -> None:
    """Make sure that every source is there: as it lies, or downloaded (about 3 GB in all) after showing its terms.

    Raises UserError with what to do where nothing can be reached or what came is not it.
    """
    with locked(folder()):
        for source in SOURCES:
            if len(files(source)) != source.count:
                say(f"{source.name}: {source.repository} at {source.commit[:8]}; terms: {source.terms}")
                (folder() / f".{source.commit}.zip.unpacked").unlink(missing_ok=True)
                fetch_archive(source.archive, folder(), say)


def contents(source: Source) -> Iterator[bytes]:
    """Yield each photograph of a source; at the end, raise UserError if they were not the expected ones."""
    digest, root = hashlib.sha256(), folder() / source.name
    for path in files(source):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)}\n".encode() + hashlib.sha256(content).digest())
        yield content
    if digest.hexdigest() != source.sha256:
        raise UserError(f"{root}: its photographs differ from the expected {source.count:,}; remove it and run again")


def record(content: bytes) -> tuple[np.ndarray, float] | None:
    """Return a photograph as (SIDE, SIDE, 3) uint8 and its width / height; None if damaged or too small."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if min(image.size) < SMALLEST:
                return None
            aspect = image.width / image.height
            image.draft("RGB", (SIDE, SIDE))
            square = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3)
    except (OSError, SyntaxError, ValueError):
        return None
    return np.asarray(square), aspect


def difference_hash(picture: np.ndarray) -> np.uint64:
    """Return 64 bits of a picture (H, W, 3) uint8 that near-duplicates share: where brightness rises to the right."""
    small = Image.fromarray(picture).convert("L").resize((9, 8), Image.Resampling.BOX)
    grey = np.asarray(small, dtype=np.int16)
    return np.packbits(grey[:, 1:] > grey[:, :-1]).view(np.uint64)[0]


def nearest(code: np.uint64, codes: np.ndarray) -> int:
    """Return how many bits differ between a hash and the nearest of others (N,) uint64; 65 where there are none."""
    return int(np.bitwise_count(codes ^ code).min()) if len(codes) else 65


def pack(sources: dict[str, Iterable[bytes]], avoid: np.ndarray, out: Path) -> None:
    """Write encoded photographs, by source, as one folder without duplicates: images.u8, aspects.npy and index.json.

    Nothing is kept that shows what `avoid` (N,) uint64, hashes of an evaluation set, do. The index holds the count, how
    many of each source met which fate, and how many hashes were avoided.
    """
    out.mkdir()
    codes, aspects, fates = array("Q"), [], {}
    with (out / "images.u8").open("wb") as file:
        for name, contents in sources.items():
            fates[name] = dict.fromkeys(("kept", "unusable", "duplicates", "overlaps"), 0)
            for content in track(contents, f"Packing {name}"):
                made, fate = record(content), "kept"
                if made is None:
                    fate = "unusable"
                elif nearest(code := difference_hash(made[0]), avoid) <= SHOWN:
                    fate = "overlaps"
                elif nearest(code, np.asarray(codes)) <= SAME:
                    fate = "duplicates"
                else:
                    codes.append(int(code))
                    aspects.append(made[1])
                    file.write(made[0].tobytes())
                fates[name][fate] += 1
    np.save(out / "aspects.npy", np.array(aspects, dtype=np.float32))
    write_json(out / "index.json", {"count": len(aspects), "side": SIDE, "sources": fates, "avoided": len(avoid)})


def evaluation_hashes() -> np.ndarray:
    """Return hashes (N,) of the photographs of MSRC and CamVid that lie on this machine, in any format that is read."""
    found = sorted(path for pattern in EVALUATION for path in data_dir().glob(pattern))
    images = [path for path in found if path.suffix.lower() in IMAGE_ENDS]
    made = (record(path.read_bytes()) for path in track(images, "Hashing evaluation sets"))
    return np.array([difference_hash(one[0]) for one in made if one], dtype=np.uint64)


def prepare(say: Callable[[str], None]) -> None:
    """Find or download the sources and pack them, unless that is done already; say what the pack holds."""
    if not (packed_dir() / "index.json").exists():
        fetch(say)
        hashes = evaluation_hashes()
        packed = partial(pack, {source.name: contents(source) for source in SOURCES}, hashes)
        write_whole(packed_dir(), packed, over=True)  # a folder without an index is of no use
    about = load().about
    for source in SOURCES:
        fate = about["sources"][source.name]
        left_out = ", ".join(f"{count:,} {name}" for name, count in fate.items() if name != "kept" and count)
        say(f"{source.name}: {fate['kept']:,} photographs ({source.terms}); left out: {left_out or 'none'}")
    say(f"photos: {about['count']:,} in {packed_dir()}, compared with {about['avoided']:,} images of evaluation sets")
    if not about["avoided"]:
        say(
            "photos: no evaluation set was there to compare with; if you will score on MSRC or CamVid, delete that "
            "folder, run `cause-lite data msrc` and `cause-lite data camvid`, and pack again"
        )


def load_split(squaring: Squaring) -> Split:
    """Return the photographs, without labels, that the segmenter of photographs is fitted on: whole files, not records.

    Raises
    ------
    UserError
        When they are not there.
    """
    paths = [path for source in SOURCES if source.name in FITTED for path in files(source)[:: FITTED[source.name]]]
    if not paths:
        raise UserError(f"photos: no photograph of {', '.join(FITTED)} in {folder()}; run `cause-lite data photos`")
    names = tuple(f"cluster {number}" for number in range(CLUSTERS))
    return Split("photos", "train", names, LazyRows(tuple(paths), read_photograph, squaring), None)


def load() -> Photos:
    """Return the packed photographs. Raises UserError when they are not there, damaged, or lack a source."""
    root = packed_dir()
    if not (root / "index.json").exists():
        raise UserError("photos: not packed on this machine; run `cause-lite data photos`")
    about = read_json(root / "index.json")
    if missing := {source.name for source in SOURCES} - set(about.get("sources", ())):
        raise UserError(
            f"{root}: lacks the photographs of {', '.join(sorted(missing))}; remove it and run `cause-lite data photos`"
        )
    try:
        images = np.memmap(root / "images.u8", np.uint8, "c", shape=(about["count"], SIDE, SIDE, 3))
        aspects = np.load(root / "aspects.npy")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{root}: is damaged ({error}); remove it and run `cause-lite data photos`") from error
    return Photos(images, aspects, about)


def photographs() -> list[Path]:
    """Return the photographs that ship, by name; data/photographs/CREDITS.md says whose they are, and how drawn.

    Nothing is scored or tuned on them, and the segmenter of photographs has not seen them.
    """
    return sorted((project_dir() / "data" / "photographs").glob("*.jpg"))


def some_photographs(count: int, seed: int) -> list[Path]:
    """Draw some of the photographs that ship at random, so that nobody chooses which results are shown."""
    files = photographs()
    return [files[number] for number in sorted(np.random.default_rng(seed).choice(len(files), count, replace=False))]
