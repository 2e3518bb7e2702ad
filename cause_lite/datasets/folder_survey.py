"""What a folder holds: its photographs, their label maps, and what is skipped and why."""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cause_lite.datasets.arrays import Reading
from cause_lite.datasets.picture_files import HEIC_ENDS, IMAGE_ENDS, header, heic_is_read, is_output, read_picture
from cause_lite.runtime.files import UserError

# The words by which the field's layouts tell photographs from label maps, in names of folders and files: VOC's
# JPEGImages and SegmentationClass, ADE20K's annotations, mmsegmentation's img_dir and ann_dir, MONAI's imagesTr and
# labelsTr, Kaggle's train_masks, Roboflow's _mask, CamVid's trainannot, Cityscapes' leftImg8bit and gtFine_labelIds.
PHOTOGRAPHS = "jpegimages?|leftimg8bit|images?|imgs?|photos?|photographs?|pictures?|rgb|inputs?"
MAPS = (
    "segmentationclass(?:png|raw|aug)?|segmentations?|segs?|semantic|masks?|labelids|labels?|annotations?|annots?|annos?"
    "|anns?|gtfine|gtcoarse|gts?|ground[ _-]?truths?|targets?"
)
GLUED = "masks?|labels?|annotations?|annots?|groundtruth"  # words that may also end another one


def _words(words: str) -> re.Pattern[str]:
    """Return a pattern of words as parts of a name: between marks, digits and changes of case."""
    return re.compile(rf"(?:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z]))(?i:{words})(?i:[ _-]?dir)?(?![a-z])")


IS_PHOTOGRAPH, IS_MAP = _words(PHOTOGRAPHS), re.compile(f"{_words(MAPS).pattern}|(?<=[a-z])(?:{GLUED})$")
STRICT = {"labels", "masks"}  # folders that hold label maps whatever else is there
RUN_MARKS = ("fit.json", "segmenter.json")  # a folder with one of them was written by `fit` or `export`
TABLE = "labels.csv"
LOOKED_AT, MOST_GROUPS = 2, 12  # files of a group of like names, and groups, that are looked at for label maps
FLAT_VALUES, FLAT_SHARE = 32, 0.95  # values that cover this share of a label map's pixels


@dataclass(frozen=True)
class Survey:
    """The files of a folder: photographs in order, the label map of each or None, and why others are skipped."""

    folder: Path
    images: tuple[Path, ...]
    masks: tuple[Path | None, ...]
    table: Path | None
    skipped: dict[str, tuple[Path, ...]]

    @property
    def labelled(self) -> int:
        """How many photographs have a label map."""
        return sum(mask is not None for mask in self.masks)

    def summary(self) -> str:
        """Return in one line how many files are used, and how many are skipped why."""
        return "; ".join(
            [f"{self.folder}: {len(self.images)} images, {self.labelled} with a label map", *self.reasons()]
        )

    def reasons(self) -> list[str]:
        """Return how many files are skipped for each reason, with the first of them named."""
        return [f"{len(files)} skipped: {why} ({self.some(files)})" for why, files in sorted(self.skipped.items())]

    def some(self, files: Sequence[Path]) -> str:
        """Return the first names of a list of files."""
        return ", ".join(str(file.relative_to(self.folder)) for file in files[:3]) + ", ..." * (len(files) > 3)

    def doubtful(self) -> str | None:
        """Return in words which photographs look like label maps, by some of each folder and ending; None: none."""
        plain = [image for image, mask in zip(self.images, self.masks, strict=True) if mask is None]
        tails = {image: re.search(r"[A-Za-z]*$", image.stem)[0] for image in plain}  # type: ignore[index]
        often, groups = Counter(tails.values()), defaultdict(list)
        for image in plain:
            groups[image.parent, image.suffix, tails[image] if often[tails[image]] > LOOKED_AT else ""].append(image)
        largest = sorted(groups.values(), key=len, reverse=True)[:MOST_GROUPS]
        flat = [each for group in largest if all(map(_is_flat, group[:LOOKED_AT])) for each in group]
        if not flat:
            return None
        return (
            f"{self.folder}: {len(flat)} of {len(self.images)} photographs look like label maps ({self.some(flat)}); "
            "put label maps into labels/ under the names of their photographs, or elsewhere"
        )


