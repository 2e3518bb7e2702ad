"""Carry the packed photographs in files of limited size: JPEGs joined to parts, each of use without the others."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cause_lite.datasets.photos import Photos, packed_dir
from cause_lite.runtime.files import UserError, write_json, write_whole
from cause_lite.runtime.progress import track

LARGEST = 60 * 10**6  # bytes of a part
QUALITY = 92  # of its JPEGs


def encoded(picture: np.ndarray) -> bytes:
    """Return a record (SIDE, SIDE, 3) as a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def write_parts(pool: Photos, folder: Path, largest: int = LARGEST) -> list[Path]:
    """Write the photographs as photos-00.npz, photos-01.npz, ... of at most about `largest` bytes; return the files.

    Every part holds photographs from all sources: the first one every n-th, and so on. Parts of an earlier call go.
    """
    with ThreadPoolExecutor() as encoders:
        records = track(encoders.map(encoded, pool.images), "Encoding photographs", total=len(pool.images))
        contents = list(records)
    count = max(1, -(-sum(map(len, contents)) // int(0.98 * largest)))
    paths = []
    for part in range(count):
        numbers = range(part, len(contents), count)
        ends = np.cumsum([len(contents[number]) for number in numbers])
        arrays: dict[str, Any] = {
            "jpegs": np.frombuffer(b"".join(contents[number] for number in numbers), np.uint8),
            "ends": ends,
            "aspects": pool.aspects[part::count],
            "about": np.array(json.dumps(pool.about)),
        }
        paths.append(folder / f"photos-{part:02d}.npz")
        write_whole(paths[-1], partial(np.savez, **arrays))
    for stale in set(folder.glob("photos-*.npz")) - set(paths):
        stale.unlink()
    return paths


def unpack_parts(folder: Path) -> int:
    """Unpack the parts that lie in a folder to where `photos.load` looks for them; return the number of photographs.

    Raises
    ------
    UserError
        When there is no part, or one is damaged.
    """
    paths = sorted(Path(folder).glob("photos-*.npz"))
    if not paths:
        raise UserError(f"{folder}: holds no photos-*.npz; `cause-lite gpu-run --write-photos {folder}` writes them")
    count = 0

    def unpack(out: Path) -> None:
        nonlocal count
        out.mkdir()
        aspects: list[np.ndarray] = []
        about: dict = {}
        with (out / "images.u8").open("wb") as file, ThreadPoolExecutor() as decoders:
            for path in paths:
                jpegs, part_aspects, about = _read_part(path)
                for picture in decoders.map(partial(_decoded, path), jpegs):
                    file.write(picture.tobytes())
                aspects.append(part_aspects)
        np.save(out / "aspects.npy", np.concatenate(aspects))
        count = sum(map(len, aspects))
        write_json(out / "index.json", about | {"count": count, "parts": [path.name for path in paths]})

    write_whole(packed_dir(), unpack, over=True)
    return count


def _read_part(path: Path) -> tuple[list[bytes], np.ndarray, dict]:
    try:
        with np.load(path) as part:
            content, ends, aspects = part["jpegs"].tobytes(), part["ends"].tolist(), part["aspects"]
            about = json.loads(part["about"].item())
    except Exception as error:  # on damaged bytes numpy and zipfile raise many kinds
        raise UserError(f"{path}: is damaged ({type(error).__name__}); bring it again") from error
    return [content[start:end] for start, end in zip([0, *ends], ends, strict=False)], aspects, about


def _decoded(path: Path, jpeg: bytes) -> np.ndarray:
    try:
        return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    except OSError as error:
        raise UserError(f"{path}: holds a damaged photograph; bring it again") from error
