"""Choose the second and the third step by what labels may touch in them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from cause_lite import steps, train
from cause_lite.backbones import Backbone
from cause_lite.config import FitConfig
from cause_lite.datasets import Split
from cause_lite.head import Head
from cause_lite.lab import as_released
from cause_lite.runtime.journal import Journal
from cause_lite.steps import Probes
from cause_lite.train import NO_JOURNAL, Fitted

THIRD_STEPS: dict[str, Callable[..., Probes]] = {
    "clean": steps.fit_probes,
    "detached": as_released.fit_probes,
    "as_released": as_released.fit_probes,
}


def second_step(config: FitConfig, split: Split) -> Callable[..., tuple[Head, list[float]]]:
    """Return the second step that `head.clip_with_labels` asks for."""
    return partial(as_released.fit_head, train=split) if config.head.clip_with_labels else steps.fit_head


def third_step(config: FitConfig) -> Callable[..., Probes]:
    """Return the third step that `probe.label_flow` names."""
    return THIRD_STEPS[config.probe.label_flow]


def fit(config: FitConfig, split: Split, backbone: Backbone, journal: Journal = NO_JOURNAL) -> Fitted:
    """Fit a segmenter with the steps that the settings name; otherwise as `cause_lite.train.fit`."""
    return train.fit(config, split, backbone, journal, third_step(config), second_step(config, split))
