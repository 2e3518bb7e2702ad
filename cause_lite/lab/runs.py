"""What the commands do: fit to a folder, score a folder, segment files."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from cause_lite import checkpoints
from cause_lite.backbones import load_backbone
from cause_lite.backbones.feature_store import cached_features
from cause_lite.checkpoints.config_records import read_config as config_of
from cause_lite.config import FitConfig
from cause_lite.datasets import Split, is_folder, load_split, without_bad
from cause_lite.datasets.images import Lazy, flipped, read_rgb
from cause_lite.evaluate import evaluate
from cause_lite.lab.crf import refine_batch
from cause_lite.lab.label_flow import fit
from cause_lite.lab.pictures import colourise, image_grid
from cause_lite.lab.recipes import evaluation_split
from cause_lite.metrics import ClusterMetrics
from cause_lite.runtime import parallel, provenance
from cause_lite.runtime.device import choose_device
from cause_lite.runtime.files import UserError, cache_dir, locked, read_json, write_json, write_whole
from cause_lite.runtime.journal import Journal
from cause_lite.runtime.progress import track
from cause_lite.segmenter import Segmenter
from cause_lite.train import Fitted


def fit_to(config: FitConfig, folder: Path, device: str = "auto") -> Fitted:
    """Fit a recipe and write the segmenter and fit.json (configuration, losses, seconds, commit, environment).

    Cut off at any moment, the same call goes on where it was and ends in the same bytes; what that takes lies in
    `folder`/resume until the fit is whole. Raises UserError when another process is writing to the folder.
    """
    folder, place = Path(folder), choose_device(device)
    backbone, train = load_backbone(config.backbone).to(place), load_training(config)
    with locked(folder) if parallel.processes().is_main_process else contextlib.nullcontext():
        key = f"{provenance.config_hash(config)} {backbone.fingerprint()[:16]} {train.images.shape}"
        journal = Journal(folder / "resume", key)
        with journal.stop_on_signals():
            fitted = fit(config, train, backbone, journal)
        parallel.run_on_main_process(lambda: _write_fit(fitted, config, folder))
    if is_folder(config.data.name) and parallel.processes().is_main_process:
        sheet = contact_sheet(fitted.segmenter, train.images)
        write_whole(folder / "contact.png", lambda part: sheet.savefig(part, dpi=100))
    return fitted


def contact_sheet(segmenter: Segmenter, images: np.ndarray | Lazy, most: int = 200, across: int = 6) -> Figure:
    """A row a cluster, the largest first: the images that show most of it, the rest of each darkened."""
    some = images[np.linspace(0, len(images) - 1, min(most, len(images))).astype(int)]
    maps = np.stack([segmenter.segment(image) for image in track(some, "Contact sheet")])
    clusters = len(segmenter.cluster_probe.centres)
    shares = np.stack([(maps == cluster).mean(axis=(1, 2)) for cluster in range(clusters)])
    rows, names = [], []
    for cluster in np.argsort(-shares.mean(1), kind="stable"):
        best = [i for i in np.argsort(-shares[cluster], kind="stable")[:across] if shares[cluster, i] > 0]
        if best:
            rows.append([np.where((maps[i] == cluster)[..., None], some[i], some[i] // 5 + 20) for i in best])
            names.append(f"{cluster}: {shares[cluster].mean():.0%}")
    return image_grid(rows, names)


def _write_fit(fitted: Fitted, config: FitConfig, folder: Path) -> None:
    (folder / "fit.json").unlink(missing_ok=True)  # it marks the folder as whole, so it goes first and comes last
    checkpoints.save(fitted.segmenter, folder, backbone=config.backbone)
    about = {
        "config": config.model_dump(), "config_hash": provenance.config_hash(config), "losses": fitted.losses,
        "seconds": fitted.seconds, "commit": provenance.commit(), "environment": provenance.environment(),
        "date": provenance.now(),
    }  # fmt: skip
    write_json(folder / "fit.json", about)
    shutil.rmtree(folder / "resume", ignore_errors=True)


def load_training(config: FitConfig) -> Split:
    """The training split as the configuration wants it; images that are left out are listed in a warning."""
    how = (config.data.crops, config.data.fit, config.data.resize, config.data.clusters)
    train = load_split(config.data.name, "train", config.data.size, *how)
    if config.data.skip_bad:
        train, wrong = without_bad(train)
        if wrong:
            warnings.warn("\n".join([f"{len(wrong)} images are left out:", *wrong]), stacklevel=2)
    return train


def load_evaluation(config: FitConfig, split: str | None = None) -> Split:
    """The split that is scored (the recipe's unless named), uncropped, at the size of evaluation."""
    how = ("none", config.data.fit, config.data.resize, config.data.clusters)
    return load_split(config.data.name, split or evaluation_split(config.data.name), config.scored_size, *how)


def read_config(folder: Path) -> FitConfig:
    """The configuration that a run was fitted with. Raises UserError when fit.json does not hold one."""
    about = read_json(Path(folder) / "fit.json")
    try:
        return config_of(about["config"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}/fit.json: `config` is not a configuration of this version ({error})") from error


def score_segmenter(
    segmenter: Segmenter, config: FitConfig, crf: bool = False, split: str | None = None
) -> dict[str, ClusterMetrics]:
    """A segmenter's metrics on the evaluation split of its data set, or on another."""
    test = load_evaluation(config, split)
    if test.labels is None:
        raise UserError(f"{config.data.name}: has no labels to score against; look at its contact sheet instead")
    features = cached_features(segmenter.backbone, test.images, f"Features of {test.name}/{test.split}")
    mirrored = cached_features(segmenter.backbone, flipped(test.images), "Features of the mirror images")
    refine = refine_batch if crf else None
    return evaluate(segmenter, features, mirrored, test.labels, len(test.classes), refine, test.images)


def name_clusters(labels: np.ndarray, metrics: ClusterMetrics) -> np.ndarray:
    """Cluster numbers (H, W) -> the classes that the matching gave them, for showing beside the truth."""
    return metrics.matching()[labels]


def plain_scores(scores: dict[str, ClusterMetrics]) -> dict[str, dict]:
    """Metrics as plain numbers for JSON; the IoU of a class that never occurs is None."""
    plain = {}
    for name, metrics in scores.items():
        computed = metrics.unmatched() if name == "linear" else metrics.compute()
        iou = [None if np.isnan(value) else round(100 * float(value), 3) for value in computed["iou"]]
        plain[name] = {k: round(computed[k], 3) for k in ("miou", "pacc")} | {"iou": iou}
    return plain


def evaluate_run(folder: Path, crf: bool = False, device: str = "auto") -> dict[str, dict]:
    """Score a fitted run, write scores.json beside it, and return the scores."""
    config = read_config(folder)
    segmenter = checkpoints.load(folder).to(choose_device(device))
    scores = plain_scores(score_segmenter(segmenter, config, crf))
    write_json(
        Path(folder) / "scores.json", {"scores": scores, "date": provenance.now(), "commit": provenance.commit()}
    )
    return scores


def fitted_segmenter(config: FitConfig) -> Segmenter:
    """The segmenter of this configuration on the fastest device, fitted now if it is not in the cache."""
    return checkpoints.load(fitted_run(config)).to(choose_device("auto"))


def fitted_run(config: FitConfig) -> Path:
    """The folder of a finished fit of this configuration, fitted now if it is not in the cache."""
    folder = (
        cache_dir() / "fits" / f"{config.data.name}-{config.head.kind}-{config.seed}-{provenance.config_hash(config)}"
    )
    if not (folder / "fit.json").exists():
        fit_to(config, folder)
    return folder


def segment_files(paths: list[Path], model: str, out: Path, device: str = "auto") -> Iterator[Path]:
    """Segment image files; yields each label map and overlay once it is whole on disk."""
    place = choose_device(device)
    segmenter = checkpoints.load(model).to(place)
    names = [path.stem for path in paths]
    for path in track(paths, "Segmenting"):
        image = np.array(read_rgb(path))
        labels = segmenter.segment(image)
        # Two inputs of one stem (a.png, a.jpg) must not overwrite each other's output.
        stem = path.name if names.count(path.stem) > 1 else path.stem
        overlay = Image.fromarray(colourise(labels, image))
        for suffix, picture in (("labels", Image.fromarray(labels)), ("overlay", overlay)):
            target = Path(out) / f"{stem}.{suffix}.png"
            write_whole(target, lambda part, picture=picture: picture.save(part, format="PNG"))
            yield target
