"""Score a run on labelled images, say how its clusters and their classes meet, and keep that beside the model.

Begin with `evaluate_run`. `tiled_scores` is the way to score whole images at the scale of training.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from cause_lite import checkpoints
from cause_lite.backbones.tiling import by_strips, largest
from cause_lite.checkpoints.matching import ClusterMatch, Matching, write_matching
from cause_lite.checkpoints.segmenter_folder import read_config
from cause_lite.config import FitConfig
from cause_lite.datasets import Split, is_folder
from cause_lite.datasets.images import LazyRows
from cause_lite.datasets.loading import check_name
from cause_lite.evaluate import linear_logits
from cause_lite.lab.agreement import many_to_one_accuracy
from cause_lite.lab.runs import load_evaluation, load_training, plain_scores, score_split
from cause_lite.lab.segmenting import refined
from cause_lite.metrics import ClusterMetrics
from cause_lite.runtime import parallel, provenance
from cause_lite.runtime.device import choose_device
from cause_lite.runtime.files import UserError, read_json, write_json
from cause_lite.runtime.progress import track
from cause_lite.segmenter import Segmenter


@dataclass(frozen=True)
class Evaluating:
    """How a run is scored.

    Parameters
    ----------
    data
        Another labelled data set or folder than the run's own.
    crf
        Whether labels refined by the dense CRF are scored too.
    tiled
        Whether whole images are seen in tiles at the scale of training, as `segment` does; else as squares, as in
        training.
    """

    data: str | None = None
    crf: bool = False
    tiled: bool = False


def evaluate_run(folder: Path, how: Evaluating | None = None, device: str = "auto") -> dict:
    """Score a run that `fit_to` wrote; write scores and matching beside it.

    scores.json holds the scores on the run's own data, scores-NAME.json those on another data set (a second folder of
    that name adds a hash of its path), matching.json the matching of the latest evaluation, which names clusters.
    Raises UserError when the folder holds no run, or the images have no label maps.
    """
    how, folder = how or Evaluating(), Path(folder)
    fitted = read_config(folder)
    config = _with_data(fitted, how.data)
    segmenter, test = checkpoints.load(folder), load_evaluation(config)
    segmenter.to(choose_device(device, config.optimisation.precision))
    if test.labels is None:
        sheet = folder / "contact.png"
        hint = f"look at {sheet}, or name" if sheet.exists() else "name"
        raise UserError(f"{test.name}: has no label maps to score against; {hint} a labelled folder with --data")
    test = test.labelled()
    scores = tiled_scores(segmenter, test, how.crf) if how.tiled else score_split(segmenter, test, how.crf)
    if tuple(segmenter.classes) != tuple(test.classes):
        scores.pop("linear", None)  # it learned other classes, or none
    matching = matching_of(scores["cluster"], test)
    view = "tiles" if how.tiled else f"squares, {config.data.fit}"
    record = described(scores, test, matching) | {"view": view, "size": segmenter.size}
    own = config.data.name == fitted.data.name
    if own and is_folder(test.name):
        _compare_content(folder, config)
    target = folder / "scores.json" if own else _scores_file(folder, test.name)
    parallel.run_on_main_process(lambda: write_json(target, record))
    parallel.run_on_main_process(lambda: write_matching(folder, matching))
    return record


def _scores_file(folder: Path, data: str) -> Path:
    """Return the file of the scores on other data; a second folder of one name is told apart by its path."""
    name = Path(data).name
    plain = folder / f"scores-{name}.json"
    if not plain.exists() or read_json(plain).get("data") == data:
        return plain
    return folder / f"scores-{name}-{hashlib.sha256(os.fsencode(data)).hexdigest()[:8]}.json"


def _compare_content(folder: Path, config: FitConfig) -> None:
    """Warn when a run's folder of images holds other images than it was fitted on."""
    fitted, images = read_json(folder / "fit.json").get("content"), load_training(config).images
    if fitted and isinstance(images, LazyRows) and images.fingerprint() != fitted:
        warnings.warn(f"{config.data.name}: holds other images than those that were fitted", stacklevel=3)


