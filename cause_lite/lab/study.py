"""The one study engine: a study is a grid of runs in a YAML file; a run's record has the confusion of each image.

Begin with `read_study`, which names the runs, and `run_study`, which does those that have no record yet. A question
that comes up later is answered from the records: nothing has to run again.
"""

from __future__ import annotations

import base64
import itertools
import json
import lzma
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from cause_lite.backbones import Backbone, load_backbone
from cause_lite.backbones.feature_store import cached_features
from cause_lite.config import FitConfig
from cause_lite.datasets import Split
from cause_lite.datasets.images import flipped
from cause_lite.lab.arithmetics import arithmetics, in_process
from cause_lite.lab.crf import refine_batch
from cause_lite.lab.recipes import recipe
from cause_lite.lab.runs import fitted_segmenter, label_maps, load_evaluation, load_training
from cause_lite.methods import Training, Views, find
from cause_lite.methods.method import Predictor
from cause_lite.runtime import provenance
from cause_lite.runtime.device import choose_device, this_device
from cause_lite.runtime.files import UserError, cache_dir, locked, project_dir, read_json, write_json
from cause_lite.runtime.settings import Positive, Settings, SettingsTree

FOLDER = Path(__file__).parent / "studies"
BATCH = 10  # images that are predicted at once


class Arm(Settings):
    """One thing that is compared; in a file, `over` makes an arm of each combination of the values that it names.

    Attributes
    ----------
    title
        In words, as tables show it.
    method, options
        A method's name, and its options.
    head, settings
        The recipe's head, and what else differs from the recipe, as in {"head.epochs": 4}.
    crf
        Whether the prediction is refined by the CRF.
    seeds, data
        How many seeds and which data sets, where they are not the study's.
    """

    title: str
    method: str
    options: dict[str, Any] = Field(default_factory=dict)
    head: str = "mlp"
    settings: dict[str, Any] = Field(default_factory=dict)
    crf: bool = False
    seeds: Positive | None = None
    data: list[str] | None = None


class Study(SettingsTree):
    """A grid of data sets, arms and seeds, scored on one split.

    Attributes
    ----------
    question
        What it asks, in a sentence.
    settings
        What differs from the recipe in every arm, by data set.
    arithmetics
        Whether each run is done once under every arithmetic that this processor can emulate, in a process of its own.
    """

    question: str
    data: list[str]
    arms: dict[str, Arm]
    split: str = "test"
    seeds: Positive = 5
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    arithmetics: bool = False


@dataclass(frozen=True)
class Run:
    """One run of a study: an arm on a data set with a seed."""

    data: str
    arm_name: str
    arm: Arm
    seed: int
    study: Study
    arithmetic: str = ""

    @property
    def key(self) -> str:
        """The key of its record in the file of the study and the data set."""
        return f"{self.arm_name}/{self.seed}" + (f"/{self.arithmetic}" if self.arithmetic else "")

    @property
    def config(self) -> FitConfig:
        """The settings of the recipe with those of the arm."""
        changes = self.study.settings.get(self.data, {}) | self.arm.settings
        return recipe(self.data, self.arm.head, self.seed, changes=changes)


def studies() -> list[str]:
    """Return the names of all studies."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_study(name: str) -> Study:
    """Read a study's grid; one that is `like` another names which of its arms it takes, and what differs.

    Raises
    ------
    UserError
        Naming the studies that there are, or the file and the field at fault.
    """
    path = FOLDER / f"{name}.yaml"
    if name not in studies():
        raise UserError(f"no study named {name!r}; must be one of {', '.join(studies())}")
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        arms = given["arms"]
        if like := given.pop("like", None):
            whole = yaml.safe_load((FOLDER / f"{like}.yaml").read_text(encoding="utf-8"))
            given, arms = whole | given, {name: whole["arms"][name] | {"seeds": None} for name in arms}
        return Study(**given | {"arms": dict(_expanded(arms))})
    except (UserError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {error}") from error


def _expanded(arms: Mapping[str, dict]) -> Iterator[tuple[str, dict]]:
    """Yield each arm by name, its `$words` replaced by every combination of the values that its `over` lists."""
    for name, arm in arms.items():
        template = Template(yaml.safe_dump({key: value for key, value in arm.items() if key != "over"}))
        over = arm.get("over", {})
        for values in itertools.product(*over.values()):
            words = dict(zip(over, map(str, values), strict=True))
            yield Template(name).substitute(words).replace(" ", "-"), yaml.safe_load(template.substitute(words))


def runs_of(study: Study, data: str, seeds: int | None = None) -> Iterator[Run]:
    """Yield the runs on a data set, seed by seed, so that all arms grow together; at most `seeds` of each arm.

    Raises
    ------
    UserError
        For a data set that the study does not have.
    """
    if data not in study.data:
        raise UserError(f"no data set {data!r} in this study; must be one of {', '.join(study.data)}")
    arms = {name: arm for name, arm in study.arms.items() if data in (arm.data or study.data)}
    most = max(arm.seeds or study.seeds for arm in arms.values())
    places = [name for name, _ in arithmetics()] if study.arithmetics else [""]
    for seed, arithmetic in itertools.product(range(seeds or most), places):
        for name, arm in arms.items():
            if seed < (arm.seeds or study.seeds):
                yield Run(data, name, arm, seed, study, arithmetic)


def changed(run: Run, settings: Mapping[str, Any]) -> Run:
    """Return a run with other settings than the study's, by name, as in {"head.epochs": 4}."""
    return replace(run, arm=run.arm.model_copy(update={"settings": run.arm.settings | dict(settings)}))


