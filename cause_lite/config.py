"""Everything that decides a fit, by step. Defaults are the release's for COCO-Stuff-27 (its code, commit ee0aa84).

The source of a constant stands beside it: "release" and a file of it, or a section of the paper (arXiv 2310.07379).
`None` means "off" or "as in training", as the comment says.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from cause_lite.runtime.settings import AboveZero, Cosine, Count, Positive, Rate, Settings, SettingsTree, Share

HEADS = ("tr", "mlp")
NUMBERS = Field(strict=False, exclude_if=lambda value: value is None)  # absent from records where they are off


class DataConfig(Settings):
    """Which images, and how they become squares."""

    name: str = "cocostuff27"
    size: Positive = 320  # pixels a side in training; release: 320 (train_front_door_tr.py), 224 (..._mlp.py)
    eval_size: Positive | None = None  # pixels a side in evaluation; None: as in training; release, test_*.py: 320
    crops: Literal["none", "five", "double", "super"] = "five"  # of each training image; release, crop_dataset.py
    fit: Literal["centre", "squash"] = "centre"  # an image's centre square, or the whole image squashed to one
    resize: Literal["nearest", "bilinear"] = "nearest"  # release: nearest, for images too
    clusters: Annotated[int, Field(ge=1, le=65_535)] | None = None  # to find in a folder; None: see folders.load_folder
    skip_bad: bool = False  # leave out images that cannot be read, and list them
    window: Annotated[tuple[float, float] | None, NUMBERS] = None  # of a folder's images: datasets.arrays.Reading
    bands: Annotated[tuple[Positive, ...] | None, NUMBERS] = None  # likewise


class BackboneConfig(Settings):
    """The frozen network that gives the features; a bare name stands for one with everything else left out."""

    name: str  # that ships or was pre-trained here, a folder, a released file, or a timm name
    levels: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)] | None = None  # maps to join; None: 3 and 4
    patch: Positive | None = None  # pixels a side of a convolutional network's patch; None: 8
    centre: str | None = (
        None  # the data set whose mean patch is subtracted; `training`: the images that a fit learns from
    )
    fit: Literal["squash", "centre"] = "squash"  # how the images of the centre become squares
    untrained: Count | None = None  # the seed of random weights, in place of trained ones
    margin: Count = 0  # pixels by which a mirror image continues each side, cut off the features: borders look alike
    context: Count | None = (
        None  # cells of a map to each side over which it is averaged; None: as it ships, otherwise 0
    )

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: object) -> object:
        return {"name": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _possible(self) -> BackboneConfig:
        if "?" in self.name:
            raise ValueError("settings do not follow a name after `?`; set them as in --set backbone.levels=[3,4]")
        if self.margin % (self.patch or 8):
            raise ValueError(f"margin is {self.margin}; must be a multiple of the patch's pixels")
        return self

    @model_serializer(mode="wrap")
    def _to_name(self, serialise: SerializerFunctionWrapHandler) -> str | dict[str, object]:
        fields = type(self).model_fields
        given = {name: value for name, value in serialise(self).items() if value != fields[name].default}
        return given if len(given) > 1 else self.name

    @property
    def plain(self) -> BackboneConfig:
        """Return the same backbone without a centre."""
        return self.model_copy(update={"centre": None, "fit": "squash"})


class ClusterbookConfig(Settings):
    """Step 1: the concept clusterbook."""

    concepts: Positive = 2048  # K; release, --num_codebook
    temperature: AboveZero = 0.1  # of the tanh; release, modules/segment_module.py
    objective: Literal["max", "quadratic", "tanh"] = "max"  # as released; the paper's Eq. 3; its Algorithm 1
    init: Literal["uniform", "patches", "kmeans"] = "uniform"  # release: noise in (-1/K, 1/K)
    learning_rate: Rate = 4e-3  # release, train_mediator.py: 1e-3 x 4 GPUs
    epochs: Count = 1  # release, train_mediator.py


class HeadConfig(Settings):
    """Step 2: the segmentation head, its teacher, the concept-wise contrast and the concept bank."""

    kind: Literal["tr", "mlp"] = "tr"
    reduced_dim: Positive = 90  # R; release, --reduced_dim
    projection_dim: Positive | None = 2048  # J; release, --projection_dim; None: contrast the head's own output
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1  # release, modules/segment.py
    teacher_dropout: bool = True  # release: on
    ema_decay: Share = 0.99  # of the teacher; release, ema_update
    temperature: AboveZero = 0.07  # of InfoNCE; release, modules/segment_module.py
    positive_threshold: Cosine = 0.3  # cosine of two concepts above which their patches attract; release
    negative_threshold: Cosine = 0.1  # ... below which they repel; release
    threshold_kind: Literal["cosine", "quantile"] = "cosine"  # quantile: 0.9 is above 9 of 10 pairs of concepts
    bank_capacity: Positive | None = 100  # vectors a concept; None: no bank; release, bank_update
    bank_share: Share = 0.5  # of a concept's new vectors that the bank stores, rounded down; release, bank_update
    epochs: Count = 2  # release, train_front_door_*.py
    learning_rate: Rate = 4e-3  # release: 1e-3 x 4 GPUs
    weight_decay: Rate = 1e-4  # release; 0 on Cityscapes
    clip: AboveZero | None = 2.0  # largest norm of the gradient; None: no clipping; release: 2 (TR), 0.1 (MLP)
    clip_with_labels: bool = False  # release: true; the norm that is clipped counts a linear probe's labelled loss too

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> HeadConfig:
        low, high = self.negative_threshold, self.positive_threshold
        if low > high:
            raise ValueError(f"negative_threshold {low} must not be above positive_threshold {high}")
        if self.threshold_kind == "quantile" and low < 0:
            raise ValueError(f"negative_threshold {low} must be in 0..1 where it is a quantile")
        return self


class ProbeConfig(Settings):
    """Step 3: the cluster probe, and the linear probe, which is a diagnostic."""

    init: Literal["uniform", "kmeans", "minibatch"] = "uniform"  # release: noise; `backbones.kmeans` says the others
    objective: Literal["modularity", "cosine"] = "modularity"  # release, fine_tuning_*.py
    epochs: Count = 5  # release, fine_tuning_*.py: 5 (TR), 1 (MLP)
    learning_rate: Rate = 4e-3  # of the cluster probe; release: 1e-3 x 4 GPUs
    linear_rate: Rate = 4e-3  # of the linear probe; release: 1e-3 x 4 GPUs
    halve_every: Positive | None = 2  # epochs after which rates halve; None: never; release: 2
    # clean: our step 3; as_released: the release's, in which labels train the head that is evaluated; detached: the
    # release's with the head's output detached before the linear probe, so that labels train that probe alone
    label_flow: Literal["clean", "detached", "as_released"] = "clean"


class OptimisationConfig(Settings):
    """What the steps share."""

    batch_size: Positive = 16  # images a step, of all processes together; release, --batch_size of each of 4 GPUs
    cell: Positive = 4  # one random patch of each cell x cell block is looked at; release, stochastic_sampling
    ddp: Literal["averaged", "as_released"] = "averaged"  # as_released: one of four processes that never average
    precision: Literal["fp64", "fp32", "bf16", "fp16"] = "fp32"  # fp64: the same scores on every processor
    compiled: bool = False
    fast_losses: bool = True  # the exact fast forms of cause_lite.fast; false: the plain formulas, which need memory


class FitConfig(SettingsTree):
    """The settings of a fit; a wrong one raises UserError with its name and what it must be."""

    data: DataConfig = DataConfig()
    backbone: BackboneConfig = BackboneConfig(name="vit_small_patch8_224.dino")
    seed: Count = 0
    clusterbook: ClusterbookConfig = ClusterbookConfig()
    head: HeadConfig = HeadConfig()
    probe: ProbeConfig = ProbeConfig()
    optimisation: OptimisationConfig = OptimisationConfig()

    @property
    def scored_size(self) -> int:
        """Return the side of an image in evaluation, in pixels."""
        return self.data.eval_size or self.data.size
