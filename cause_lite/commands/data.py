"""Get images ready, and pre-train a backbone on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cause_lite.commands.console import console


def data(
    name: Annotated[
        str,
        typer.Argument(
            help="scenes, camvid, photos, cocostuff27, coco81, coco171, cityscapes, pascalvoc, potsdam3, msrc, FOLDER."
        ),
    ],
) -> None:
    """Make or download a data set, check it, and report what it holds, by split and class.

    Downloads go to $CAUSE_DATA (or the cache), and go on where they were cut off.
    """
    from cause_lite import datasets
    from cause_lite.datasets.folder_survey import survey

    datasets.prepare(name, console.print)
    if name == "photos":  # no split and no label to report
        return
    if datasets.is_folder(name):
        found = survey(Path(name))
        console.print(found.summary())
        loaded = datasets.load_split(name, "train", 64)
        if loaded.labels is not None:
            console.print(f"{len(loaded.classes)} classes: {', '.join(loaded.classes)}")
        return
    table = Table(title=f"{name}: share of labelled pixels, %")
    counted = datasets.class_shares(name)
    table.add_column("class")
    for split, (count, _) in counted.items():
        table.add_column(f"{split} ({count} images)", justify="right")
    for row, label in enumerate(datasets.load_split(name, next(iter(counted))).classes):
        table.add_row(label, *(f"{100 * shares[row]:.1f}" for _, shares in counted.values()))
    console.print(table)


def pretrain(
    name: Annotated[str, typer.Argument(help="scenes, camvid or photos: whose images to learn from, without labels.")],
    out: Annotated[
        Path | None, typer.Option(help="The folder to write to; where `fit` looks for it when left out.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps in all; the recipe's number when left out.", min=1)] = None,
    seed: int = 0,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or mps; scenes and camvid use one CPU thread when left out.")
    ] = "auto",
) -> None:
    """Pre-train a small network by self-supervision. Cut off? The same command goes on where it stopped.

    `photos` learns from what `cause-lite data photos` packed, and goes on from there when more steps are asked for.
    """
    from cause_lite.backbones.loading import pretrained_dir
    from cause_lite.backbones.pretrain import pretrain_and_export, pretraining_recipe

    folder = out or pretrained_dir(name)
    pretrain_and_export(pretraining_recipe(name, seed, steps), folder, device)
    console.print(f"Backbone written to {folder}; use it with `cause-lite fit --backbone {out or name}`.")
