"""Self-supervised pre-training of a small convolutional network on unlabelled photographs, on any device.

Two overlapping, jittered crops of a photograph are contrasted twice: as wholes (NT-Xent, arXiv 2002.05709), and region
by region (arXiv 2103.10957), where regions are clusters of colour and place in the photograph and every level of the
network that ships is averaged over them. Regions of the same photograph are no negatives. No label is read.

The rate is constant, so a run can be made longer at any time: each end is a branch on which the rate falls to 0.
"""

from __future__ import annotations

import copy
import hashlib
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, cast

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite.backbones.backbone import IMAGE_MEAN, IMAGE_STD
from cause_lite.backbones.convolutional import ConvBackbone, build_levels, widths_of
from cause_lite.backbones.photo_regions import pooled, regions_of
from cause_lite.backbones.photo_views import Cut, Views
from cause_lite.backbones.pretrain import STATE_ERRORS, check_recipe, other_recipe, spot_contrast
from cause_lite.datasets import photos
from cause_lite.datasets.photos import Photos
from cause_lite.runtime.device import choose_device, device_name
from cause_lite.runtime.files import UserError, read_torch, write_json, write_whole
from cause_lite.runtime.precision import autocast
from cause_lite.runtime.progress import bar, track
from cause_lite.runtime.provenance import commit, config_hash, environment, now

HELD = ("network", "average", "whole", "parts", "optimizer")  # by a state
FREE = ("steps", "joined", "context")  # settings that may change when a run is resumed
SIZE = 320  # pixels of the images that the backbone is to serve, and at which it is centred


