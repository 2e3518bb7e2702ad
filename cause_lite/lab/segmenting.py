"""Segment files and folders: what goes where is settled before any work, and one bad file does not stop the rest."""

from __future__ import annotations

import csv
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch.nn import functional as F

from cause_lite import checkpoints
from cause_lite.backbones.tiling import by_strips, largest, margin
from cause_lite.datasets.arrays import SOFTWARE, Picture, Reading, label_type
from cause_lite.datasets.folder_survey import survey
from cause_lite.datasets.picture_files import as_picture, is_output
from cause_lite.datasets.tiff import read_georeference, write_labels
from cause_lite.lab.colours import colourise, palette
from cause_lite.runtime.device import choose_device
from cause_lite.runtime.files import UserError, write_whole
from cause_lite.runtime.progress import track
from cause_lite.segmenter import Segmenter

LEGEND = "legend.csv"
LONGEST_NAME = 255  # bytes of a file's name, on nearly every file system
SPARE_NAME = 40  # bytes that the longest output's name and its temporary file's add to a name
CRF_PIXELS = 500_000  # on which the CRF runs; larger images are refined at this size
OVERLAY_ROWS = 64  # that are coloured at once


@dataclass(frozen=True)
class Segmenting:
    """How images are segmented.

    Parameters
    ----------
    scale
        Times the scale of training; see `backbones.tiling.plan_tiles`.
    crf
        Whether a dense CRF refines the labels.
    confidence
        Whether NAME.confidence.png is written too: by how much each pixel's cluster is more similar than the next, as
        8-bit grey; 255 is a cosine of 1 or more.
    named
        Whether the legend gives each cluster the name that an evaluation matched it to.
    reading
        Window, bands and frame of the files; a window or bands left out are those of the model.
    """

    scale: float = 1.0
    crf: bool = False
    confidence: bool = False
    named: bool = False
    reading: Reading = field(default_factory=Reading)


@dataclass(frozen=True)
class Job:
    """An image file, and the path of its outputs below the output folder, without their endings."""

    source: Path
    target: str


def plan_jobs(paths: list[Path]) -> tuple[list[Job], list[str]]:
    """Return what is to be segmented and what it is called, and what is skipped and why.

    The images of a folder keep their paths within it, below the folder's name where several inputs are given. Other
    files keep their names without their ending; with it, or with the folders that tell them apart, where two would be
    the same. Raises UserError when a folder holds no image, or outputs would overwrite each other.
    """
    jobs: list[Job] = []
    notes: list[str] = []
    files = list(dict.fromkeys(path for path in paths if not path.is_dir()))
    for folder in dict.fromkeys(path for path in paths if path.is_dir()):
        found = survey(folder)
        if not found.images:
            raise UserError("; ".join([f"{folder}: holds no image", *found.reasons()]))
        notes += [f"{folder}: {reason}" for reason in found.reasons()]
        top = Path() if len(paths) == 1 else Path(folder.resolve().name)
        jobs += _named([(image, top / image.relative_to(folder)) for image in found.images])
    jobs += _named([(file, Path(file.name)) for file in files])
    jobs = list({job.source.absolute(): job for job in jobs}.values())
    claims = Counter(_folded(job.target) for job in jobs)
    if double := [job for job in jobs if claims[_folded(job.target)] > 1]:
        names = " and ".join(str(job.source) for job in double if _folded(job.target) == _folded(double[0].target))
        raise UserError(f"{names}: would be written to the same {double[0].target}.labels.png; segment them apart")
    return jobs, notes


def _folded(name: str) -> str:
    """Return what is one name on disks that do not tell A from a, or one form of Unicode from another."""
    return unicodedata.normalize("NFC", name).casefold()


