"""Fit a segmenter, score it, use it, share it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cause_lite.commands.console import Bands, Device, Out, Set, Window, console, settings_of


def fit(
    data: Annotated[str, typer.Option(help="A data set (see `cause-lite data`), or a folder of images.")] = "scenes",
    head: Annotated[str, typer.Option(help="tr (transformer) or mlp.")] = "tr",
    seed: int = 0,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Bundled name (scenes, photos), folder, or timm name; the recipe's when left out. For a folder of "
            "images that is efficientnet-lite2, which saw ImageNet's class labels; photos saw no label."
        ),
    ] = None,
    clusters: Annotated[
        int | None,
        typer.Option(help="Groups to find in a folder of images; as many as classes, or 12, when left out.", max=65535),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Pixels a side that images are scaled to; of a folder, rounded to whole patches.", min=1),
    ] = None,
    window: Window = None,
    bands: Bands = None,
    skip_bad: Annotated[bool, typer.Option(help="Leave out images that cannot be read, and list them.")] = False,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; the recipe's when left out.")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile backbone and head (torch.compile).")] = False,
    settings: Set = None,
    out: Out = Path("runs/fit"),
    device: Device = "auto",
) -> None:
    """Fit the three steps (clusterbook, head, probes) and write a segmenter. Cut off? The same command goes on.

    `torchrun --nproc-per-node=2 -m cause_lite fit ...` shares the batches among processes.
    """
    from cause_lite.datasets import is_folder
    from cause_lite.datasets.arrays import parse_bands
    from cause_lite.datasets.folder_survey import reading_notes, survey
    from cause_lite.lab.recipes import recipe
    from cause_lite.lab.runs import fit_to, reading_of

    asked: dict[str, object] = {
        "data.clusters": clusters,
        "optimisation.precision": precision,
        "data.skip_bad": skip_bad or None,
    }
    asked |= {"optimisation.compiled": compiled or None, "data.size": size}
    asked |= {"data.window": window, "data.bands": parse_bands(bands)}
    changes = {name: value for name, value in asked.items() if value is not None} | settings_of(settings)
    config = recipe(data, head, seed, backbone, changes)
    found = survey(Path(data)) if is_folder(data) else None
    if found:
        console.print(found.summary())
        for note in reading_notes(found.images, reading_of(config)):
            console.print(note)
    fitted = fit_to(config, out, device)
    took = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in fitted.seconds.items())
    console.print(f"Segmenter written to {out} ({took}).")
    if found:
        console.print(f"Look at its contact sheet, {out / 'contact.png'}.")
    if not found or found.labelled:
        console.print(f"Score it with `cause-lite evaluate {out}`.")


def evaluate(
    run: Annotated[Path, typer.Argument(help="A folder that `cause-lite fit` wrote.")],
    data: Annotated[
        str | None, typer.Option(help="Another labelled folder or data set, matched anew; the run's own when left out.")
    ] = None,
    tiled: Annotated[
        bool, typer.Option(help="Score whole images in tiles at the scale of training, in place of squares.")
    ] = False,
    crf: Annotated[bool, typer.Option(help="Also refine with the dense CRF (slow; needs pydensecrf2).")] = False,
    device: Device = "auto",
) -> None:
    """Score a fitted segmenter: clusters matched to classes over the whole split.

    Writes scores there (scores.json; scores-NAME.json of other data), and matching.json, by which clusters have names.
    """
    from cause_lite.lab.evaluating import Evaluating, evaluate_run

    record = evaluate_run(run, Evaluating(data, crf, tiled), device)
    title = f"{run} on {record['images']} images of {Path(record['data']).name}, {record['view']}"
    table = Table("prediction", "mIoU %", "pixel accuracy %", "many-to-one %", title=title)
    for name, score in record["scores"].items():
        values = (score[key] for key in ("miou", "pacc", "many_to_one_pacc") if key in score)
        table.add_row(name, *(f"{value:.1f}" for value in values))
    console.print(table)
    clusters = Table("cluster", "matched to", "mostly", "share of it %", title="Clusters and classes")
    for each in record["matching"]:
        share = f"{100 * each['share']:.0f}" if each["pixels"] else "-"
        clusters.add_row(str(each["cluster"]), each["one_to_one"] or "-", each["most"] or "-", share)
    console.print(clusters)
    if record["unmatched_classes"]:
        console.print(f"Classes without a cluster, which count as wrong: {', '.join(record['unmatched_classes'])}")


def segment(
    images: Annotated[
        list[Path], typer.Argument(help="Photographs of any kind and size up to 100 megapixels, or folders of them.")
    ],
    model: Annotated[
        str,
        typer.Option(
            help="A segmenter that ships (photos: its backbone saw ImageNet's class labels; scenes: no label) or a "
            "folder that `fit` wrote."
        ),
    ] = "photos",
    out: Out = Path("segments"),
    scale: Annotated[
        float, typer.Option(help="Times the scale of training; above 1, details count more.", min=0.05, max=64)
    ] = 1.0,
    crf: Annotated[bool, typer.Option(help="Refine with the dense CRF (slow; needs pydensecrf2).")] = False,
    confidence: Annotated[
        bool, typer.Option(help="Write NAME.confidence.png too: the margin between the two nearest clusters.")
    ] = False,
    named: Annotated[
        bool, typer.Option(help="Give each cluster in legend.csv the class that `cause-lite evaluate` found in it.")
    ] = False,
    window: Window = None,
    bands: Bands = None,
    frame: Annotated[int | None, typer.Option(help="Which image of a stack or an animation, from 1.")] = None,
    device: Device = "auto",
) -> None:
    """Segment images: writes NAME.labels.png (cluster numbers) and NAME.overlay.png (colours on the image).

    `legend.csv` names the colours. A GeoTIFF also gets NAME.labels.tif with its georeference. The images of a folder
    keep their paths within it. What cannot be read is listed at the end, with exit status 1; the rest is done.
    """
    from cause_lite.datasets.arrays import Reading, parse_bands
    from cause_lite.lab.segmenting import Segmenting, segment_files

    how = Segmenting(scale, crf, confidence, named, Reading(window, parse_bands(bands), frame))
    for written in segment_files(images, model, out, device, how, console.print):
        console.print(str(written))


def export(
    run: Annotated[Path, typer.Argument(help="A folder that `cause-lite fit` wrote.")],
    out: Annotated[Path, typer.Argument(help="The model folder to write; must not exist.")],
    licence: Annotated[str, typer.Option(help="The licence that the card names.")] = "mit",
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write segmenter.onnx too, which runs without PyTorch, as in a browser.")
    ] = False,
) -> None:
    """Write a fitted segmenter as a Hugging Face model folder, with its card."""
    from cause_lite.checkpoints import load
    from cause_lite.checkpoints.export import export as write
    from cause_lite.checkpoints.onnx_export import check_onnx, write_onnx

    if onnx:
        check_onnx()
    folder = write(run, out, licence)
    if onnx:
        write_onnx(load(folder), folder)
    console.print(f"Model folder written to {folder}; share it with `cause-lite push {out} OWNER/NAME`.")


def push(
    folder: Annotated[Path, typer.Argument(help="A folder that `cause-lite export` wrote.")],
    name: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face Hub.")],
    private: Annotated[bool, typer.Option(help="Visible to its owner alone.")] = False,
) -> None:
    """Upload a model folder to the Hugging Face Hub; needs `hf auth login` once."""
    from cause_lite.checkpoints.hub import push as upload

    console.print(f"Pushed to {upload(folder, name, private)}; load it with cause_lite.load('hf:{name}').")