def repeated_runs() -> Iterator[Run]:
    """Yield the runs that each build of the book does again: seed 0 of scenes, without the slow CRF and regressions."""
    runs = runs_of(read_study("tables"), "scenes", 1)
    return (run for run in runs if not run.arm.crf and not find(run.arm.method).supervised)


def records_path(name: str, data: str) -> Path:
    """Return the file of a study's records on a data set."""
    return project_dir() / "data" / "records" / f"{name}-{data}.json"


def read_records(name: str, data: str) -> dict[str, dict]:
    """Return a study's records on a data set by key, as far as they were made.

    Raises
    ------
    UserError
        For a record that does not hold the confusion of each image.
    """
    path = records_path(name, data)
    records = read_json(path)["records"] if path.exists() else {}
    for key, record in records.items():
        if not {"confusions", "config", "method", "seed", "split"} <= record.keys():
            raise UserError(f"{path}: {key} is no record of this version: it lacks the confusion of each image")
    return records


def run_study(name: str, data: str, seeds: int | None = None, only: tuple[str, ...] = ()) -> Iterator[tuple[str, dict]]:
    """Do the runs that have no record yet, and yield each once its record is on disk.

    Parameters
    ----------
    name, data
        The study, and one of its data sets.
    seeds
        At most so many seeds of each arm; None: as many as the study has.
    only
        The arms to run; all of them when there are none.

    Raises
    ------
    UserError
        When an arm is not known, or a record was made with other settings than its run has now.
    """
    path, study = records_path(name, data), read_study(name)
    if unknown := sorted(set(only) - study.arms.keys()):
        raise UserError(f"study {name}: no arm named {', '.join(unknown)}; must be one of {', '.join(study.arms)}")
    for run in runs_of(study, data, seeds):
        if only and run.arm_name not in only:
            continue
        found = read_records(name, data).get(run.key)
        if found is not None:
            check_settings(found, run, path)
            continue
        record = perform(run) if not run.arithmetic else perform_under(run, name)
        with locked(path.parent, wait=True):
            write_json(path, {"records": read_records(name, data) | {run.key: record}})
        yield run.key, record


def performed(run: Run) -> dict[str, Any]:
    """Return the record of a run that is done now, or was by this commit on this machine."""
    commit = provenance.commit()
    key = provenance.config_hash(described(run) | {"commit": commit, "device": this_device()})
    path = cache_dir() / "runs" / f"{key}.json"
    if path.exists() and not commit.endswith(("+", "unknown")):
        return read_json(path)
    record = perform(run)
    write_json(path, record)
    return record


def perform_under(run: Run, name: str) -> dict[str, Any]:
    """Do one run in a process of its own, under its arithmetic and with a cache of its own; return its record."""
    arguments = ["-m", "cause_lite.lab.study", name, run.data, f"{run.arm_name}/{run.seed}"]
    return json.loads(in_process(arguments, dict(arithmetics())[run.arithmetic]).splitlines()[-1])


def check_settings(record: Mapping[str, Any], run: Run, path: Path) -> None:
    """Raise UserError when a record was made with other settings than its run has now."""
    now = described(run)
    changed = [name for name, value in now.items() if record.get(name) != value]
    if changed:
        named = ", ".join(changed)
        raise UserError(f"{path}: {run.key} was made with other settings ({named}); take it out to make it anew")


def described(run: Run) -> dict[str, Any]:
    """Return what decides a run, in plain values."""
    return {
        "arm": run.arm_name,
        "method": run.arm.method,
        "options": run.arm.options,
        "crf": run.arm.crf,
        "data": run.data,
        "split": run.study.split,
        "seed": run.seed,
        "config": run.config.model_dump(mode="json"),
    }