def _is_flat(path: Path) -> bool:
    """Return whether a picture has few values in large parts, as label maps have."""
    with contextlib.suppress(UserError):
        picture = read_picture(path).rgb
        if min(picture.shape[:2]) < 2:
            return False
        counts = np.sort(np.bincount((picture.astype(np.int32) @ [1, 3, 7]).ravel()))[::-1]
        same = (picture[:, 1:] == picture[:, :-1]).all(2).mean()
        return bool(same > 0.8 and counts[:FLAT_VALUES].sum() >= FLAT_SHARE * counts.sum())
    return False


def reading_notes(images: Sequence[Path], reading: Reading | None = None) -> list[str]:
    """Return what is decided in reading photographs, such as how 16-bit levels are scaled, once for each kind of file.

    The first file of each ending and type is read. A file that cannot be read has no note: whoever reads all names it.
    """
    kinds = defaultdict(list)
    for path in images:
        kind = ""
        with contextlib.suppress(UserError):
            kind = header(path)[2]
        kinds[path.suffix.lower(), kind].append(path)
    notes = []
    for paths in kinds.values():
        like = f" (and {len(paths) - 1} of its kind)" if len(paths) > 1 else ""
        with contextlib.suppress(UserError):
            notes += [f"{paths[0]}{like}: {note}" for note in read_picture(paths[0], reading).notes]
    return notes


def survey(folder: Path) -> Survey:
    """Walk a folder; links are followed, hidden files and what this package wrote are skipped.

    A label map lies in `labels` or `masks`, or where the field's layouts put it, under the relative path of its
    photograph with any image ending. Raises UserError when two photographs claim a label map, or two label maps a
    photograph.
    """
    skipped: dict[str, list[Path]] = defaultdict(list)
    files, tables = [], []
    for path, reason in _walk(folder):
        reason = reason or _reason(path)
        if path.name.lower() == TABLE and reason != "hidden":
            tables.append(path)
        elif reason:
            skipped[reason].append(path)
        else:
            files.append(path)
    if len(tables) > 1:
        raise UserError(f"{tables[1]}: the classes are declared in {tables[0]} already; keep one of them")
    maps = [path for path in files if _is_map(path.relative_to(folder))]
    photographs = [path for path in files if path not in set(maps)]
    pairs = _pairs(folder, photographs, maps)
    paired = set(pairs.values())
    holders = {mask.parent for mask in paired}
    names = {_without_words(image.stem) for image in pairs}
    for mask in (mask for mask in maps if mask not in paired):
        beside = mask.parent in holders and any(IS_MAP.search(part) for part in mask.relative_to(folder).parts[:-1])
        if _is_strict(mask, folder) or beside or _without_words(mask.stem) in names:
            skipped["a label map without a photograph of its name"].append(mask)
        else:
            photographs.append(mask)
    images = [path for path in files if path in set(photographs)]
    found = tuple(pairs.get(image) for image in images)
    table = tables[0] if tables else None
    return Survey(folder, tuple(images), found, table, {reason: tuple(each) for reason, each in skipped.items()})


