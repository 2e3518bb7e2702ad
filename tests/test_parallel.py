"""Two processes with the same global batch end where one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cause_lite.datasets.scenes import render
from cause_lite.runtime import parallel
from cause_lite.runtime.files import UserError, read_json

HERE = Path(__file__).parent


def frames(path: Path) -> Path:
    """A subset of CamVid's training frames where they lie on this machine, else as many scenes."""
    from cause_lite.datasets import load_split
    from cause_lite.datasets.registry import PUBLISHED

    if PUBLISHED["camvid"].root.is_dir():
        train = load_split("camvid", "train", 128)
        images, labels = train.images[:16], train.labels[:16]
    else:
        views = [render(0, "train", number) for number in range(16)]
        images, labels = np.stack([v.image for v in views]), np.stack([v.labels % 11 for v in views]).astype(np.int16)
    np.savez(path, images=np.asarray(images), labels=np.asarray(labels))
    return path


def fitted_by(processes: int, head: str, data: Path, out: Path) -> tuple[dict, dict]:
    out.mkdir()
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launch, str(HERE / "two_processes.py"), str(data), head, str(out)]
    environment = os.environ | {"CAUSE_CACHE": str(out / "cache"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out / "weights.safetensors"), read_json(out / "scores.json")


@pytest.mark.parametrize("head", ["mlp", "tr"])
def test_two_processes_equal_one(head, tmp_path):
    data = frames(tmp_path / "data.npz")
    (one, scored), (two, scored_by_two) = (fitted_by(n, head, data, tmp_path / str(n)) for n in (1, 2))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=2e-3, atol=2e-4, msg=lambda m, name=name: f"{name}: {m}")
    for kind in ("cluster", "linear"):
        for score in ("miou", "pacc"):
            assert scored_by_two[kind][score] == pytest.approx(scored[kind][score], abs=0.2)


def test_a_batch_that_does_not_divide_is_refused(monkeypatch):
    class Three:
        num_processes, process_index = 3, 0

    monkeypatch.setattr(parallel, "processes", Three)
    with pytest.raises(UserError, match="does not divide among 3 processes"):
        parallel.share(torch.arange(4))
    assert parallel.share(torch.arange(6)).tolist() == [0, 1]
