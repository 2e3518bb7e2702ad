"""Fit a recipe into a folder, read it back, and score it.

Begin with `fit_to`; `score_segmenter` gives the scores of what it wrote.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cause_lite import checkpoints
from cause_lite.backbones import Backbone, load_backbone
from cause_lite.backbones.feature_store import cached_features
from cause_lite.backbones.loading import TRAINING, centred, find_folder, folder_fingerprint
from cause_lite.checkpoints.matching import MATCHING_FILE
from cause_lite.config import FitConfig
from cause_lite.datasets import Split, is_folder, load_split, without_bad
from cause_lite.datasets.arrays import SOFTWARE, Reading
from cause_lite.datasets.images import LazyRows, flipped, images_fingerprint
from cause_lite.evaluate import evaluate
from cause_lite.lab.crf import refine_batch
from cause_lite.lab.recipes import evaluation_split
from cause_lite.methods.as_released import fit
from cause_lite.metrics import ClusterMetrics
from cause_lite.runtime import parallel, provenance
from cause_lite.runtime.device import choose_device, this_device
from cause_lite.runtime.files import UserError, cache_dir, locked, write_json, write_whole
from cause_lite.runtime.journal import Journal
from cause_lite.runtime.progress import track
from cause_lite.segmenter import Segmenter
from cause_lite.train import Fitted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHEET_IMAGES, SHEET_COLUMNS = 200, 6  # of a contact sheet: images looked at, and shown of each cluster


def fit_to(config: FitConfig, folder: Path, device: str = "auto") -> Fitted:
    """Fit a recipe, and write the segmenter and fit.json (settings, losses, seconds, commit, environment).

    Cut off at any moment, the same call goes on where it was and ends in the same bytes; what that takes lies in
    `folder`/resume until the fit is whole. A fit of a folder of images also gets a contact sheet, contact.png. Raises
    UserError when another process is writing to the folder, or the images or the backbone cannot be read.
    """
    folder = Path(folder)
    config, train, backbone = prepared(config, device)
    with locked(folder) if parallel.processes().is_main_process else contextlib.nullcontext():
        images = images_fingerprint(train.images)
        key = f"{provenance.config_hash(config)} {backbone.fingerprint()[:16]} {train.images.shape} {images}"
        journal = Journal(folder / "resume", key)
        with journal.stop_on_signals():
            fitted = fit(config, train, backbone, journal)
            fitted.segmenter.reading = reading_of(config) or Reading()
        about = {"images": len(train), "content": images}
        parallel.run_on_main_process(lambda: _write_fit(fitted, config, folder, about))
    if is_folder(config.data.name) and parallel.processes().is_main_process:
        import matplotlib.pyplot as plt

        sheet = contact_sheet(fitted.segmenter, train.images)
        plt.close(sheet)  # it can still be saved; a notebook would show an open figure
        write_whole(folder / "contact.png", lambda part: sheet.savefig(part, dpi=100, metadata={"Software": SOFTWARE}))
    return fitted


def prepared(config: FitConfig, device: str = "auto") -> tuple[FitConfig, Split, Backbone]:
    """Return the settings with sizes that the backbone can see, the training images, and the backbone on a device."""
    own_centre = config.backbone.centre == TRAINING
    plain = load_backbone(config.backbone.plain if own_centre else config.backbone)
    plain.to(choose_device(device, config.optimisation.precision))
    plain.prepare(config.optimisation.precision, config.optimisation.compiled)
    config = with_size_of(plain, config)
    train = load_training(config)
    check_clusters(train, plain)
    return config, train, centred(plain, train.images, f"Features of {train.name}/train") if own_centre else plain


def with_size_of(backbone: Backbone, config: FitConfig) -> FitConfig:
    """Return the settings with sizes that the backbone's patch (and window) divides; a folder's are rounded, and said.

    Raises UserError when the images of a published data set do not fit, or the backbone cannot see images of that size.
    """
    unit, changes = getattr(backbone, "window", None) or backbone.patch, dict[str, object]()
    for name, size in (("data.size", config.data.size), ("data.eval_size", config.data.eval_size)):
        if size and size % unit:
            nearest = max(unit, round(size / unit) * unit)
            message = f"{name}: {size} pixels are not a multiple of the backbone's {unit}"
            if not is_folder(config.data.name):
                raise UserError(f"{message}; {nearest} are (--set {name}={nearest})")
            warnings.warn(f"{message}; {nearest} are taken", stacklevel=3)
            changes[name] = nearest
    config = config.replace(changes)
    try:
        backbone.features(np.zeros((1, config.data.size, config.data.size, 3), np.uint8))
    except (RuntimeError, MemoryError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"data.size: the backbone cannot see {config.data.size} pixels ({reason})") from error
    return config


def check_clusters(train: Split, backbone: Backbone) -> None:
    """Raise UserError when there are fewer patches than clusters to find."""
    patches = len(train) * (train.images.shape[1] // backbone.patch) * (train.images.shape[2] // backbone.patch)
    if patches < train.num_clusters:
        raise UserError(
            f"data.clusters: {train.num_clusters:,} clusters cannot be found in {len(train)} images of "
            f"{patches // len(train):,} patches each; ask for fewer, or give more images"
        )


def contact_sheet(segmenter: Segmenter, images: np.ndarray | LazyRows) -> Figure:
    """Draw a row for each cluster, the largest first: the images that show most of it, the rest of each darkened."""
    from cause_lite.lab.pictures import image_grid  # imports matplotlib, which scoring and fitting do without

    some = images[np.linspace(0, len(images) - 1, min(SHEET_IMAGES, len(images))).astype(int)]
    maps = np.stack([segmenter.segment(image, reading=Reading()) for image in track(some, "Contact sheet")])
    clusters = len(segmenter.cluster_probe.centres)
    shares = np.stack([(maps == cluster).mean(axis=(1, 2)) for cluster in range(clusters)])
    rows, names = [], []
    for cluster in np.argsort(-shares.mean(1), kind="stable"):
        order = np.argsort(-shares[cluster], kind="stable")[:SHEET_COLUMNS]
        best = [number for number in order if shares[cluster, number] > 0]
        if best:
            rows.append([np.where((maps[i] == cluster)[..., None], some[i], some[i] // 5 + 20) for i in best])
            names.append(f"{cluster}: {shares[cluster].mean():.0%}")
    return image_grid(rows, names)


def _write_fit(fitted: Fitted, config: FitConfig, folder: Path, data: dict) -> None:
    (folder / "fit.json").unlink(missing_ok=True)  # it marks the folder as whole, so it goes first and comes last
    for stale in (folder / MATCHING_FILE, *folder.glob("scores*.json")):  # of the fit that was here before
        stale.unlink(missing_ok=True)
    checkpoints.save(fitted.segmenter, folder, backbone=config.backbone)
    about = {
        "config": config.model_dump(),
        "config_hash": provenance.config_hash(config),
        "losses": fitted.losses,
        "seconds": fitted.seconds,
        "commit": provenance.commit(),
        "environment": provenance.environment(),
        "date": provenance.now(),
    }
    write_json(folder / "fit.json", about | data)
    shutil.rmtree(folder / "resume", ignore_errors=True)


def load_training(config: FitConfig) -> Split:
    """Return the training split as the settings want it; images that are left out are listed in a warning."""
    how = (config.data.crops, config.data.fit, config.data.resize, folder_clusters(config), reading_of(config))
    train = load_split(config.data.name, "train", config.data.size, *how)
    if config.data.skip_bad:
        train, faults = without_bad(train)
        if faults:
            warnings.warn("\n".join([f"{len(faults)} images are left out:", *faults]), stacklevel=2)
    return train


def folder_clusters(config: FitConfig) -> int | None:
    """Return how many clusters to find in a folder; None for other data sets, which have one for each class."""
    return config.data.clusters if is_folder(config.data.name) else None


def reading_of(config: FitConfig) -> Reading | None:
    """Return the window and the bands of a folder's images; None where the settings name neither."""
    window, bands = config.data.window, config.data.bands
    return Reading(window, bands) if window or bands else None


