"""Carry the packed photographs, and any other file, in parts of limited size.

Photographs become JPEGs, joined to parts that are each of use without the others.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cause_lite.datasets import photos
from cause_lite.runtime.files import UserError, write_json, write_whole
from cause_lite.runtime.progress import track

LARGEST, LARGEST_PIECE = 60 * 10**6, 15 * 10**6  # bytes of a part with photographs, and of another file's
QUALITY = 92  # of JPEGs


def encoded(picture: np.ndarray) -> bytes:
    """Return a packed photograph (SIDE, SIDE, 3) as a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def write_parts(pool: photos.Photos, folder: Path, largest: int = LARGEST) -> list[Path]:
    """Write photos-00.npz, photos-01.npz, ... of at most about `largest` bytes each; return them, older ones go.

    Every part holds photographs from all sources: the first one every n-th, and so on.
    """
    with ThreadPoolExecutor() as encoders:
        contents = list(track(encoders.map(encoded, pool.images), "Encoding photographs", total=len(pool.images)))
    count, paths = max(1, -(-sum(map(len, contents)) // int(0.98 * largest))), []
    for number in range(count):
        jpegs = contents[number::count]
        arrays: dict[str, Any] = {
            "jpegs": np.frombuffer(b"".join(jpegs), np.uint8),
            "ends": np.cumsum(list(map(len, jpegs))),
            "aspects": pool.aspects[number::count],
            "about": np.array(json.dumps(pool.about)),
        }
        paths.append(folder / f"photos-{number:02d}.npz")
        write_whole(paths[-1], partial(np.savez, **arrays))
    remove_others(folder.glob("photos-*.npz"), paths)
    return paths


def unpack_parts(folder: Path) -> int:
    """Unpack the parts in a folder to where `photos.load` looks for them; return the number of photographs.

    Raises UserError when there is no part, or one is damaged.
    """
    paths = sorted(folder.glob("photos-*.npz"))
    if not paths:
        raise UserError(f"{folder}: holds no photos-*.npz; `cause-lite gpu-run --write-photos {folder}` writes them")

    def unpack(out: Path) -> None:
        out.mkdir()
        aspects: list[np.ndarray] = []
        about: dict = {}
        with (out / "images.u8").open("wb") as file, ThreadPoolExecutor() as decoders:
            for path in paths:
                jpegs, part_aspects, about = _read_part(path)
                for picture in decoders.map(partial(_decoded, path), jpegs):
                    file.write(picture)
                aspects.append(part_aspects)
        joined = np.concatenate(aspects)
        np.save(out / "aspects.npy", joined)
        write_json(out / "index.json", about | {"count": len(joined), "parts": [path.name for path in paths]})

    write_whole(photos.packed_dir(), unpack, over=True)
    return len(photos.load().images)


def _read_part(path: Path) -> tuple[list[np.ndarray], np.ndarray, dict]:
    """Return the JPEGs of a part, the photographs' aspects and what they are made of."""
    try:
        with np.load(path) as part:
            jpegs = np.split(part["jpegs"], part["ends"][:-1])
            return jpegs, part["aspects"], json.loads(part["about"].item())
    except Exception as error:  # on damaged bytes numpy and zipfile raise many kinds
        raise UserError(f"{path}: is damaged ({type(error).__name__}); bring it again") from error


def _decoded(path: Path, jpeg: np.ndarray) -> bytes:
    """Return the pixels of a JPEG of a part."""
    try:
        return Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB").tobytes()
    except OSError as error:
        raise UserError(f"{path}: holds a damaged photograph; bring it again") from error


def split_file(path: Path, folder: Path, largest: int = LARGEST_PIECE) -> list[Path]:
    """Write a file as NAME.00, NAME.01, ... of at most `largest` bytes each; return them, older ones go."""
    content, parts = path.read_bytes(), []
    for number, start in enumerate(range(0, max(1, len(content)), largest)):
        parts.append(folder / f"{path.name}.{number:02d}")
        write_whole(parts[-1], partial(Path.write_bytes, data=content[start : start + largest]))
    remove_others(folder.glob(f"{path.name}.[0-9][0-9]"), parts)
    return parts


def join_parts(folder: Path, path: Path) -> None:
    """Write the file whose parts lie in a folder. Raises UserError where a part is missing."""
    parts = sorted(folder.glob(f"{path.name}.[0-9][0-9]"))
    numbers = [int(part.suffix[1:]) for part in parts]
    if not parts or numbers != list(range(len(parts))):
        raise UserError(f"{folder}: parts of {path.name} must be numbered from 00 without a gap, found {numbers}")
    write_whole(path, lambda file: file.write_bytes(b"".join(part.read_bytes() for part in parts)))


def remove_others(found: Iterable[Path], kept: list[Path]) -> None:
    """Remove the parts of an earlier, larger whole."""
    for path in set(found) - set(kept):
        path.unlink()