def _with_data(config: FitConfig, data: str | None) -> FitConfig:
    """Return the settings by which another data set's images are read as in the fit."""
    if data is None:
        return config
    check_name(data)
    if is_folder(data):
        return config.replace({"data.name": str(Path(data).absolute()), "data.clusters": None})
    return config.replace({"data.name": data, "data.clusters": None, "data.window": None, "data.bands": None})


@torch.no_grad()
def tiled_scores(segmenter: Segmenter, test: Split, crf: bool = False) -> dict[str, ClusterMetrics]:
    """Score whole images, seen in tiles at the scale of training, by label maps at their own size.

    Raises UserError when the images are kept as squares.
    """
    images, labels = test.images, test.labels
    if not isinstance(images, LazyRows) or not isinstance(labels, LazyRows):
        raise UserError(f"{test.name}: its images are squares, which need no tiles; leave --tiled out")
    classes, clusters = len(test.classes), len(segmenter.cluster_probe.centres)
    counts = {"cluster": clusters} | ({"crf": clusters} if crf else {})
    if segmenter.linear_probe.classify.out_features == classes:
        counts["linear"] = classes
    scores = {name: ClusterMetrics(classes, count) for name, count in counts.items()}
    process = parallel.processes()
    for number in track(range(process.process_index, len(test), process.num_processes), "Scoring"):
        image, truth = images.whole(number), torch.from_numpy(labels.whole(number))
        maps, size = segmenter.maps(image), tuple(truth.shape)
        found = {"cluster": by_strips(maps, size, segmenter.similarities, largest)}
        if "linear" in counts:
            found["linear"] = by_strips(maps, size, lambda maps, size: linear_logits(maps, segmenter, size), largest)
        if crf:
            found["crf"] = torch.from_numpy(refined(segmenter, maps, image, size))
        for name, predicted in found.items():
            scores[name].update(predicted.cpu(), truth)
    for score in scores.values():
        score.confusion = parallel.total(score.confusion)
    return scores


def described(scores: dict[str, ClusterMetrics], test: Split, matching: Matching) -> dict:
    """Return what scores.json holds of an evaluation, beside how the images were shown.

    Raises UserError when no labelled pixel was scored.
    """
    if not scores["cluster"].confusion.sum():
        raise UserError(f"{test.name}: no labelled pixel lies in what is scored; --tiled scores whole images")
    plain, metrics = plain_scores(scores), scores["cluster"]
    for name in plain.keys() - {"linear"}:
        plain[name]["many_to_one_pacc"] = round(many_to_one_accuracy(scores[name].confusion.cpu().numpy()), 3)
    matched = {each.one_to_one for each in matching.clusters}
    shown = [name for name, pixels in zip(test.classes, metrics.confusion.sum(0).tolist(), strict=True) if pixels]
    return {
        "data": test.name,
        "split": test.split,
        "images": len(test),
        "classes": list(test.classes),
        "clusters": metrics.num_clusters,
        "scores": plain,
        "confusion": metrics.confusion.tolist(),
        "matching": [each.model_dump() for each in matching.clusters],
        "unmatched_clusters": [each.cluster for each in matching.clusters if each.one_to_one is None],
        "unmatched_classes": [name for name in shown if name not in matched],
        "date": matching.date,
        "commit": provenance.commit(),
    }


def matching_of(metrics: ClusterMetrics, test: Split) -> Matching:
    """Return how clusters and classes meet; a one-to-one match without a shared pixel counts as none."""
    confusion, one_to_one = metrics.confusion.cpu().numpy(), metrics.matching()
    names, clusters = test.classes, []
    for cluster, row in enumerate(confusion):
        pixels, most, matched = int(row.sum()), int(row.argmax()), int(one_to_one[cluster])
        clusters.append(
            ClusterMatch(
                cluster=cluster,
                one_to_one=names[matched] if matched >= 0 and row[matched] else None,
                most=names[most] if pixels else None,
                share=round(float(row[most] / max(1, pixels)), 4),
                pixels=pixels,
            )
        )
    about = {"data": Path(test.name).name, "split": test.split, "images": len(test), "classes": list(names)}
    return Matching(clusters=clusters, date=provenance.now(), **about)
