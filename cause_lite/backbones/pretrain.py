"""Self-supervised pre-training of the small ViT: contrast of patches that two views share.

Two jittered crops of one image overlap; crops of several sizes take turns, step by step.
Where the two overlap, a patch's feature in one view must single out the same spot in the
other view among spots of other images (dense
InfoNCE, as in DenseCL, arXiv 2011.09157, and VADeR, arXiv 2011.05499). Spots of the
same image are no negatives: they often show the same thing. No label is read. Each
view gets a random window of a larger grid of sine-cosine positions, so that position
says nothing about content and every place of the evaluation grid is trained.
"""

from __future__ import annotations

import copy
import hashlib
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightly.models.modules import SimCLRProjectionHead
from lightly.models.utils import update_momentum
from lightly.utils.scheduler import cosine_schedule
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from cause_lite.backbones.backbone import IMAGE_MEAN, IMAGE_STD
from cause_lite.backbones.photo_views import colour_matrix
from cause_lite.backbones.vit import VitBackbone, build_vit
from cause_lite.datasets import load_split
from cause_lite.runtime.device import one_thread
from cause_lite.runtime.files import UserError, read_json, read_torch, write_json, write_whole
from cause_lite.runtime.progress import bar, track
from cause_lite.runtime.provenance import commit, config_hash, environment, now


@dataclass(frozen=True)
class PretrainConfig:
    """What decides the weights. Lengths in pixels, rates per step."""

    data: str
    split: str
    grid: int  # positions a side: each view takes a random window of them
    crops: tuple[tuple[int, int], ...]  # (side in pixels, images a step), by turns
    window: int  # side of what the exported backbone sees at once
    seed: int = 0
    steps: int = 3000
    patch: int = 8
    width: int = 128
    depth: int = 4
    heads: int = 4
    temperature: float = 0.1
    projection: int = 64
    spacing: int = 16  # pixels of a crop for each point that the overlap of two views is read at
    mask_ratio: float = 0.3
    learning_rate: float = 1e-3  # falls along a cosine that would end at `horizon`,
    horizon: int = 3600
    cooldown: int = 1  # and linearly to 0 over the last steps
    weight_decay: float = 0.04
    warmup: int = 100
    average: float = 0.98  # decay of the weights' moving average, which ships
    clip: float = 3.0
    scale: tuple[float, float] = (0.7, 1.4)
    shift: float = 0.5  # largest offset between the two views' centres, in crop sides