def _named(files: list[tuple[Path, Path]]) -> list[Job]:
    """Name the outputs of files with their paths below the output folder, so that no two are the same."""
    plain = [str(inner.with_suffix("")) for _, inner in files]
    whole = [str(inner) for _, inner in files]
    apart = [str(path) for path in _apart([source for source, _ in files])]
    jobs = []
    numbered = [f"{name}-{number}" for number, name in enumerate(whole)]
    kinds = (plain, whole, apart, numbered)
    counts = [Counter(_folded(name) for name in kind) for kind in kinds]  # some disks do not tell A from a
    for (source, _), *names in zip(files, *kinds, strict=True):
        jobs.append(Job(source, next(n for n, count in zip(names, counts, strict=True) if count[_folded(n)] == 1)))
    return jobs


def _apart(sources: list[Path]) -> list[Path]:
    """Return paths relative to the deepest folder that all of them share, without their endings."""
    if not sources:
        return []
    absolute = [Path(os.path.abspath(source)) for source in sources]
    shared = Path(os.path.commonpath([path.parent for path in absolute]))
    return [path.relative_to(shared).with_suffix("") for path in absolute]


def segment_files(
    paths: list[Path],
    model: str,
    out: Path,
    device: str = "auto",
    how: Segmenting | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Path]:
    """Segment image files and the images of folders; yield each output once it is whole on disk.

    NAME.labels.png holds cluster numbers (8 bits for up to 255 clusters, else 16; the last value marks what is ignored)
    and NAME.overlay.png their colours on the image. `legend.csv` in the output folder names the colours. The labels of
    a GeoTIFF are also written as NAME.labels.tif, with its georeference. Raises UserError before any work when the
    model cannot be loaded or keeps no names that are asked for, or outputs would overwrite each other; after all other
    images were done when some could not be, with the list of those.
    """
    how, failures = how or Segmenting(), list[str]()
    jobs, notes = plan_jobs([Path(path) for path in paths])
    segmenter = checkpoints.load(model).in_precision("fp32").to(choose_device(device))
    label_type(len(segmenter.cluster_probe.centres))  # refuses too many
    legend = legend_of(segmenter, model, how.named)
    for note in notes:
        say(note)
    said, begun = set[str](), False
    for job in track(jobs, "Segmenting"):
        try:
            outputs = _outputs_of_job(job, segmenter, how, said, say)
        except UserError as error:
            failures.append(str(error))
            continue
        if not begun:
            write_legend(Path(out) / LEGEND, legend, say)
        for ending, write in outputs.items():
            target = Path(out) / f"{job.target}.{ending}"
            write_whole(target, write)
            begun = True
            yield target
    if failures:
        raise UserError(f"{len(failures)} of {len(jobs)} images could not be segmented: {'; '.join(failures)}")


def _outputs_of_job(
    job: Job, segmenter: Segmenter, how: Segmenting, said: set[str], say: Callable[[str], None]
) -> dict[str, Callable[[Path], None]]:
    """Return what writes each output of a file, by its ending; say what was decided, unless it was `said` before."""
    check_job(job)
    picture = as_picture(job.source, how.reading.over(segmenter.reading))
    images = outputs_of(segmenter, picture, how)
    writers: dict[str, Callable[[Path], None]] = {
        f"{ending}.png": partial(save_output, image) for ending, image in images.items()
    }
    try:
        if reference := read_georeference(job.source):
            writers["labels.tif"] = partial(write_labels, np.asarray(images["labels"]), reference)
    except UserError as error:
        say(str(error))
    for note in picture.notes:
        if note not in said:
            say(f"{job.source}: {note}")
            said.add(note)
    return writers


def check_job(job: Job) -> None:
    """Raise UserError when a file is an output, or its name too long for the outputs' names."""
    if len(os.fsencode(Path(job.target).name)) > LONGEST_NAME - SPARE_NAME:
        raise UserError(f"{job.source}: its name is too long for the names of its outputs; rename it")
    if job.source.is_file() and is_output(job.source):
        raise UserError(f"{job.source}: was written by this program and is no photograph")