@dataclass(frozen=True)
class PhotosConfig:
    """What decides the weights. Lengths in pixels, rates per step."""

    seed: int = 0
    steps: int = 5000  # at a constant rate
    cooldown: int = 400  # and further ones on the branch that is exported
    channels: tuple[int, ...] = (48, 96, 192, 384)  # of a ResNet-18's levels
    levels: tuple[int, ...] = (2, 3, 4)  # whose means over regions are contrasted
    joined: tuple[int, ...] = (2, 3, 4)  # that the backbone joins
    context: int = 3  # cells of each level to each side over which it averages that level
    # By the step from which it holds: the side of a view, and how many photographs a step sees.
    views: tuple[tuple[int, int, int], ...] = ((0, 64, 128), (2900, 48, 228))
    scale: tuple[float, float] = (0.15, 1.0)  # share of a photograph's largest square that a crop covers
    hidden: int = 512
    projection: int = 128
    temperature: float = 0.2
    regions: int = 6  # in a photograph
    region_temperature: float = 0.15
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: int = 100
    average: float = 0.98  # decay of the weights' moving average, which ships
    clip: float = 5.0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: it rises, stays, and falls to 0 on the branch."""
        left = (self.steps + self.cooldown - step) / max(1, self.cooldown)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup, left)

    def views_at(self, step: int) -> tuple[int, int]:
        """Return the side of a step's views and how many photographs it sees; a branch keeps its run's."""
        _, side, count = self.stages(step + 1)[-1]
        return side, count

    def stages(self, steps: int) -> list[tuple[int, int, int]]:
        """Return the stages of `views` that the first so many steps go through."""
        return [(start, side, count) for start, side, count in self.views if start < min(steps, self.steps)]


@dataclass(frozen=True)
class Seen:
    """Two views of each of B photographs, stacked (2B, 3, h, h), regions (B, K, S, S), and where the views were cut."""

    views: Tensor
    regions: Tensor
    cuts: list[Cut]


class PhotoPretraining:
    """Network, moving average, projections and optimiser; resumable after any step, on any device.

    A subclass may have other projections and losses (see `photo_objectives`).
    """

    objective: ClassVar[str] = "contrast of wholes and of regions"

    def __init__(self, pool: Photos, config: PhotosConfig, device: torch.device) -> None:
        torch.manual_seed(config.seed)  # timm and lightly draw their initial weights from the global state
        self.config, self.device = config, device
        self.precision = "bf16" if device.type == "cuda" or (device.type == "cpu" and fast_bf16()) else "fp32"
        self.views = Views(pool, config.seed, config.scale, device)
        self.pools = [(0, len(pool.images))]
        self.network = place(resnet(config, config.levels), device)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        widths = widths_of(self.network)
        self.project(widths[-1], sum(widths))
        weights = [p for part in (self.network, self.whole, self.parts) for p in part.parameters()]
        self.optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.step, self.seconds = 0, 0.0
        self.curve: list[tuple[int, float, float]] = []

    def project(self, whole: int, parts: int) -> None:
        """Set the projections of a whole view and of a region, whose features have these widths."""
        config = self.config
        self.whole: nn.Module = SimCLRProjectionHead(whole, config.hidden, config.projection).to(self.device)
        self.parts: nn.Module = SimCLRProjectionHead(parts, config.hidden, config.projection).to(self.device)
        self.nt_xent = NTXentLoss(config.temperature)

    def advance(self) -> tuple[float, float]:
        """One step of training; returns the losses over wholes and over regions."""
        start = time.perf_counter()
        whole, part = self.losses()
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(self.step)
        self.optimizer.zero_grad()
        (whole + part).backward()
        nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], self.config.clip)
        self.optimizer.step()
        self.follow()
        self.step += 1
        losses = whole.item(), part.item()
        self.seconds += time.perf_counter() - start
        return losses

    def losses(self) -> tuple[Tensor, Tensor]:
        """Return the losses over wholes and over regions of this step's batch."""
        wholes, rows, photograph = self.described(self.network, self.seen())
        return self.contrast_of_wholes(wholes), self.contrast_of_regions(rows, photograph)

    def seen(self) -> Seen:
        """Draw this step's views, and the regions of their photographs."""
        pictures, views, cuts = self.views.draw(self.step, *self.config.views_at(self.step))
        both = normalised(torch.cat(views)).contiguous(memory_format=torch.channels_last)
        return Seen(both, regions_of(pictures, self.config.regions, self.views.generator), cuts)

    def described(self, network: nn.Module, seen: Seen) -> tuple[Tensor, Tensor, Tensor]:
        """Return features of wholes (2B, C), those of regions in both (2M, sum of C), and their photographs (M,)."""
        with autocast(self.precision, self.device):
            maps = network(seen.views)
            wholes = maps[-1].mean((2, 3))
        return wholes, *pooled([level.float() for level in maps], seen.regions, seen.cuts)

    def contrast_of_wholes(self, wholes: Tensor) -> Tensor:
        """Return NT-Xent of the views' projections (arXiv 2002.05709)."""
        with autocast(self.precision, self.device):
            first, second = self.whole(wholes).float().chunk(2)
        return self.nt_xent(first, second)

    def contrast_of_regions(self, rows: Tensor, photograph: Tensor) -> Tensor:
        """Return InfoNCE of the regions' projections, without negatives of the same photograph (M,)."""
        with autocast(self.precision, self.device):
            here, there = self.parts(rows).float().chunk(2)
        return spot_contrast(here, there, photograph, self.config.region_temperature)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average towards the weights and the normalisation's statistics, faster in the first steps."""
        decay = min(self.config.average, (self.step + 1) / (self.step + 10))
        current = self.network.state_dict()
        for name, averaged in self.average.state_dict().items():
            if averaged.is_floating_point():
                averaged.lerp_(current[name], 1 - decay)
            else:
                averaged.copy_(current[name])

    def state(self) -> dict:
        """Return everything that a later run needs to go on, and what it went by."""
        held = {name: getattr(self, name).state_dict() for name in HELD}
        told = {name: getattr(self, name) for name in ("step", "curve", "seconds", "pools")}
        return held | told | {"recipe": self.recipe(self.step)}

    def recipe(self, step: int) -> dict:
        """Return what decided the steps before this one; `cooldown` counts on a branch alone."""
        told = asdict(self.config) | {"objective": self.objective, "views": self.config.stages(step)}
        return {name: value for name, value in told.items() if name not in FREE}

    def resume(self, path: Path) -> None:
        """Go on from a file that holds a `state`. Raises UserError when it is damaged or of another recipe.

        The photographs may be others: `pools` tells how many there were from which step on.
        """
        state = cast(dict, read_torch(path))
        try:
            wanted = self.recipe(state["step"])
            if state["step"] <= self.config.steps:
                del wanted["cooldown"]
            check_recipe(state.get("recipe", {}), wanted)
            for name in HELD:
                getattr(self, name).load_state_dict(state[name])
            self.step, self.curve, self.seconds = state["step"], state["curve"], state["seconds"]
            here, self.pools = self.pools[-1], state["pools"]
            if here[1] != self.pools[-1][1]:
                self.pools = [*self.pools, (self.step, here[1])]
        except STATE_ERRORS as error:
            raise other_recipe(path, error) from error