def _walk(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Walk the files under a folder in the order of their paths, each with why it is skipped, or None."""
    seen: set[tuple[int, int]] = set()

    def inside(place: Path) -> Iterator[tuple[Path, str | None]]:
        status = place.stat()
        if (status.st_dev, status.st_ino) in seen:
            yield place, "a link to a folder that is read already"
            return
        seen.add((status.st_dev, status.st_ino))
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError:
            yield place, "a folder that cannot be opened"
            return
        written = place != folder and any(entry.name in RUN_MARKS for entry in entries)
        for entry in entries:
            path = place / entry.name
            if entry.name.startswith(".") or entry.name in ("__MACOSX", "@eaDir"):
                yield path, "hidden"
            elif written:
                yield path, "written by this program"
            elif path.is_dir():
                yield from inside(path)
            else:
                yield path, None

    yield from inside(folder)


def _reason(path: Path) -> str | None:
    """Return why a file is no photograph or label map, None where it may be one."""
    ending = path.suffix.lower()
    if not path.exists():
        return "a link that leads nowhere"
    if not path.is_file():
        return "no regular file"
    if ending in HEIC_ENDS and not heic_is_read():
        return "HEIC needs pillow-heif, pip install 'cause-lite[heic]'"
    if ending not in IMAGE_ENDS:
        return f"{ending or 'no ending'} is no image format that is read"
    return "written by this program" if is_output(path) else None


def _is_map(inner: Path) -> bool:
    """Return whether a relative path is that of a label map: by the file's name, or the last folder that says it."""
    if IS_MAP.search(inner.stem):
        return True
    for part in reversed(inner.parts[:-1]):
        if part.lower() in STRICT or IS_MAP.search(part):
            return True
        if IS_PHOTOGRAPH.search(part):
            return False
    return False


def _is_strict(path: Path, folder: Path) -> bool:
    """Return whether a file lies in a folder that holds label maps whatever else is there."""
    return any(part.lower() in STRICT for part in path.relative_to(folder).parts[:-1])


def _without_words(part: str) -> str:
    """Return a name without the words that tell photographs from label maps, in one form of Unicode."""
    part = unicodedata.normalize("NFC", part)
    return IS_PHOTOGRAPH.sub("", IS_MAP.sub("", part)).strip(" ._-")


def _key(path: Path, folder: Path) -> tuple[str, ...]:
    """Return the relative path by which photographs and label maps pair."""
    inner = path.relative_to(folder)
    parts = [_without_words(part) for part in inner.parts[:-1]]
    return (*filter(None, parts), _without_words(inner.stem))


def _pairs(folder: Path, images: list[Path], masks: list[Path]) -> dict[Path, Path]:
    """Return the label map of each photograph that has one.

    Where photographs lie in subfolders and label maps do not, or the other way round, they pair by name.
    """
    by_key, by_name = defaultdict(list), defaultdict(list)
    for image in images if masks else ():
        key = _key(image, folder)
        by_key[key].append(image)
        by_name[key[-1]].append(image)
    pairs: dict[Path, Path] = {}
    late = []
    for mask in masks:
        *places, name = key = _key(mask, folder)
        claims = by_key.get(key) or by_key.get((*places, f"{name}_0000"), [])  # the first channel, as nnU-Net names it
        if claims:
            _claim(folder, mask, claims, pairs)
        else:
            late.append((mask, [each for each in by_name.get(name, []) if not places or len(_key(each, folder)) == 1]))
    exact = set(pairs)
    for mask, claims in late:
        if _is_strict(mask, folder) or not exact.issuperset(claims):  # else a further map, such as VOC's of objects
            _claim(folder, mask, claims, pairs)
    return pairs


def _claim(folder: Path, mask: Path, claims: list[Path], pairs: dict[Path, Path]) -> None:
    """Give a label map to the photograph that claims it."""
    claims = [image for image in claims if image.stem == mask.stem] or claims
    if len(claims) > 1:
        names = " and ".join(str(image.relative_to(folder)) for image in claims[:3])
        raise UserError(f"{mask}: is claimed by {names}; keep label maps under the relative paths of their images")
    for image in claims:
        if image in pairs:
            raise UserError(f"{image}: has two label maps, {pairs[image]} and {mask}; keep one of them")
        pairs[image] = mask
