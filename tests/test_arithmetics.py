"""The same fit under several arithmetics, each in a process of its own with an empty cache, gives the same numbers.

Environment variables let torch, MKL, oneDNN, OpenBLAS and NumPy take the instructions of other processors, and other
numbers of threads. In double precision a fit's label maps and scores must not depend on them. Run as a program, this
file prints what one real fit gives: `make portable` compares it under every arithmetic.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

GENERIC = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
}
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
}
ARITHMETICS: dict[str, dict[str, str]] = {
    "this machine's, 1 thread": {"OMP_NUM_THREADS": "1"},
    "this machine's, 2 threads": {"OMP_NUM_THREADS": "2"},
    "AVX2, 2 threads": AVX2 | {"OMP_NUM_THREADS": "2"},
    "AVX2, OpenBLAS for Haswell, 1 thread": AVX2 | {"OPENBLAS_CORETYPE": "Haswell", "OMP_NUM_THREADS": "1"},
    "generic, SSE 4.2, 1 thread": GENERIC | {"OPENBLAS_CORETYPE": "Nehalem", "OMP_NUM_THREADS": "1"},
}
CLOSE = 1e-9  # relative, of sums over weights; scores and label maps must be equal


def under(name: str, what: str) -> dict:
    """Return what this file prints as a program under an arithmetic, with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        inherited = {k: v for k, v in os.environ.items() if k not in GENERIC and k != "OPENBLAS_CORETYPE"}
        environment = inherited | ARITHMETICS[name] | {"CAUSE_CACHE": cache}
        command = [sys.executable, "-W", "ignore", __file__, what]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def small_fits() -> dict:
    """Return the label maps and the scores of a small fit of each head, and the k-means that probes start from."""
    from conftest import few_images, quick_config

    from cause_lite.backbones import cached_features, load_backbone
    from cause_lite.evaluate import evaluate
    from cause_lite.methods.as_released import fit

    found = {}
    for head in ("mlp", "tr"):
        settings = {"head.kind": head, "optimisation.precision": "fp64", "clusterbook.init": "patches"}
        backbone, train = load_backbone("scenes"), few_images()
        segmenter = fit(quick_config(settings | {"probe.init": "kmeans"}), train, backbone).segmenter
        features = cached_features(backbone, train.images, "Features")
        maps = segmenter.similarities(segmenter.segment_features(features[:]), (128, 128)).argmax(1)
        score = evaluate(segmenter, features, None, train.labels, 16)["cluster"].compute()
        found[head] = summary(segmenter, maps.numpy(), score)
    return found


def real_fit() -> dict:
    """Return the label maps and the scores of seed 0 of the rendered scenes, MLP head, on the test images."""
    from cause_lite.lab.recipes import recipe
    from cause_lite.lab.runs import fitted_segmenter, score_segmenter

    config = recipe("scenes", "mlp")
    segmenter = fitted_segmenter(config)
    metrics = score_segmenter(segmenter, config, split="test")["cluster"]
    return summary(segmenter, metrics.confusion.numpy(), metrics.compute())


def summary(segmenter: torch.nn.Module, counted: np.ndarray, score: dict) -> dict:
    weights = segmenter.codebook, *segmenter.head.parameters(), segmenter.cluster_probe.centres
    return {
        "maps": hashlib.sha256(np.ascontiguousarray(counted).tobytes()).hexdigest(),
        "miou": round(score["miou"], 4),
        "pacc": round(score["pacc"], 4),
        "weights": [float(weight.detach().abs().sum()) for weight in weights],
    }


def assert_same(found: dict, wanted: dict) -> None:
    assert found["weights"] == pytest.approx(wanted["weights"], rel=CLOSE, abs=CLOSE)
    assert {**found, "weights": []} == {**wanted, "weights": []}


@pytest.fixture(scope="module")
def wanted() -> dict:
    return under("this machine's, 1 thread", "small")


@pytest.mark.parametrize("name", list(ARITHMETICS)[1:])
def test_small_fits_are_the_same_under_every_arithmetic(name, wanted):
    for head, found in under(name, "small").items():
        assert_same(found, wanted[head])


def main() -> int:
    """Print what the named fits give; with `portable`, compare the real fit under every arithmetic."""
    if sys.argv[1] != "portable":
        sys.path.insert(0, str(Path(__file__).parent))
        print(json.dumps({"small": small_fits, "real": real_fit}[sys.argv[1]]()))
        return 0
    first: dict = {}
    for name in ARITHMETICS:
        found = under(name, "real")
        print(f"{name:40} mIoU {found['miou']:.4f}  pAcc {found['pacc']:.4f}  maps {found['maps'][:12]}", flush=True)
        first = first or found
        assert_same(found, first)
    print(f"The same under {len(ARITHMETICS)} arithmetics.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