def fast_bf16() -> bool:
    """Return whether this processor multiplies in bf16, which then is faster than fp32; others emulate it."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def resnet(config: PhotosConfig, levels: tuple[int, ...]) -> nn.Module:
    """Return the untrained network, which returns its maps at these levels."""
    return build_levels("resnet18", list(levels), True, channels=config.channels, zero_init_last=False)


def place(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, in the layout that convolutions prefer."""
    return network.to(device).to(memory_format=torch.channels_last)


def normalised(images: Tensor) -> Tensor:
    """Return images in 0..1 with ImageNet's mean and deviation taken out."""
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return (images - mean) / std


def pretrain(
    pool: Photos,
    config: PhotosConfig,
    folder: Path,
    device: torch.device,
    save_every: int = 50,
    kind: type[PhotoPretraining] = PhotoPretraining,
) -> PhotoPretraining:
    """Train to the end of the branch, going on from what lies in `folder`.

    `pretrain.pt` is the run at the constant rate, `cooldown-STEPS.pt` its branch after so many steps. Raises UserError
    when the run that lies there is longer than the one asked for, or of another recipe.
    """
    run = kind(pool, config, device)
    main, branch = (Path(folder) / name for name in ("pretrain.pt", f"cooldown-{config.steps}.pt"))
    if branch.exists():
        run.resume(branch)
    elif main.exists():
        run.resume(main)
        if run.step > config.steps:
            raise UserError(f"{main}: has gone on to step {run.step:,}; ask for as many, or name another folder")
    end = config.steps + config.cooldown
    with bar() as progress:
        task = progress.add_task("Pre-training", total=end, completed=run.step)
        while run.step < end:
            whole, part = run.advance()
            run.curve.append((run.step, round(whole, 4), round(part, 4)))
            progress.update(task, completed=run.step, description=f"Pre-training, losses {whole:.2f}, {part:.2f}")
            if run.step % save_every == 0 or run.step in (config.steps, end):
                write_whole(main if run.step <= config.steps else branch, partial(torch.save, run.state()))
    return run


def pretrain_and_export_photos(
    config: PhotosConfig, folder: Path, device: str = "auto", kind: type[PhotoPretraining] = PhotoPretraining
) -> None:
    """Pre-train on the packed photographs and write network.safetensors, network.json and README.md."""
    pool, at = photos.load(), choose_device(device)
    run = pretrain(pool, config, folder, at, kind=kind)
    network = place(resnet(config, config.joined), at)
    network.load_state_dict(run.average.state_dict())
    centre = mean_feature(network, pool, config.context)
    weights = {name: half(value) for name, value in network.state_dict().items()} | {"centre": half(centre)}
    write_whole(Path(folder) / "network.safetensors", lambda part: save_file(weights, part))
    checksum = hashlib.sha256((Path(folder) / "network.safetensors").read_bytes()).hexdigest()
    options = {"channels": config.channels}
    card = {
        "name": "photos",
        "sha256": checksum,
        "patch": 8,
        "context": config.context,
        "architecture": {"model": "resnet18", "levels": config.joined, "reflect": True, "options": options},
        "objective": run.objective,
        "config": asdict(config),
        "config_hash": config_hash(config),
        "seconds": round(run.seconds),
        "device": device_name(at),
        "precision": run.precision,
        "commit": commit(),
        "environment": environment(),
        "date": now(),
        "curve": run.curve[9::10] or run.curve,
        "photographs": pool.about,
        "pools": run.pools,
        "sources": {source.name: {"repository": source.repository, "terms": source.terms} for source in photos.SOURCES},
    }
    write_json(Path(folder) / "network.json", card)
    write_whole(Path(folder) / "README.md", lambda part: part.write_text(photos_card(card), encoding="utf-8"))


