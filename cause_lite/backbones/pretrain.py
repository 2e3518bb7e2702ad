"""Pre-train a small network without labels, resume where it was cut off, and write its weights and card.

Begin with `pretrain_and_export`. `pretraining` is the engine, which knows neither images nor losses: those are in
`pretrain_patches` (a small vision transformer) and `pretrain_photos` (a convolutional network).
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import asdict, replace
from pathlib import Path

from jinja2 import Template
from safetensors.torch import save_file

from cause_lite.backbones.pretrain_patches import PatchesConfig
from cause_lite.backbones.pretrain_photos import PhotosConfig
from cause_lite.backbones.pretraining import Pretraining, Recipe
from cause_lite.runtime.device import device_name, one_thread
from cause_lite.runtime.files import UserError, write_json, write_whole
from cause_lite.runtime.progress import bar
from cause_lite.runtime.provenance import commit, config_hash, environment, now

# Scenes in crops of one size: given whole images too, the features told images apart by their light and
# palette more than by what they show, and a supervised linear probe did worse on them.
SCENES = PatchesConfig(data="scenes", split="pretrain", grid=16, crops=((64, 64),), window=64, steps=2600, cooldown=300)
CAMVID = PatchesConfig(data="camvid", split="train", grid=40, crops=((80, 36), (160, 10)), window=160, horizon=3000)
RECIPES: dict[str, Recipe] = {"scenes": SCENES, "camvid": CAMVID, "photos": PhotosConfig()}


def pretraining_recipe(name: str, seed: int = 0, steps: int | None = None) -> Recipe:
    """Return how a backbone is made. Raises UserError for an unknown name."""
    if name not in RECIPES:
        raise UserError(f"no pre-training recipe for {name!r}; choose from {', '.join(RECIPES)}")
    return replace(RECIPES[name], seed=seed, steps=steps or RECIPES[name].steps)


def pretrain(run: Pretraining, folder: Path, save_every: int = 50) -> None:
    """Train to the end, going on from what lies in a folder.

    `pretrain.pt` is the run up to the last of `config.steps`, `cooldown-STEPS.pt` the branch that ends it, if it has
    one.

    Parameters
    ----------
    run
        At its first step.
    folder
        Where its states lie.
    save_every
        After how many steps the state is written.

    Raises
    ------
    UserError
        When the run that lies there is longer than the one asked for, damaged, or of another recipe.
    """
    config = run.config
    main, branch = folder / "pretrain.pt", folder / f"cooldown-{config.steps}.pt"
    if branch.exists():
        run.resume(branch)
    elif main.exists():
        run.resume(main, config.steps)
    with bar() as progress:
        task = progress.add_task("Pre-training", total=config.end, completed=run.step)
        while run.step < config.end:
            run.advance()
            told = ", ".join(f"{loss:.2f}" for loss in run.curve[-1][1:])
            progress.update(task, completed=run.step, description=f"Pre-training, loss {told}")
            if run.step % save_every == 0 or run.step in (config.steps, config.end):
                run.save(main if run.step <= config.steps else branch)


def pretrain_and_export(config: Recipe, folder: Path, device: str = "auto") -> None:
    """Pre-train, and write NAME.safetensors, NAME.json and README.md; cut off, the same call goes on."""
    run, folder = config.start(device), Path(folder)
    with one_thread() if run.repeats else contextlib.nullcontext():
        pretrain(run, folder)
        weights, about = run.exported()
    path = folder / f"{run.name}.safetensors"
    write_whole(path, lambda part: save_file(weights, part))
    card = about | {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "config": asdict(config),
        "config_hash": config_hash(config),
        "seconds": round(run.seconds),
        "device": device_name(run.device),
        "commit": commit(),
        "environment": environment(),
        "date": now(),
        "curve": run.curve[9::10] or run.curve,
    }
    write_json(folder / f"{run.name}.json", card)
    write_whole(folder / "README.md", lambda part: part.write_text(prose(card, run.name), encoding="utf-8"))


def prose(card: dict, name: str) -> str:
    """Return the card of NAME.json in prose."""
    template = Path(__file__).with_name(f"card_{name}.md.jinja").read_text(encoding="utf-8")
    return Template(template, keep_trailing_newline=True).render(card)