class Views:
    """Draw pairs of jittered, overlapping crops from images (N, H, W, 3) uint8."""

    def __init__(self, images: np.ndarray, config: PretrainConfig, generator: torch.Generator) -> None:
        self.images = torch.from_numpy(images)
        self.config, self.generator = config, generator
        self.mean, self.std = torch.tensor(IMAGE_MEAN), torch.tensor(IMAGE_STD)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw numbers between `low` and `high`."""
        return low + (high - low) * torch.rand(*shape, generator=self.generator)

    def draw(self, crop: int, count: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return two views, each (B, 3, crop, crop), and where their overlap lies in each, (B, 4) in its patches."""
        config = self.config
        which = torch.randint(len(self.images), (count,), generator=self.generator)
        window = self._windows(which, crop)
        size = torch.tensor([window.shape[2], window.shape[1]])
        low, high = np.log(config.scale[0]), np.log(config.scale[1])
        sides = (crop * self.uniform(2, count, low=low, high=high).exp()).clamp(max=float(size.min()))
        first = self.uniform(count, 2) * (size - sides[0][:, None]) + sides[0][:, None] / 2
        second = first + self.uniform(count, 2, low=-1, high=1) * config.shift * sides.min(0).values[:, None]
        second = torch.minimum(torch.maximum(second, sides[1][:, None] / 2), size - sides[1][:, None] / 2)
        boxes = [
            torch.cat([c - s[:, None] / 2, c + s[:, None] / 2], 1) for c, s in zip((first, second), sides, strict=True)
        ]
        overlap = torch.cat(
            [torch.maximum(boxes[0][:, :2], boxes[1][:, :2]), torch.minimum(boxes[0][:, 2:], boxes[1][:, 2:])], 1
        )
        views, places = [], []
        for box in boxes:
            flip = torch.rand(count, generator=self.generator) < 0.5
            views.append(self._photometric(self._cut(window, box, flip, crop)))
            places.append(self._relative(overlap, box, flip, crop // config.patch))
        return views, places

    def _windows(self, which: Tensor, crop: int) -> Tensor:
        """Cut a random window of each image, no larger than two crops a side."""
        side = min(2 * crop, *self.images.shape[1:3])
        top = torch.randint(self.images.shape[1] - side + 1, which.shape, generator=self.generator).tolist()
        left = torch.randint(self.images.shape[2] - side + 1, which.shape, generator=self.generator).tolist()
        cut = [self.images[n, t : t + side, x : x + side] for n, t, x in zip(which.tolist(), top, left, strict=True)]
        return torch.stack(cut).float() / 255

    def _cut(self, window: Tensor, box: Tensor, flip: Tensor, crop: int) -> Tensor:
        """Sample boxes (B, 4: left, top, right, bottom) of windows (B, S, S, 3) at crop x crop."""
        side = window.shape[1]
        centre, half = (box[:, :2] + box[:, 2:]) / side - 1, (box[:, 2:] - box[:, :2]) / side
        theta = torch.zeros(len(box), 2, 3)
        theta[:, 0, 0], theta[:, 1, 1] = half[:, 0] * torch.where(flip, -1.0, 1.0), half[:, 1]
        theta[:, :, 2] = centre
        grid = F.affine_grid(theta, [len(box), 3, crop, crop], align_corners=False)
        return F.grid_sample(window.permute(0, 3, 1, 2), grid, align_corners=False, padding_mode="reflection")

    def _relative(self, overlap: Tensor, box: Tensor, flip: Tensor, cells: int) -> Tensor:
        """Return the overlap in the view's own patches (B, 4); a flipped view has left and right exchanged."""
        inside = (overlap - box[:, :2].repeat(1, 2)) / (box[:, 2:] - box[:, :2]).repeat(1, 2) * cells
        inside[:, [0, 2]] = torch.where(flip[:, None], cells - inside[:, [0, 2]], inside[:, [0, 2]])
        return inside

    def _photometric(self, view: Tensor) -> Tensor:
        """Change brightness, contrast, cast, saturation and hue by one 3x3 colour matrix an image; add noise."""
        count = len(view)
        angle = self.uniform(count, 1, 1, low=-0.9, high=0.9)
        saturation = self.uniform(count, 1, 1, low=0.2, high=1.5)
        saturation = torch.where(self.uniform(count, 1, 1) < 0.2, torch.zeros(()), saturation)
        matrix = colour_matrix(angle, saturation, self.uniform(count, 3, low=0.85, high=1.15))
        gain = self.uniform(count, 1, 1, 1, low=0.6, high=1.4)
        contrast = self.uniform(count, 1, 1, 1, low=0.6, high=1.4)
        level = view.mean((1, 2, 3), keepdim=True)
        view = torch.einsum("bij,bjhw->bihw", matrix, level + contrast * (view - level)) * gain
        view = view + 0.02 * torch.randn(view.shape, generator=self.generator)
        return (view - self.mean[:, None, None]) / self.std[:, None, None]


class PatchEncoder(nn.Module):
    """The ViT with a mask token and a position window, as pre-training sees it."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.vit = build_vit(config.grid, config.patch, config.width, config.depth, config.heads)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.grid = config.grid

    def forward(self, view: Tensor, corner: Tensor, masked: Tensor | None) -> Tensor:
        """Return patch features (B, D, S/p, S/p) of views (B, 3, S, S), window corners (B, 2) and masks (B, P)."""
        tokens = self.vit.patch_embed(view)
        rows, columns = tokens.shape[1:3]
        tokens = tokens.flatten(1, 2)
        if masked is not None:
            tokens = torch.where(masked[..., None], self.mask_token, tokens)
        row = corner[:, 0, None] + torch.arange(rows)
        column = corner[:, 1, None] + torch.arange(columns)
        index = (row[:, :, None] * self.grid + column[:, None, :]).flatten(1) + 1
        position: Any = self.vit.pos_embed
        class_token: Any = self.vit.cls_token
        tokens = tokens + position[0, index]
        lead = (class_token + position[:, :1]).expand(len(tokens), -1, -1)
        tokens = self.vit.norm(self.vit.blocks(torch.cat([lead, tokens], 1)))
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))


def read_shared(features: Tensor, place: Tensor, points: int) -> Tensor:
    """Read features (B, D, h, w) at points x points spots of each overlap: (B * points^2, D), flips undone."""
    flipped = place[:, 0] > place[:, 2]
    ordered = torch.stack([place[:, [0, 2]].amin(1), place[:, 1], place[:, [0, 2]].amax(1), place[:, 3]], 1)
    numbered = torch.cat([torch.arange(len(place))[:, None].to(ordered), ordered], 1)
    cells = roi_align(features, numbered, points, sampling_ratio=1, aligned=True)
    cells = torch.where(flipped[:, None, None, None], cells.flip(3), cells)
    return cells.flatten(2).transpose(1, 2).flatten(0, 1)


def spot_contrast(first: Tensor, second: Tensor, image: Tensor, temperature: float) -> Tensor:
    """Return the symmetric InfoNCE between matching rows of two (M, J), against rows of other images (M,)."""
    similarity = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / temperature
    same_image = (image[:, None] == image[None, :]).fill_diagonal_(False)
    similarity = similarity.masked_fill(same_image, -torch.inf)
    target = torch.arange(len(similarity), device=similarity.device)
    return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2


STATE_ERRORS = (KeyError, TypeError, ValueError, RuntimeError)  # what a state that does not fit may raise


class Pretraining:
    """Encoder, projection, moving average, optimiser and random state; resumable after any step."""

    def __init__(self, images: np.ndarray, config: PretrainConfig) -> None:
        torch.manual_seed(config.seed)  # timm and lightly draw their initial weights from the global state
        self.config = config
        self.generator = torch.Generator().manual_seed(config.seed)
        self.views = Views(images, config, self.generator)
        self.encoder = PatchEncoder(config)
        self.average = copy.deepcopy(self.encoder)
        self.projection = SimCLRProjectionHead(config.width, 2 * config.width, config.projection)
        weights = [p for m in (self.encoder, self.projection) for p in m.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.step, self.seconds = 0, 0.0
        self.curve: list[tuple[int, float]] = []

    def advance(self) -> float:
        """Take one step of training; return the loss."""
        config, start = self.config, time.perf_counter()
        crop, count = config.crops[self.step % len(config.crops)]
        views, places = self.views.draw(crop, count)
        cells, points = crop // config.patch, crop // config.spacing
        spots = []
        for view, place in zip(views, places, strict=True):
            corner = torch.randint(config.grid - cells + 1, (count, 2), generator=self.generator)
            masked = torch.rand(count, cells**2, generator=self.generator) < config.mask_ratio
            spots.append(self.projection(read_shared(self.encoder(view, corner, masked), place, points)))
        image = torch.arange(count).repeat_interleave(points**2)
        loss = spot_contrast(spots[0], spots[1], image, config.temperature)
        self._update(loss)
        self.seconds += time.perf_counter() - start
        return loss.item()

    def _update(self, loss: Tensor) -> None:
        config = self.config
        ramp = min(1.0, (self.step + 1) / config.warmup, (config.steps - self.step) / config.cooldown)
        for group in self.optimizer.param_groups:
            group["lr"] = ramp * cosine_schedule(self.step, config.horizon, config.learning_rate, 1e-5)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], config.clip)
        self.optimizer.step()
        update_momentum(self.encoder, self.average, config.average)
        self.step += 1

    def state(self) -> dict:
        """Return everything that a later run needs to go on, and the settings it went by."""
        held = {name: getattr(self, name).state_dict() for name in ("encoder", "average", "projection", "optimizer")}
        return held | {
            "config": asdict(self.config),
            "step": self.step,
            "curve": self.curve,
            "seconds": self.seconds,
            "random": self.generator.get_state(),
        }

    def resume(self, path: Path) -> None:
        """Go on from a file that holds a `state`. Raises UserError when it is damaged or of another recipe."""
        state = cast(dict, read_torch(path))
        try:
            check_recipe(state.get("config", {}), asdict(self.config))
            for name in ("encoder", "average", "projection", "optimizer"):
                getattr(self, name).load_state_dict(state[name])
            self.step, self.curve, self.seconds = state["step"], state["curve"], state["seconds"]
            self.generator.set_state(state["random"])
        except STATE_ERRORS as error:
            raise other_recipe(path, error) from error


def check_recipe(made: dict, wanted: dict) -> None:
    """Raise ValueError, naming the settings, when a run was begun with others than those that are wanted."""
    recorded = {name: made.get(name, "not recorded") for name in wanted}
    changed = [
        f"{name} was {recorded[name]} and is {value}" for name, value in wanted.items() if recorded[name] != value
    ]
    if changed:
        raise ValueError("; ".join(changed))


def card_of(path: Path, config: object, **others: object) -> dict:
    """Return the card of a backbone, from its file.

    Raises UserError when other settings made it, or when one of `others`, by field, is not what the card says.
    """
    card = read_json(path)
    if any(card.get(field) != value for field, value in ({"config_hash": config_hash(config)} | others).items()):
        raise UserError(f"{path.parent}: was made with other settings; remove it to pre-train this backbone anew")
    return card


def other_recipe(path: Path, error: Exception) -> UserError:
    """Return the error for a state that a run cannot go on from."""
    return UserError(f"{path}: is of another recipe ({str(error)[:200]}); name another folder, or remove it")


def pretrain(images: np.ndarray, config: PretrainConfig, folder: Path, save_every: int = 100) -> Pretraining:
    """Train to the last step, going on from `folder/pretrain.pt` where that exists.

    Raises UserError when that is damaged, or a run with other settings.
    """
    run, checkpoint = Pretraining(images, config), Path(folder) / "pretrain.pt"
    if checkpoint.exists():
        run.resume(checkpoint)
    with bar() as progress:
        task = progress.add_task("Pre-training", total=config.steps, completed=run.step)
        while run.step < config.steps:
            loss = run.advance()
            run.curve.append((run.step, round(loss, 5)))
            progress.update(task, completed=run.step, description=f"Pre-training, loss {loss:.3f}")
            if run.step % save_every == 0 or run.step == config.steps:
                state = run.state()
                write_whole(checkpoint, partial(torch.save, state))
    return run


# Scenes in crops of one size: given whole images too, the features told images apart by their light and
# palette more than by what they show, and a supervised linear probe did worse on them.
RECIPES = {
    "scenes": PretrainConfig("scenes", "pretrain", grid=16, crops=((64, 64),), window=64, steps=2600, cooldown=300),
    "camvid": PretrainConfig(
        "camvid", "train", grid=40, crops=((80, 36), (160, 10)), window=160, steps=3000, horizon=3000
    ),
}


def pretraining_recipe(name: str, seed: int = 0, steps: int | None = None) -> PretrainConfig:
    """Return how the backbone of a data set is made. Raises UserError for an unknown name."""
    if name not in RECIPES:
        raise UserError(f"no pre-training recipe for {name!r}; choose from {', '.join(RECIPES)}, photos")
    return replace(RECIPES[name], seed=seed, steps=steps or RECIPES[name].steps)


@one_thread()
def pretrain_and_export(config: PretrainConfig, folder: Path) -> None:
    """Pre-train on one CPU thread (so that the bits repeat) and write vit.safetensors, vit.json and README.md."""
    images = np.asarray(load_split(config.data, config.split).images[:])
    run = pretrain(images, config, folder)
    vit = centred(cropped_vit(run.average.vit, config), images, config)
    write_whole(Path(folder) / "vit.safetensors", lambda part: save_file(vit.state_dict(), part))
    checksum = hashlib.sha256((Path(folder) / "vit.safetensors").read_bytes()).hexdigest()
    architecture = {name: getattr(config, name) for name in ("patch", "width", "depth", "heads")}
    architecture["grid"] = config.window // config.patch
    card = {
        "name": config.data,
        "architecture": architecture,
        "window": config.window,
        "sha256": checksum,
        "config": asdict(config),
        "config_hash": config_hash(config),
        "seconds": round(run.seconds),
        "commit": commit(),
        "environment": environment(),
        "date": now(),
        "curve": run.curve[9::10] or run.curve,
    }
    write_json(Path(folder) / "vit.json", card)
    write_whole(Path(folder) / "README.md", lambda part: part.write_text(model_card(card), encoding="utf-8"))


def model_card(card: dict) -> str:
    """Return the card of a backbone in prose, from vit.json."""
    shape, config, name = card["architecture"], card["config"], card["name"]
    curve = [loss for _, loss in card["curve"]]
    early, late = (sum(part) / len(part) for part in (curve[:10], curve[-10:]))
    return f"""# The {name} backbone

A vision transformer (timm) of width {shape["width"]}, {shape["depth"]} blocks and {shape["heads"]} heads on a
convolutional stem, patches of {shape["patch"]} pixels; it looks at windows of {card["window"]} pixels.

* **Made by** `cause-lite pretrain {name}`, seed {config["seed"]}, {config["steps"]} steps on one CPU thread in
  {card["seconds"] / 60:.0f} minutes, at commit {card["commit"][:12]}, {card["date"][:10]}.
* **Learned from** the images of `{config["data"]}`, split `{config["split"]}`. No label was read.
* **Loss** (patch contrast between two views): {early:.2f} over the first hundred steps, {late:.2f} over the last; the
  curve, the whole configuration and the versions are in vit.json.
* **Weights** vit.safetensors, sha256 `{card["sha256"]}`.
* **For** the chapters and tests of this project. It knows one small data set; do not expect it to know others.
"""


@torch.no_grad()
def cropped_vit(vit: VisionTransformer, config: PretrainConfig) -> VisionTransformer:
    """Return the same ViT for inputs of one window, at the positions in the middle of the training grid."""
    cells = config.window // config.patch
    small = build_vit(cells, config.patch, config.width, config.depth, config.heads)
    start = (config.grid - cells) // 2
    position: Any = vit.pos_embed
    grid = position[:, 1:].unflatten(1, (config.grid, config.grid))
    middle = grid[:, start : start + cells, start : start + cells].flatten(1, 2)
    small.load_state_dict(vit.state_dict() | {"pos_embed": torch.cat([position[:, :1], middle], 1)})
    return small


@torch.no_grad()
def centred(vit: VisionTransformer, images: np.ndarray, config: PretrainConfig) -> VisionTransformer:
    """Fold minus the mean patch feature over `images` into the last norm's bias, so that cosines spread around 0."""
    backbone = VitBackbone(vit, config.data, IMAGE_MEAN, IMAGE_STD, config.window)
    parts = np.array_split(images[:1000], max(1, min(1000, len(images)) // 20))
    means = torch.stack([backbone.features(part).float().mean((0, 1)) for part in track(parts, "Centring")])
    bias: Any = vit.norm.bias
    bias -= means.mean(0)
    return vit