def half(value: Tensor) -> Tensor:
    """Return fractions in half precision and counts as they are, on the CPU, in the usual layout."""
    return (value.half() if value.is_floating_point() else value).cpu().contiguous()


def mean_feature(network: nn.Module, pool: Photos, context: int, count: int = 500) -> Tensor:
    """Return the mean feature (D,) of photographs spread over the pool, at the size that the backbone is to serve."""
    device = next(network.parameters()).device
    width = sum(widths_of(network))
    network = copy.deepcopy(network)
    backbone = ConvBackbone(network, "", IMAGE_MEAN, IMAGE_STD, torch.zeros(width), context=context).to(device)
    numbers = torch.linspace(0, len(pool.images) - 1, min(count, len(pool.images))).long().split(10)
    means = []
    for part in track(numbers, "Centring"):
        pictures = torch.from_numpy(pool.images[part.numpy()]).to(device).permute(0, 3, 1, 2).float() / 255
        means.append(backbone(F.interpolate(pictures, size=SIZE, mode="bilinear")).mean((0, 1)))
    return torch.stack(means).mean(0)


def photos_card(card: dict) -> str:
    """Return the card of the backbone in prose, from network.json."""
    config, about = card["config"], card["photographs"]
    early, late = (
        [sum(loss[part] for loss in losses) / len(losses) for part in (1, 2)]
        for losses in (card["curve"][:10], card["curve"][-10:])
    )
    rows = "\n".join(
        f"| {name} | https://github.com/{one['repository']} | {about['sources'][name]['kept']:,} | {one['terms']} |"
        for name, one in sorted(card["sources"].items())
    )
    steps = config["steps"] + config["cooldown"]
    stages = PhotosConfig(**config).stages(config["steps"])
    views = "; ".join(
        f"{side} pixels a side and {count} photographs a step from step {start:,}" for start, side, count in stages
    )
    return f"""# The photos backbone

A ResNet-18 (timm) of widths {", ".join(map(str, config["channels"]))} whose convolutions pad by reflection. Its
levels {", ".join(map(str, config["joined"]))}, each of unit length, then averaged over {card["context"]} cells to
each side, are joined on a grid of {card["patch"]} pixels and centred.

* **Made by** `cause-lite pretrain photos`, seed {config["seed"]}, {steps:,} steps on {card["device"]} in
  {card["seconds"] / 60:.0f} minutes; exported at commit {card["commit"][:12]}, {card["date"][:10]}.
  The bits repeat neither across numbers of threads nor across devices.
* **Views**, two of each photograph: {views}.
* **Learned from** {about["count"]:,} photographs, listed below. No label was read. Left out are duplicates and what
  {about["avoided"]:,} images of MSRC and CamVid show.
* **Losses** over wholes and over regions: {early[0]:.2f} and {early[1]:.2f} at first, {late[0]:.2f} and
  {late[1]:.2f} at last. More photographs a step are more negatives, which makes a loss larger. The curve, the whole
  configuration and the versions are in network.json.
* **Weights** network.safetensors, half precision, sha256 `{card["sha256"]}`.
* **Scores** on MSRC and CamVid, beside weaker and stronger backbones: the chapter *What stronger features change*
  (`book/stronger.md`), drawn from `data/records/photographs-msrc.json` and `photographs-camvid.json`.
{card.get("note", "")}

| source | address | photographs | terms |
|---|---|---|---|
{rows}

The photographs themselves are not part of this project. Most of their terms allow research only; whoever uses the
weights otherwise should read them.
"""