def outputs_of(segmenter: Segmenter, picture: Picture, how: Segmenting) -> dict[str, Image.Image]:
    """Return the outputs of a picture, by their ending: labels, overlay and, if asked for, confidence."""
    clusters, size = len(segmenter.cluster_probe.centres), picture.rgb.shape[:2]
    maps = segmenter.maps(picture.rgb, how.scale)
    if how.crf:
        nearest = refined(segmenter, maps, picture.rgb, size)
    else:
        nearest = by_strips(maps, size, segmenter.similarities, largest).cpu().numpy()
    labels = picture.with_ignored(nearest.astype(label_type(clusters)))
    outputs = {"labels": Image.fromarray(labels), "overlay": overlay(labels, picture, clusters)}
    if how.confidence:
        certain = by_strips(maps, size, segmenter.similarities, margin).clamp(0, 1).mul(255).round()
        grey = certain.to(torch.uint8).cpu().numpy()
        outputs["confidence"] = Image.fromarray(grey if picture.valid is None else grey * picture.valid)
    return outputs


def overlay(labels: np.ndarray, picture: Picture, clusters: int) -> Image.Image:
    """Return the clusters' colours on the picture; a colour depends on the cluster and their number alone."""
    colours = np.empty_like(picture.rgb)
    for start in range(0, len(labels), OVERLAY_ROWS):  # some rows at a time, for memory
        rows = slice(start, start + OVERLAY_ROWS)
        shown = labels[rows].astype(np.int32)
        if picture.valid is not None:
            shown[~picture.valid[rows]] = -1
        colours[rows] = colourise(shown, picture.rgb[rows], clusters)
    return Image.fromarray(colours)


def refined(segmenter: Segmenter, maps: torch.Tensor, image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return the labels that the CRF makes of the similarities at a size that fits memory, scaled to `size` (H, W)."""
    from cause_lite.lab.crf import refined_labels  # what it imports, segmenting does without

    height, width = image.shape[:2]
    share = min(1.0, (CRF_PIXELS / (height * width)) ** 0.5)
    small = (max(1, round(height * share)), max(1, round(width * share)))
    scaled = np.array(Image.fromarray(image).resize((small[1], small[0]), Image.Resampling.BILINEAR))
    log_probs = F.log_softmax(3 * segmenter.similarities(maps, small), dim=1)[0].cpu().numpy()
    labels = Image.fromarray(refined_labels(scaled, log_probs).astype(np.int32))
    return np.array(labels.resize((size[1], size[0]), Image.Resampling.NEAREST))


def legend_of(segmenter: Segmenter, model: str, named: bool) -> list[tuple[str, str, str]]:
    """Return the number, name and colour of each cluster; with `named`, its name by the matching that the model keeps.

    Raises UserError when names are asked for and the model keeps no matching.
    """
    clusters = len(segmenter.cluster_probe.centres)
    if named and not segmenter.cluster_names:
        raise UserError(f"{model}: keeps no matching, so its clusters have no names; run `cause-lite evaluate {model}`")
    names = segmenter.cluster_names if named else [f"cluster {number}" for number in range(clusters)]
    colours = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in palette(clusters).tolist()]
    return [(str(number), *pair) for number, pair in enumerate(zip(names, colours, strict=True))]


def write_legend(path: Path, legend: list[tuple[str, str, str]], say: Callable[[str], None]) -> None:
    """Write the legend as CSV with the columns id, name and colour; say so when it replaces one of other colours."""

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("id", "name", "colour"), *legend])

    if path.exists() and path.read_text(encoding="utf-8", errors="replace").count("\n") != len(legend) + 1:
        say(f"{path}: was of another number of clusters; overlays written before have other colours")
    write_whole(path, write)


def save_output(image: Image.Image, path: Path) -> None:
    """Save a PNG with the mark by which `is_output` knows it."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", SOFTWARE)
    image.save(path, format="PNG", pnginfo=text)
