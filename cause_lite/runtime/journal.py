"""What an interrupted fit goes on from: the whole state of a stage at a step, written so that it is whole or absent."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from cause_lite.runtime import parallel
from cause_lite.runtime.files import UserError, read_torch, write_whole
from cause_lite.runtime.randomness import random_state, restore_random_state

FIELDS = {"key", "parts", "generator", "random", "order", "losses"}


class Stateful(Protocol):
    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> object: ...


class StoppedError(UserError):
    """The work was asked to stop (Ctrl-C, SIGTERM) and did, after saving where it was."""


class Journal:
    """One file a stage in `folder`, replaced every `every` seconds and when a stage ends; no folder, no files.

    `key` names the work (configuration, data, number of processes): a journal of other work is refused.
    A journal is exact: what goes on from it gives the bits of an uninterrupted run.
    """

    def __init__(self, folder: Path | None = None, key: str = "", every: float = 60.0) -> None:
        self.folder, self.every = folder and Path(folder), every
        self.key = f"{key} x{parallel.processes().num_processes}"
        self._saved, self._stop = time.monotonic(), 0

    def restore(self, stage: str, parts: dict[str, Stateful], generator: torch.Generator) -> dict | None:
        """Put a stage's saved state into `parts` and the generators -> {order, losses}; None where there is none.

        Raises UserError when the file is damaged or belongs to other work.
        """
        path = self.folder and self.folder / f"{stage}.pt"
        if path is None or not path.exists():
            return None
        saved = read_torch(path)
        if not isinstance(saved, dict) or saved.keys() != FIELDS:
            raise UserError(f"{path}: is damaged; remove {self.folder}")
        if saved["key"] != self.key:
            raise UserError(
                f"{path}: belongs to a fit of other settings, data or processes; "
                f"remove {self.folder} or name another folder"
            )
        try:
            for name, part in parts.items():
                part.load_state_dict(saved["parts"][name])
            generator.set_state(saved["generator"])
            restore_random_state(saved["random"][parallel.processes().process_index])
        except (RuntimeError, KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise UserError(f"{path}: is damaged ({type(error).__name__}); remove {self.folder}") from error
        return {"order": saved["order"], "losses": saved["losses"]}

    def step(
        self, stage: str, parts: dict[str, Stateful], generator: torch.Generator, order: Tensor, losses: list, end: bool
    ) -> None:
        """Once a step is taken: save if it is time, the end, or if asked to stop, which raises StoppedError."""
        asked = max(parallel.gather_objects(self._stop)) if self.folder else 0
        if self.folder and (asked or end or max(parallel.gather_objects(time.monotonic() - self._saved)) >= self.every):
            self.save(stage, parts, generator, order, losses)
        if asked:
            raise StoppedError(f"stopped after step {len(losses)} of {stage}; the same command goes on from there")

    def save_failed(
        self, stage: str, parts: dict[str, Stateful], generator: torch.Generator, order: Tensor, losses: list
    ) -> Path | None:
        """Save the state of a step that failed, to look into; nothing goes on from it. None without a folder."""
        if not self.folder:
            return None
        self.save(f"{stage}, failed", parts, generator, order, losses)
        return self.folder / f"{stage}, failed.pt"

    def save(
        self, stage: str, parts: dict[str, Stateful], generator: torch.Generator, order: Tensor, losses: list
    ) -> None:
        states = parallel.gather_objects(random_state())
        content = {
            "key": self.key, "parts": {name: part.state_dict() for name, part in parts.items()},
            "generator": generator.get_state(), "random": states, "order": order, "losses": losses,
        }  # fmt: skip
        parallel.run_on_main_process(
            lambda: write_whole(self.folder / f"{stage}.pt", lambda part: torch.save(content, part))
        )
        self._saved = time.monotonic()

    @contextlib.contextmanager
    def stop_on_signals(self) -> Iterator[None]:
        """Within the block, Ctrl-C and SIGTERM stop at the next step, after saving; a second one stops at once."""
        before = {}

        def ask(number: int, frame: object) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = number

        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # not in the main thread: leave signals to it
                before[number] = signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
