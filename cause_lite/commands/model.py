"""Get images ready, pre-train a backbone, fit a segmenter, score it, use it, share it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from cause_lite.commands.console import Bands, Crf, Device, Out, Set, Window, note, say, settings_of, show


def data(
    name: Annotated[
        str,
        Argument(
            help="scenes, camvid, photos, cocostuff27, coco81, coco171, cityscapes, pascalvoc, potsdam3, msrc, FOLDER."
        ),
    ],
) -> None:
    """Make or download a data set, check it, and report what it holds, by split and class.

    Downloads go to $CAUSE_DATA (or the cache), and go on where they were cut off.
    """
    from cause_lite import datasets
    from cause_lite.datasets.folder_survey import survey

    datasets.prepare(name, say)
    if name == "photos":  # no split and no label to report
        return
    if datasets.is_folder(name):
        say(survey(Path(name)).summary())
        loaded = datasets.load_split(name, "train", 64)
        if loaded.labels is not None:
            say(f"{len(loaded.classes)} classes: {', '.join(loaded.classes)}")
        return
    counted = datasets.class_shares(name)
    classes = datasets.load_split(name, next(iter(counted))).classes
    rows = [
        [label, *(f"{100 * shares[row]:.1f}" for _, shares in counted.values())] for row, label in enumerate(classes)
    ]
    columns = ["class", *(f"{split} ({count} images)" for split, (count, _) in counted.items())]
    show(columns, rows, f"{name}: share of labelled pixels, %")


def pretrain(
    name: Annotated[str, Argument(help="scenes, camvid or photos: whose images to learn from, without labels.")],
    out: Annotated[Path | None, Option(help="The folder to write to; where `fit` looks for it when left out.")] = None,
    steps: Annotated[int | None, Option(help="Steps in all; the recipe's number when left out.", min=1)] = None,
    seed: int = 0,
    device: Annotated[
        str, Option(help="auto, cpu, cuda or mps; scenes and camvid use one CPU thread when left out.")
    ] = "auto",
) -> None:
    """Pre-train a small network by self-supervision. Cut off? The same command goes on where it stopped.

    `photos` learns from what `cause-lite data photos` packed, and goes on from there when more steps are asked for.
    """
    from cause_lite.backbones.loading import pretrained_dir
    from cause_lite.backbones.pretrain import pretrain_and_export, pretraining_recipe
    from cause_lite.runtime.files import is_path

    folder = out or pretrained_dir(name)
    pretrain_and_export(pretraining_recipe(name, seed, steps), folder, device)
    shown = name if out is None else out if is_path(str(out)) else f"./{out}"
    say(f"Backbone written to {folder}; use it with `cause-lite fit --backbone {shown}`.")


def fit(
    data: Annotated[str, Option(help="A data set (see `cause-lite data`), or a folder of images.")] = "scenes",
    head: Annotated[str, Option(help="tr (transformer) or mlp.")] = "tr",
    seed: int = 0,
    backbone: Annotated[
        str | None,
        Option(
            help="Bundled name (scenes, photos), folder, or timm name; the recipe's when left out. For a folder of "
            "images that is efficientnet-lite2, which saw ImageNet's class labels; photos saw no label."
        ),
    ] = None,
    clusters: Annotated[
        int | None, Option(help="Groups to find in a folder; as many as classes, or 12, when left out.")
    ] = None,
    size: Annotated[int | None, Option(help="Pixels a side of an image; a folder's, rounded to whole patches.")] = None,
    window: Window = None,
    bands: Bands = None,
    skip_bad: Annotated[bool, Option(help="Leave out images that cannot be read, and list them.")] = False,
    precision: Annotated[str | None, Option(help="fp32, bf16 or fp16; the recipe's when left out.")] = None,
    compiled: Annotated[bool, Option("--compile", help="Compile backbone and head (torch.compile).")] = False,
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

    asked = {
        "data.clusters": clusters,
        "data.size": size,
        "data.window": window,
        "data.bands": parse_bands(bands),
        "data.skip_bad": skip_bad or None,
        "optimisation.precision": precision,
        "optimisation.compiled": compiled or None,
    }
    changes = {name: value for name, value in asked.items() if value is not None} | settings_of(settings)
    config = recipe(data, head, seed, backbone, changes)
    found = survey(Path(data)) if is_folder(data) else None
    if found:
        say("\n".join([found.summary(), *reading_notes(found.images, reading_of(config))]))
    fitted = fit_to(config, out, device)
    took = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in fitted.seconds.items())
    say(f"Segmenter written to {out} ({took}).")
    if found:
        say(f"Look at its contact sheet, {out / 'contact.png'}.")
    if not found or found.labelled:
        say(f"Score it with `cause-lite evaluate {out}`.")


def evaluate(
    run: Annotated[Path, Argument(help="A folder that `cause-lite fit` wrote.")],
    data: Annotated[
        str | None, Option(help="Another labelled folder or data set; the run's own when left out.")
    ] = None,
    tiled: Annotated[bool, Option(help="Score whole images in tiles at the scale of training, not squares.")] = False,
    crf: Crf = False,
    device: Device = "auto",
) -> None:
    """Score a fitted segmenter: clusters matched to classes over the whole split.

    Writes scores there (scores.json; scores-NAME.json of other data), and matching.json, by which clusters have names.
    """
    from cause_lite.lab.evaluating import Evaluating, evaluate_run

    record = evaluate_run(run, Evaluating(data, crf, tiled), device)
    say(f"{run} on {record['images']} images of {Path(record['data']).name}, {record['view']}")
    measures = ("miou", "pacc", "many_to_one_pacc")
    scores = [
        [name, *(f"{score[key]:.1f}" if key in score else "" for key in measures)]
        for name, score in record["scores"].items()
    ]
    show(("prediction", "mIoU %", "pixel accuracy %", "many-to-one %"), scores)
    matching = [
        (
            each["cluster"],
            each["one_to_one"] or "-",
            each["most"] or "-",
            f"{100 * each['share']:.0f}" if each["pixels"] else "-",
        )
        for each in record["matching"]
    ]
    show(("cluster", "matched to", "mostly", "share of it %"), matching, "Clusters and classes")
    if record["unmatched_classes"]:
        say(f"Classes without a cluster, which count as wrong: {', '.join(record['unmatched_classes'])}")


def segment(
    images: Annotated[list[Path], Argument(help="Photographs of up to 100 megapixels, or folders of them.")],
    model: Annotated[
        str,
        Option(
            help="A segmenter that ships (photos: its backbone saw ImageNet's class labels; scenes: no label) or a "
            "folder that `fit` wrote."
        ),
    ] = "photos",
    out: Out = Path("segments"),
    scale: Annotated[
        float, Option(help="Times the scale of training; above 1, details count.", min=0.05, max=64)
    ] = 1.0,
    crf: Annotated[bool, Option(help="Refine with the dense CRF (slow; needs pydensecrf2).")] = False,
    confidence: Annotated[bool, Option(help="Write NAME.confidence.png too: the lead over the next cluster.")] = False,
    named: Annotated[
        bool, Option(help="Give clusters in legend.csv the classes that `evaluate` found in them.")
    ] = False,
    window: Window = None,
    bands: Bands = None,
    frame: Annotated[int | None, Option(help="Which image of a stack or an animation, from 1.")] = None,
    device: Device = "auto",
) -> None:
    """Segment images: writes NAME.labels.png (cluster numbers) and NAME.overlay.png (colours on the image).

    Prints the path of each file that it wrote. `legend.csv` names the colours. A GeoTIFF also gets NAME.labels.tif with
    its georeference. The images of a folder keep their paths within it. What cannot be read is listed at the end, with
    exit status 1; the rest is done.
    """
    from cause_lite.datasets.arrays import Reading, parse_bands
    from cause_lite.lab.segmenting import Segmenting, segment_files

    how = Segmenting(scale, crf, confidence, named, Reading(window, parse_bands(bands), frame))
    for written in segment_files(images, model, out, device, how, note):
        say(written)


def export(
    run: Annotated[Path, Argument(help="A folder that `cause-lite fit` wrote.")],
    out: Annotated[Path, Argument(help="The model folder to write; must not exist.")],
    licence: Annotated[str, Option(help="The licence that the card names.")] = "mit",
    onnx: Annotated[bool, Option("--onnx", help="Write segmenter.onnx too, which runs without PyTorch.")] = False,
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
    say(f"Model folder written to {folder}; share it with `cause-lite push {out} OWNER/NAME`.")


def push(
    folder: Annotated[Path, Argument(help="A folder that `cause-lite export` wrote.")],
    name: Annotated[str, Argument(help="OWNER/NAME on the Hugging Face Hub.")],
    private: Annotated[bool, Option(help="Visible to its owner alone.")] = False,
) -> None:
    """Upload a model folder to the Hugging Face Hub; needs `hf auth login` once."""
    from cause_lite.checkpoints.hub import push as upload

    say(f"Pushed to {upload(folder, name, private)}; load it with cause_lite.load('hf:{name}').")


COMMANDS = (data, pretrain, fit, evaluate, segment, export, push)
