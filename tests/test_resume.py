"""An interrupted fit goes on where it was and ends in the same bytes; signals, locks and foreign files are heeded."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import quick_config

from cause_lite.methods.as_released import fit
from cause_lite.runtime.files import UserError, locked, read_torch
from cause_lite.runtime.journal import Journal, StoppedError


class CutError(Exception):
    """Stands in for a kill: nothing is saved on the way out."""


class Fragile(Journal):
    """A journal whose process dies after a number of steps."""

    def __init__(self, folder: Path, steps: int, every: float) -> None:
        super().__init__(folder, "test", every)
        self.left = steps

    def step(self, *args, **options) -> None:
        super().step(*args, **options)
        self.left -= 1
        if self.left == 0:
            raise CutError


def weights(fitted) -> dict[str, torch.Tensor]:
    return {k: v for k, v in fitted.segmenter.state_dict().items() if not k.startswith("backbone.")}


@pytest.mark.parametrize("head, label_flow, precision", [("mlp", "clean", "fp32"), ("tr", "as_released", "fp16")])
@pytest.mark.filterwarnings("ignore:label_flow")
def test_any_step_can_be_the_last(few_scenes, small_backbone, tmp_path, head, label_flow, precision):
    config = quick_config(
        {"head.kind": head, "probe.label_flow": label_flow, "optimisation.precision": precision, "probe.epochs": 1}
    )
    whole = weights(fit(config, few_scenes, small_backbone))
    for every in (0.0, 1e9):  # saved at each step, or only where a stage ends
        deaths = 0
        while True:
            journal = Fragile(tmp_path / str(every), steps=4 if every == 0 else 9 + 4 * deaths, every=every)
            try:
                resumed = weights(fit(config, few_scenes, small_backbone, journal))
                break
            except CutError:
                deaths += 1
        assert deaths >= 2
        assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_a_journal_of_other_work_is_refused(few_scenes, small_backbone, tmp_path):
    config = quick_config({"head.kind": "mlp"})
    with pytest.raises(CutError):
        fit(config, few_scenes, small_backbone, Fragile(tmp_path, 3, 0.0))
    with pytest.raises(UserError, match="other settings"):
        fit(config, few_scenes, small_backbone, Journal(tmp_path, "another"))
    (tmp_path / "Clusterbook.pt").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"Clusterbook\.pt.*safe to load"):
        fit(config, few_scenes, small_backbone, Journal(tmp_path, "test"))


def test_being_asked_to_stop_saves_first(few_scenes, small_backbone, tmp_path):
    class Asked(Journal):
        def step(self, *args, **options) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            super().step(*args, **options)

    config = quick_config({"head.kind": "mlp"})
    journal = Asked(tmp_path, "test", every=1e9)
    with journal.stop_on_signals(), pytest.raises(StoppedError, match="step 1 of Clusterbook"):
        fit(config, few_scenes, small_backbone, journal)
    assert [p.name for p in tmp_path.iterdir()] == ["Clusterbook.pt"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_folder_in_use_is_refused(tmp_path):
    hold = "import sys, pathlib; from cause_lite.runtime.files import locked\nwith locked(pathlib.Path(sys.argv[1])):\n"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold + "    print('held', flush=True); sys.stdin.read()", str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline().strip() == "held"
    with pytest.raises(UserError, match="another process is writing there"), locked(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path):  # a lock goes with its process
        pass


def test_a_killed_command_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    """kill -9 from outside, on the real command with the bundled backbone cut down to a few steps."""
    runner = (
        "import sys\nfrom cause_lite.lab import runs\nfrom cause_lite.runtime import journal\n"
        "from conftest import quick_config, few_images\n"
        "runs.load_split = lambda *a: few_images()\n"
        "journal.Journal.__init__.__defaults__ = (None, '', 0.0)\n"
        "runs.fit_to(quick_config({'head.epochs': 6}), sys.argv[1], 'cpu')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "CAUSE_CACHE": str(tmp_path / "cache")}

    def start(out: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", runner, str(tmp_path / out)], env=environment)

    assert start("whole").wait() == 0
    killed = start("killed")
    while not (tmp_path / "killed" / "resume" / "Head tr.pt").exists():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "killed" / "segmenter.json").exists()
    assert start("killed").wait() == 0
    outputs = [(tmp_path / out / "segmenter.safetensors").read_bytes() for out in ("whole", "killed")]
    assert outputs[0] == outputs[1]
    assert not (tmp_path / "killed" / "resume").exists()


def test_a_loss_that_is_not_finite_stops_with_names_and_state(few_scenes, small_backbone, tmp_path, monkeypatch):
    """A white image's features are infinite: the step that meets it stops, names its batch, and keeps its state."""
    images, plain = few_scenes.images.copy(), small_backbone.features
    images[3] = 255

    def features(batch: np.ndarray) -> torch.Tensor:
        white = torch.from_numpy((batch == 255).all(axis=(1, 2, 3)))
        return plain(batch).masked_fill(white[:, None, None], torch.inf)

    monkeypatch.setattr(small_backbone, "features", features)
    with pytest.raises(UserError, match=r"Clusterbook: the loss is nan at step \d+ \(state in .*image 3\b") as raised:
        fit(
            quick_config({"head.kind": "mlp"}),
            replace(few_scenes, images=images),
            small_backbone,
            Journal(tmp_path, "test"),
        )
    kept = read_torch(Path(re.search(r"state in (.*?)\)", str(raised.value)).group(1)))
    assert math.isnan(kept["losses"][-1])
