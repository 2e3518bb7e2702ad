"""Save the whole state of a stage of training: an interrupted fit goes on to the bits of an uninterrupted one."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cause_lite.runtime import parallel
from cause_lite.runtime.device import random_state, restore_random_state, works_ahead
from cause_lite.runtime.files import UserError, read_torch, write_whole

FIELDS = {"key", "parts", "generator", "random", "order", "losses"}
READ_EVERY = 50  # steps after which the losses of a device that works ahead are read


class StoppedError(UserError):
    """The work was asked to stop (Ctrl-C, SIGTERM) and did, after saving where it was."""


class NotFiniteError(UserError):
    """A loss is NaN or infinite; `images` holds the numbers of the images that it was computed on."""

    def __init__(self, message: str, images: list[int]) -> None:
        super().__init__(message)
        self.images = images


@dataclass
class Stage:
    """A stage of training as far as it has come: all that going on needs, beside the global random state.

    `parts` have `state_dict` and `load_state_dict`, as modules and optimisers do. `order` (numbers of images) is drawn
    once for the whole stage. `losses` holds one number a step taken; the last ones may be `unread` still, on the
    device that computed them. `settle` runs before the stage is saved: it reads those too.
    """

    name: str
    parts: Mapping[str, Any]
    generator: torch.Generator
    order: Tensor
    losses: list[float] = field(default_factory=list)
    unread: list[Tensor] = field(default_factory=list)
    settle: Callable[[], None] = lambda: None

    @property
    def steps(self) -> int:
        """The number of steps taken."""
        return len(self.losses) + len(self.unread)

    def read(self) -> list[float]:
        """Move the losses that are unread to `losses`, in one copy from the device, and return them."""
        values = torch.stack(self.unread).tolist() if self.unread else []
        self.losses += values
        self.unread.clear()
        return values


class Journal:
    """Keep one file a stage in `folder` (None writes none), replaced every `every` seconds and when a stage ends.

    `key` names the work (configuration, data); together with the number of processes it tells a journal of other work.
    """

    def __init__(self, folder: Path | None = None, key: str = "", every: float = 60.0) -> None:
        self.folder, self.every = folder and Path(folder), every
        self.key = f"{key} x{parallel.processes().num_processes}"
        self._saved, self._stop = time.monotonic(), 0

    def restore(self, stage: Stage) -> None:
        """Bring a stage, its parts and all generators to the saved state, where there is one.

        Raises UserError when the file is damaged or belongs to other work.
        """
        path = self.folder and self.folder / f"{stage.name}.pt"
        if path is None or not path.exists():
            return
        saved = read_torch(path)
        if not isinstance(saved, dict) or saved.keys() != FIELDS:
            raise UserError(f"{path}: is damaged; remove {self.folder}")
        if saved["key"] != self.key:
            raise UserError(
                f"{path}: belongs to a fit of other settings, data or processes; "
                f"remove {self.folder} or name another folder"
            )
        try:
            for name, part in stage.parts.items():
                part.load_state_dict(saved["parts"][name])
            stage.generator.set_state(saved["generator"])
            restore_random_state(saved["random"][parallel.processes().process_index])
        except (RuntimeError, KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise UserError(f"{path}: is damaged ({type(error).__name__}); remove {self.folder}") from error
        stage.order, stage.losses = saved["order"], saved["losses"]

    def step(self, stage: Stage, end: bool) -> None:
        """Save, once a step is taken, when `every` seconds have passed, at the stage's end, or when asked to stop.

        Raises StoppedError when a signal asked to stop (see `stop_on_signals`).
        """
        if not self.folder:
            return
        asked = parallel.gather_objects((self._stop, time.monotonic() - self._saved))
        stop, waited = (max(values) for values in zip(*asked, strict=True))
        if stop or end or waited >= self.every:
            stage.settle()
            self._save(self.folder / f"{stage.name}.pt", stage)
        if stop:
            raise StoppedError(f"stopped after step {stage.steps} of {stage.name}; the same command goes on from there")

    def save_failed(self, stage: Stage) -> Path | None:
        """Save the state of a step that failed, for inspection only; return the file, None without a folder."""
        if not self.folder:
            return None
        path = self.folder / f"{stage.name}, failed.pt"
        self._save(path, stage)
        return path

    def _save(self, path: Path, stage: Stage) -> None:
        content = {
            "key": self.key,
            "parts": {name: part.state_dict() for name, part in stage.parts.items()},
            "generator": stage.generator.get_state(),
            "random": parallel.gather_objects(random_state()),
            "order": stage.order,
            "losses": stage.losses,
        }
        parallel.run_on_main_process(lambda: write_whole(path, lambda temporary: torch.save(content, temporary)))
        self._saved = time.monotonic()

    @contextlib.contextmanager
    def stop_on_signals(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM stop the block at the next step, after saving; a second one stops it at once."""
        handlers = {}

        def ask_to_stop(number: int, frame: object) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = number

        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # signals are the main thread's alone
                handlers[number] = signal.signal(number, ask_to_stop)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def steps_between_reads(device: torch.device) -> int:
    """Return the steps after which losses are read: each, but where a reading waits for the device."""
    return READ_EVERY if works_ahead(device) else 1


def read_losses(stage: Stage, batches: Sequence[Tensor], journal: Journal) -> None:
    """Read the losses that are still on the device; raise NotFiniteError at the first that is NaN or infinite."""
    first = 1 + len(stage.losses)
    for step, loss in enumerate(stage.read(), first):
        if not math.isfinite(loss):
            file = journal.save_failed(stage)
            where = f"at step {step}" + (f" (state in {file})" if file else "")
            advice = "look at its images, lower the rate, or use --precision fp32"
            images = parallel.share(batches[step - 1]).tolist()
            raise NotFiniteError(f"{stage.name}: the loss is {loss} {where}; {advice}", images)