def load_evaluation(config: FitConfig, split: str | None = None) -> Split:
    """Return the split that is scored (the recipe's unless named), uncropped, at the size of evaluation."""
    how = ("none", config.data.fit, config.data.resize, folder_clusters(config), reading_of(config))
    test = load_split(config.data.name, split or evaluation_split(config.data.name), config.scored_size, *how)
    return without_bad(test)[0] if config.data.skip_bad else test


def score_segmenter(
    segmenter: Segmenter, config: FitConfig, crf: bool = False, split: str | None = None
) -> dict[str, ClusterMetrics]:
    """Score a segmenter on a labelled split of its data set, each image and its mirror image seen.

    Raises UserError when the split has no labels, or the segmenter no backbone.
    """
    return score_split(segmenter, load_evaluation(config, split), crf)


def score_split(segmenter: Segmenter, test: Split, crf: bool = False) -> dict[str, ClusterMetrics]:
    """Score a segmenter on the labelled images of a split, as squares; see `score_segmenter`."""
    test, backbone = test.labelled(), segmenter.backbone
    labels = label_maps(test)
    if backbone is None:
        raise UserError("the segmenter has no backbone; set `segmenter.backbone` to a loaded one")
    features = cached_features(backbone, test.images, f"Features of {test.name}/{test.split}")
    mirrored = cached_features(backbone, flipped(test.images), "Features of the mirror images")
    refine = refine_batch if crf else None
    return evaluate(segmenter, features, mirrored, labels, len(test.classes), refine, test.images)