def perform(run: Run) -> dict[str, Any]:
    """Do one run and return its record: what decided it, the confusion of each image, and where it was made."""
    start = time.perf_counter()
    predict, backbone, test = learned(run)
    confusions = image_confusions(predict, backbone, test, run.arm.crf)
    return described(run) | {
        "title": run.arm.title,
        "supervised": find(run.arm.method).supervised,
        "confusions": packed(confusions),
        "seconds": round(time.perf_counter() - start, 1),
        "device": this_device(),
        "commit": provenance.commit(),
        "environment": provenance.environment(),
        "date": provenance.now(),
    }


def learned(run: Run) -> tuple[Predictor, Backbone, Split]:
    """Return the predictor that a run's method learns, the backbone whose features it takes, and the labelled split."""
    config, method = run.config, find(run.arm.method)
    train, test = load_training(config), load_evaluation(config, run.study.split).labelled()
    backbone = backbone_of(config)
    training = Training(
        cached_features(backbone, train.images, f"Features of {train.name}/{train.split}"),
        config,
        len(train.classes),
        fitted_segmenter,
        label_maps(train) if "labels" in method.needs else None,
        train.images if "pictures" in method.needs else None,
    )
    return method(training, run.arm.options), backbone, test


def backbone_of(config: FitConfig) -> Backbone:
    """Return the backbone of some settings, on the device and in the precision that they ask for."""
    precision = config.optimisation.precision
    backbone = load_backbone(config.backbone).to(choose_device("auto", precision))
    backbone.prepare(precision, config.optimisation.compiled)
    return backbone


def image_confusions(
    predict: Predictor, backbone: Backbone, test: Split, crf: bool = False
) -> Int[np.ndarray, "n k c"]:
    """Return clusters by classes of each labelled image of a split, in pixels; its mirror image is seen too."""
    labels, found = label_maps(test), []
    for part, scores in predicted(predict, backbone, test):
        truth = torch.from_numpy(np.asarray(labels[part])).long()
        clusters = refine_batch(scores, np.asarray(test.images[part])) if crf else scores.argmax(1)
        found.append(counted(clusters.cpu(), truth, scores.shape[1], len(test.classes)))
    return torch.cat(found).numpy()


@torch.no_grad()
def predicted(predict: Predictor, backbone: Backbone, test: Split) -> Iterator[tuple[slice, Tensor]]:
    """Yield the numbers of some images of a split and the scores of their pixels (B, K, H, W), at the labels' size."""
    plain = cached_features(backbone, test.images, f"Features of {test.name}/{test.split}")
    mirrored = cached_features(backbone, flipped(test.images), "Features of the mirror images")
    size = np.asarray(label_maps(test)[:1]).shape[1:]
    for start in range(0, len(test), BATCH):
        part = slice(start, start + BATCH)
        yield part, predict(Views(plain[part], mirrored[part], np.asarray(test.images[part])), (size[0], size[1]))


def counted(clusters: Tensor, truth: Tensor, num_clusters: int, num_classes: int) -> Int[Tensor, "n k c"]:
    """Return how many pixels of each image have each cluster and class; a class outside 0..n-1 does not count."""
    image = torch.arange(len(clusters)).view(-1, 1, 1).expand_as(clusters)
    known = (truth >= 0) & (truth < num_classes)
    place = (image * num_clusters + clusters) * num_classes + truth
    total = len(clusters) * num_clusters * num_classes
    return torch.bincount(place[known], minlength=total).view(len(clusters), num_clusters, num_classes)


def packed(confusions: Int[np.ndarray, "n k c"]) -> dict[str, Any]:
    """Return counts as JSON can hold them: their shape, and their 32-bit little-endian bytes, as xz in base 85."""
    content = lzma.compress(confusions.astype("<u4").tobytes(), preset=9)
    return {"shape": list(confusions.shape), "xz": base64.b85encode(content).decode()}


def unpacked(record: Mapping[str, Any]) -> Int[np.ndarray, "n k c"]:
    """Return the confusion of each image of a record, clusters by classes, in pixels."""
    content = lzma.decompress(base64.b85decode(record["confusions"]["xz"]))
    return np.frombuffer(content, "<u4").reshape(record["confusions"]["shape"]).astype(np.int64)


if __name__ == "__main__":  # one run in this process, whose record is printed
    _study, _key = read_study(sys.argv[1]).replace({"arithmetics": False}), sys.argv[3]
    print(json.dumps(perform(next(run for run in runs_of(_study, sys.argv[2]) if run.key == _key))))
