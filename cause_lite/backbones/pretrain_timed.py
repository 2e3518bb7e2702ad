"""Pre-train on photographs for a limited time: as far as it goes at the constant rate, then along a branch.

The run can be carried in parts of limited size, and goes on from them on another machine: several runs add up.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from cause_lite.backbones.pretrain_photos import PhotoPretraining, PhotosConfig, pretrain_and_export_photos
from cause_lite.datasets import photos
from cause_lite.runtime.device import choose_device
from cause_lite.runtime.files import UserError, write_whole

LARGEST = 15 * 10**6  # bytes of a part
ENDLESS = 10**9  # steps at the constant rate, whose number time decides
EXPORT = 30.0  # seconds that centring and writing take at most


def pretrain_for(config: PhotosConfig, folder: Path, device: str, seconds: float) -> PhotosConfig:
    """Go on with the run in `folder` for `seconds`, then export the end of its branch.

    Takes steps at the constant rate until what is left is needed for the branch, at the pace so far; one step at least.

    Returns
    -------
    PhotosConfig
        The recipe with the number of steps that were taken in all.
    """
    start, file = time.monotonic(), Path(folder) / "pretrain.pt"
    run = PhotoPretraining(photos.load(), replace(config, steps=ENDLESS), choose_device(device))
    if file.exists():
        run.resume(file)
    begun, first, needed = time.monotonic(), run.step, 0.0
    while run.step == first or time.monotonic() - start + needed + EXPORT < seconds:
        whole, part = run.advance()
        run.curve.append((run.step, round(whole, 4), round(part, 4)))
        needed = config.cooldown * (time.monotonic() - begun) / (run.step - first)
    write_whole(file, partial(torch.save, run.state()))
    config = replace(config, steps=run.step)
    pretrain_and_export_photos(config, folder, device)
    return config


def split_file(path: Path, folder: Path, largest: int = LARGEST) -> list[Path]:
    """Write a file as NAME.00, NAME.01, ... of at most `largest` bytes each, and return them; older parts go."""
    content, parts = path.read_bytes(), []
    for number, start in enumerate(range(0, max(1, len(content)), largest)):
        parts.append(Path(folder) / f"{path.name}.{number:02d}")
        piece = content[start : start + largest]
        write_whole(parts[-1], partial(Path.write_bytes, data=piece))
    for stale in set(Path(folder).glob(f"{path.name}.[0-9][0-9]")) - set(parts):
        stale.unlink()
    return parts


def join_parts(folder: Path, path: Path) -> None:
    """Write the file whose parts lie in a folder. Raises UserError where a part is missing."""
    parts = sorted(Path(folder).glob(f"{path.name}.[0-9][0-9]"))
    numbers = [int(part.suffix[1:]) for part in parts]
    if not parts or numbers != list(range(len(parts))):
        raise UserError(f"{folder}: parts of {path.name} must be numbered from 00 without a gap, found {numbers}")
    write_whole(path, lambda file: file.write_bytes(b"".join(part.read_bytes() for part in parts)))
