"""Read the flat configurations that records had before settings were grouped by step."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from cause_lite.config import FitConfig
from cause_lite.runtime.settings import nested

# The name that a setting had in a flat configuration -> its name now.
RENAMED = {
    "data": "data.name",
    "head": "head.kind",
    "num_concepts": "clusterbook.concepts",
    "temperature": "clusterbook.temperature",
    "objective": "clusterbook.objective",
    "contrastive_temperature": "head.temperature",
    "clusterbook_init": "clusterbook.init",
    "clusterbook_rate": "clusterbook.learning_rate",
    "clusterbook_epochs": "clusterbook.epochs",
    "head_epochs": "head.epochs",
    "probe_epochs": "probe.epochs",
    "probe_init": "probe.init",
    "probe_objective": "probe.objective",
    "probe_rate": "probe.learning_rate",
    "linear_rate": "probe.linear_rate",
    "probe_halving": "probe.halve_every",
    "label_flow": "probe.label_flow",
    **{name: f"data.{name}" for name in ("size", "eval_size", "crops", "fit", "resize", "clusters", "skip_bad")},
    **{
        name: f"head.{name}"
        for name in (
            "reduced_dim",
            "projection_dim",
            "bank_capacity",
            "bank_share",
            "positive_threshold",
            "negative_threshold",
            "ema_decay",
            "dropout",
            "teacher_dropout",
            "learning_rate",
            "weight_decay",
            "clip",
        )
    },
    **{name: f"optimisation.{name}" for name in ("batch_size", "cell", "ddp", "precision", "compiled")},
}
# Settings whose 0 meant "off" or "as above", which None means now.
OFF_AT_ZERO = ("data.eval_size", "head.projection_dim", "head.bank_capacity", "head.clip", "probe.halve_every")


def read_backbone(told: Any) -> Any:
    """Return the settings of a backbone that were written behind its name: resnet18?levels=3,4 (a migration)."""
    if not isinstance(told, str):
        return told
    name, mark, behind = told.partition("?")
    given: dict[str, Any] = dict(parse_qsl(behind))
    for key in given.keys() & {"patch", "untrained", "margin", "context"}:
        given[key] = int(given[key])
    if "levels" in given:
        given["levels"] = [int(level) for level in given["levels"].split(",")]
    return {"name": name} | given if mark else told


def read_config(settings: dict) -> FitConfig:
    """Return the configuration of a record, flat or grouped. Raises UserError when it holds an unknown setting."""
    if "backbone" in settings:
        settings = settings | {"backbone": read_backbone(settings["backbone"])}
    if isinstance(settings.get("data"), dict):
        return FitConfig(**settings)
    named = {RENAMED.get(name, name): value for name, value in settings.items()}
    return FitConfig(**nested(named | {name: None for name in OFF_AT_ZERO if named.get(name) == 0}))
