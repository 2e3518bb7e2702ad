"""Unlabelled photographs for pre-training: public sources -> one packed, memory-mapped file without duplicates.

A photograph is squeezed into a square of `SIDE` pixels and its aspect is kept beside it, so that every record has
one size and a crop can still be drawn in true proportions.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from cause_lite.datasets.archives import Archive, fetch_archive
from cause_lite.datasets.folders import read_photograph
from cause_lite.datasets.images import LazyRows, Squaring
from cause_lite.datasets.split import Split
from cause_lite.runtime.files import UserError, cache_dir, data_dir, locked, read_json, write_json, write_whole
from cause_lite.runtime.progress import track

SIDE = 160  # pixels a side of a record
SMALLEST = 96  # pixels; photographs whose shorter side is less are left out
SAME = 2  # differing bits of 64 up to which two photographs are taken for the same one
SHOWN = 4  # and up to which a photograph is taken for one of an evaluation set
FITTED = {"bsds500": 1, "imagenet-sample": 4}  # of which sources a segmenter is fitted on one file in so many
CLUSTERS = 27  # that it finds; as many as COCO-Stuff has coarse classes
EVALUATION = ("MSRC/Images/*.jpg", "CamVid/train/*.png", "CamVid/val/*.png", "CamVid/test/*.png")


@dataclass(frozen=True)
class Source:
    """A public repository at one commit, which of its files are taken, and on which terms.

    Of the files that match `pattern`, in the order of their names, one in `every` is taken; `count` and `sha256`
    are of those taken (names and bytes).
    """

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
        """The repository at that commit as a zip file. Its bytes may change, its content may not: see `sha256`."""
        root = f"{self.repository.rpartition('/')[2]}-{self.commit}/"
        url = f"https://github.com/{self.repository}/archive/{self.commit}.zip"
        return Archive(url, "", 3 * 10**9, 40_000, {root: f"{self.name}/"})


@dataclass(frozen=True)
class Photos:
    """Records (N, SIDE, SIDE, 3) uint8, memory-mapped; width / height of each (N,); and what they are made of."""

    images: np.ndarray
    aspects: np.ndarray
    about: dict


# Caltech's faces are left out: MSRC's face photographs are thirty of them, the others show the same people.
SOURCES = (
    Source(
        "caltech101", "MachineLearning2020/Homework2-Caltech101", "836044dd000296b2bb74d0aa4b4e462e459b01d7",
        r"101_ObjectCategories/(?!Faces)[^/]+/[^/]+\.jpg", 1, "CC BY 4.0", 8274,
        "aa126d8f2bc9ca1111a54e3e7e6d0cdbed41521ec1a27179d91a37cd5626d768",
    ),
    Source(
        "intel-scenes", "afroozsheikh/Intel-Image-Classifier", "8aa73adca404fb1c2c06a75cd03c5977076a0d40",
        r"(train|test)/[^/]+/[^/]+\.jpg", 1, "terms of the Intel scene challenge, no open licence", 10899,
        "ee53536375ec80c9856d49514b3095d3450348c8cfc76f595524f9140cc583bb",
    ),
    Source(
        "imagenette", "thunderInfy/imagenette", "b850f030ff0701c36a4adc8b928ea9483a46915b",
        r"(train|val)/n\d+/[^/]+\.JPEG", 1, "ImageNet's terms: research", 13394,
        "ae9d6ac301bc26121fbf8e9c282cf04e4235cb4cd9536ed9cd92df19def8a7fb",
    ),
    Source(
        "imagewoof", "q878787/imagewoof2-320", "874e58f0c1acebb0d90e40f48460d65322f09f85",
        r"(train|val)/n\d+/[^/]+\.JPEG", 4, "ImageNet's terms: research", 3239,
        "b23cce99121623e85fe84c99a1d53f216a059a0b93d52255a4f4953895e8cadf",
    ),
    Source(
        "imagenet-sample", "EliSchwartz/imagenet-sample-images", "bc69043e2862758a1906c6a24a792bb28c6bb2ff",
        r"[^/]+\.JPEG", 1, "ImageNet's terms: research", 1000,
        "4b3e986d8988ba93791ca14c9c13b629e7a76e59b7aaf5d0575f97235b597f4f",
    ),
    Source(
        "bsds500", "BIDS/BSDS500", "a04b7c6c3a9f0ace74bf205c72a43d32e1c72722",
        r"BSDS500/data/images/[^/]+/[^/]+\.jpg", 1, "non-commercial research", 500,
        "fb4966d8d490270def6f7080585203174632f65b5300cf67ceadfb07c7d99888",
    ),
    Source(
        "houses", "emanhamed/Houses-dataset", "5e148219500558089cf5cf121b626b17fdde9b92",
        r"Houses Dataset/[^/]+\.jpg", 1, "cite arXiv 1609.08399", 2140,
        "a7c90efef37e28497721ef2002b24e47e3da256cc4043184382a39a141e15247",
    ),
    Source(
        "cats-dogs", "chanakya2734/Image-classification-using-CNN", "bf746c6e53f1edacd97b383de350f7a495cef0e1",
        r"dataset/.*\.jpe?g", 3, "none stated", 2666,
        "3d5395778c5594c6a4a4be0277d5060800d343a2ac7239c44a984ebc2377d44b",
    ),
    Source(
        "street-fashion", "bearpaw/clothing-co-parsing", "fe34fb77721a9973fbae92c05f7f12b664d10110",
        r"photos/[^/]+\.jpg", 1, "Apache-2.0, as its repository states", 2098,
        "418e612298e9354a27cc428fff28a4f905b02164a077f1889b438569e002b4f4",
    ),
    Source(
        "clothes", "alexeygrigorev/clothing-dataset-small", "11961516512414bf9f6c150a832cfd21b54a6b54",
        r"(train|test|validation)/[^/]+/[^/]+\.jpg", 1, "CC0", 3781,
        "199e547ad35bcd2e9ba7d5b0aef217598726e751562376f90e4eeb1ba281d7ac",
    ),
)  # fmt: skip


def folder() -> Path:
    """Where the sources lie, each in a folder of its name."""
    return data_dir() / "photos"


def packed_dir() -> Path:
    """Where the packed photographs lie."""
    return cache_dir() / "photos"


def files(source: Source) -> list[Path]:
    """Yield the photographs of a source that are taken, in the order of their names."""
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
    """Each photograph of a source; at the end, raises UserError if they were not the expected ones."""
    digest, root = hashlib.sha256(), folder() / source.name
    for path in files(source):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)}\n".encode() + hashlib.sha256(content).digest())
        yield content
    if digest.hexdigest() != source.sha256:
        raise UserError(f"{root}: its photographs differ from the expected {source.count:,}; remove it and run again")


def record(content: bytes) -> tuple[np.ndarray, float] | None:
    """Decode a photograph to (SIDE, SIDE, 3) uint8 and its width / height; None if damaged or too small."""
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
    """64 bits of a picture (H, W, 3) uint8 that near-duplicates share: where brightness rises from left to right."""
    small = Image.fromarray(picture).convert("L").resize((9, 8), Image.Resampling.BOX)
    grey = np.asarray(small, dtype=np.int16)
    return np.packbits(grey[:, 1:] > grey[:, :-1]).view(np.uint64)[0]


def nearest(code: np.uint64, codes: np.ndarray) -> int:
    """Differing bits between a hash and the nearest of others (N,) uint64; 65 where there are none."""
    return int(np.bitwise_count(codes ^ code).min()) if len(codes) else 65


class Packer:
    """Writes records one by one, leaving out what was seen before or is shown in an evaluation set."""

    def __init__(self, file: BinaryIO, avoid: np.ndarray) -> None:
        self.file, self.avoid = file, avoid
        self.seen = np.zeros(0, np.uint64)
        self.aspects: list[float] = []

    def add(self, contents: Iterable[bytes]) -> dict[str, int]:
        """Write what is new of a source -> how many photographs met which fate."""
        counts = dict.fromkeys(("kept", "unusable", "duplicates", "overlaps"), 0)
        for content in contents:
            counts[self._one(content)] += 1
        return counts

    def _one(self, content: bytes) -> str:
        made = record(content)
        if made is None:
            return "unusable"
        picture, aspect = made
        code, number = difference_hash(picture), len(self.aspects)
        if nearest(code, self.avoid) <= SHOWN:
            return "overlaps"
        if nearest(code, self.seen[:number]) <= SAME:
            return "duplicates"
        if number == len(self.seen):
            self.seen = np.concatenate([self.seen, np.zeros(max(1000, number), np.uint64)])
        self.seen[number] = code
        self.aspects.append(aspect)
        self.file.write(picture.tobytes())
        return "kept"


def pack(sources: dict[str, Iterable[bytes]], avoid: np.ndarray, out: Path) -> None:
    """Write sources of encoded photographs as one folder: images.u8, aspects.npy and index.json.

    `avoid` (N,) uint64 are the hashes of what must not be among them. The index holds the count, how many of each
    source met which fate, and how many hashes were avoided.
    """
    out.mkdir()
    with (out / "images.u8").open("wb") as file:
        packer = Packer(file, avoid)
        fates = {name: packer.add(track(contents, f"Packing {name}")) for name, contents in sources.items()}
    np.save(out / "aspects.npy", np.array(packer.aspects, dtype=np.float32))
    write_json(
        out / "index.json", {"count": len(packer.aspects), "side": SIDE, "sources": fates, "avoided": len(avoid)}
    )


def evaluation_hashes() -> np.ndarray:
    """Hashes (N,) of the images of the evaluation sets that lie on this machine."""
    made = (record(path.read_bytes()) for path in track(evaluation_files(), "Hashing evaluation sets"))
    return np.array([difference_hash(one[0]) for one in made if one], dtype=np.uint64)


def evaluation_files() -> list[Path]:
    """Yield the images of MSRC and CamVid that lie on this machine."""
    return sorted(path for pattern in EVALUATION for path in data_dir().glob(pattern))


def prepare(say: Callable[[str], None]) -> None:
    """Find or download the sources and pack them, unless that is done already; say what the pack holds."""
    if not (packed_dir() / "index.json").exists():
        fetch(say)
        hashes = evaluation_hashes()
        write_whole(packed_dir(), partial(pack, {source.name: contents(source) for source in SOURCES}, hashes))
    about = load().about
    for source in SOURCES:
        fate = about["sources"][source.name]
        left_out = ", ".join(f"{count:,} {name}" for name, count in fate.items() if name != "kept" and count)
        say(f"{source.name}: {fate['kept']:,} photographs ({source.terms}); left out: {left_out or 'none'}")
    say(f"photos: {about['count']:,} in {packed_dir()}, compared with {about['avoided']:,} images of evaluation sets")


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
    """Return the packed photographs. Raises UserError when they are not there or damaged."""
    root = packed_dir()
    if not (root / "index.json").exists():
        raise UserError("photos: not packed on this machine; run `cause-lite data photos`")
    about = read_json(root / "index.json")
    try:
        images = np.memmap(root / "images.u8", np.uint8, "c", shape=(about["count"], SIDE, SIDE, 3))
        aspects = np.load(root / "aspects.npy")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{root}: is damaged ({error}); remove it and run `cause-lite data photos`") from error
    return Photos(images, aspects, about)
