"""Run by test_parallel under torchrun: fit and score, and write what came out. Not a test by itself."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from conftest import quick_config, random_backbone
from safetensors.torch import save_file

from cause_lite.backbones.feature_store import cached_features
from cause_lite.datasets import Split
from cause_lite.evaluate import evaluate
from cause_lite.lab.runs import plain_scores
from cause_lite.methods.as_released import fit
from cause_lite.runtime import parallel
from cause_lite.runtime.files import write_json


def main(data: Path, head: str, out: Path) -> None:
    torch.set_num_threads(1)
    with np.load(data) as arrays:
        train = Split("camvid", "train", tuple(map(str, range(11))), arrays["images"], arrays["labels"])
    backbone = random_backbone()
    fitted = fit(quick_config({"head.kind": head, "head.dropout": 0.0, "seed": 3}), train, backbone).segmenter
    features = cached_features(backbone, train.images, "Features")
    scores = evaluate(fitted, features, None, train.labels, 11, batch_size=3)
    weights = {k: v.contiguous() for k, v in fitted.state_dict().items() if not k.startswith("backbone.")}
    parallel.run_on_main_process(lambda: save_file(weights, out / "weights.safetensors"))
    parallel.run_on_main_process(lambda: write_json(out / "scores.json", plain_scores(scores)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