def label_maps(split: Split) -> np.ndarray | LazyRows:
    """Return the label maps (N, H, W) of a split that is to be scored.

    Raises UserError when it has none.
    """
    if split.labels is None:
        raise UserError(f"{split.name}: has no labels to score against; look at its contact sheet instead")
    return split.labels


def name_clusters(labels: np.ndarray, metrics: ClusterMetrics) -> np.ndarray:
    """Turn cluster numbers (H, W) into the classes that the matching gave them, for showing beside the truth."""
    return metrics.matching()[labels]


def plain_scores(scores: dict[str, ClusterMetrics]) -> dict[str, dict]:
    """Return metrics as plain numbers for JSON, in percent; the IoU of a class that never occurs is None."""
    plain = {}
    for name, metrics in scores.items():
        computed = metrics.unmatched() if name == "linear" else metrics.compute()
        iou = [None if np.isnan(value) else round(100 * float(value), 3) for value in computed["iou"]]
        plain[name] = {k: round(computed[k], 3) for k in ("miou", "pacc")} | {"iou": iou}
    return plain


def fitted_segmenter(config: FitConfig) -> Segmenter:
    """Return the segmenter of these settings on the fastest device; fit it now if it is not in the cache."""
    return checkpoints.load(fitted_run(config)).to(choose_device("auto", config.optimisation.precision))


def fitted_run(config: FitConfig) -> Path:
    """Return the folder of a finished fit of these settings on this device; fit it now if it is not in the cache.

    Images and a backbone may change under their names: fits on what they were before are others.
    """
    content = folder_fingerprint(find_folder(config.backbone.name)), images_fingerprint(load_training(config).images)
    made_by = hashlib.sha256(f"{this_device()} {content}".encode())
    name = f"{Path(config.data.name).name}-{config.head.kind}-{config.seed}-{provenance.config_hash(config)}"
    folder = cache_dir() / "fits" / f"{name}-{made_by.hexdigest()[:12]}"
    if not (folder / "fit.json").exists():
        fit_to(config, folder)
    return folder
