"""Fit a segmenter: compute features, then run the three steps in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cause_lite.backbones import Backbone, cached_features
from cause_lite.config import FitConfig
from cause_lite.datasets import Split
from cause_lite.head import Head
from cause_lite.loop import Session
from cause_lite.runtime.device import deterministic, seed_all, state_kept
from cause_lite.runtime.files import UserError
from cause_lite.runtime.journal import Journal, NotFiniteError
from cause_lite.runtime.precision import output_type
from cause_lite.runtime.progress import Stopwatch
from cause_lite.segmenter import Segmenter
from cause_lite.steps import Probes, fit_clusterbook, fit_head, fit_probes

NO_JOURNAL = Journal()


@dataclass(frozen=True)
class Fitted:
    """A fitted segmenter, with the losses and the seconds of every stage by name."""

    segmenter: Segmenter
    losses: dict[str, list[float]]
    seconds: dict[str, float]


def fit(
    config: FitConfig,
    train: Split,
    backbone: Backbone,
    journal: Journal = NO_JOURNAL,
    third_step: Callable[..., Probes] = fit_probes,
    second_step: Callable[..., tuple[Head, list[float]]] = fit_head,
) -> Fitted:
    """Fit a segmenter of one split's images, on the backbone's device.

    Labels, where there are any, train the linear probe and nothing else, unless other steps are given.

    Parameters
    ----------
    journal
        Resumes an interrupted fit; by default none is kept.
    third_step
        Takes and returns what `steps.fit_probes` does. `lab.label_flow.third_step` chooses it by `probe.label_flow`.
    second_step
        Takes and returns what `steps.fit_head` does; chosen by `head.clip_with_labels`.

    Raises
    ------
    UserError
        Naming the images of a step whose loss is not finite; or when `probe.label_flow` or `head.clip_with_labels` asks
        for another step than the given one.
    """
    flow = config.probe.label_flow
    if flow != "clean" and third_step is fit_probes:
        raise UserError(
            f"probe.label_flow: {flow!r} needs its own third step; fit it by cause_lite.methods.as_released.fit"
        )
    if config.head.clip_with_labels and second_step is fit_head:
        raise UserError("head.clip_with_labels needs its own second step; fit it by cause_lite.methods.as_released.fit")
    clock, device = Stopwatch(), backbone.mean.device
    try:
        with state_kept(), deterministic(device):
            backbone.prepare(config.optimisation.precision, config.optimisation.compiled)
            note = f"Features of {train.name}/{train.split}"
            output_bytes = config.head.reduced_dim * output_type(config.optimisation.precision).itemsize
            features = cached_features(backbone, train.images, note, output_bytes)
            clock.lap("features")
            session = Session(config, seed_all(config.seed), device, journal)
            codebook, clusterbook_losses = fit_clusterbook(features, session)
            clock.lap("clusterbook")
            head, head_losses = second_step(features, codebook, session)
            clock.lap("head")
            # Seeded anew, so that the probes do not depend on how many draws the head took.
            session = Session(config, seed_all(config.seed), device, journal)
            clusters, linear, probe_losses = third_step(head, features, train, session)
            clock.lap("probes")
    except NotFiniteError as error:
        raise UserError(f"{error}: {', '.join(map(train.name_of, error.images))}") from error
    segmenter = Segmenter(head, codebook, clusters, linear, backbone, config.scored_size, train.classes).eval()
    return Fitted(segmenter, {"clusterbook": clusterbook_losses, "head": head_losses} | probe_losses, clock.laps)
