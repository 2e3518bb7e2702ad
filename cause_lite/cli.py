"""The command line: cause-lite data | pretrain | fit | evaluate | reproduce | segment | verify | bench."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cause_lite.runtime.files import UserError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False
)
console = Console()

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps; auto takes the fastest that is there.")]
Out = Annotated[Path, typer.Option(help="The folder to write to; made if absent.")]


@app.callback()
def _about() -> None:
    """Causal Unsupervised Semantic Segmentation (CAUSE, arXiv 2310.07379), explained and reproduced.

    A first tour, with no download: `cause-lite fit --head mlp --out runs/first`, then
    `cause-lite evaluate runs/first`, then `cause-lite segment photo.jpg`.
    """


@app.command()
def data(
    name: Annotated[
        str,
        typer.Argument(
            help="scenes, camvid, photos, cocostuff27, coco81, coco171, cityscapes, pascalvoc, potsdam3, FOLDER."
        ),
    ],
) -> None:
    """Make or download a data set, check it, and report what it holds, by split and class.

    Downloads go to $CAUSE_DATA (or the cache), and go on where they were cut off.
    """
    from cause_lite import datasets

    datasets.prepare(name, console.print)
    if name == "photos":
        return
    if datasets.is_folder(name):
        loaded = datasets.load_split(name, "train", 64)
        console.print(f"{name}: {len(loaded)} images, {'with' if loaded.labels is not None else 'without'} labels")
        return
    table = Table(title=f"{name}: share of labelled pixels, %")
    counted = datasets.class_shares(name)
    table.add_column("class")
    for split, (count, _) in counted.items():
        table.add_column(f"{split} ({count} images)", justify="right")
    for row, label in enumerate(datasets.load_split(name, next(iter(counted))).classes):
        table.add_row(label, *(f"{100 * shares[row]:.1f}" for _, shares in counted.values()))
    console.print(table)


@app.command()
def pretrain(
    name: Annotated[str, typer.Argument(help="scenes, camvid or photos: whose images to learn from, without labels.")],
    out: Annotated[
        Path | None, typer.Option(help="The folder to write to; where `fit` looks for it when left out.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps in all; the recipe's number when left out.")] = None,
    seed: int = 0,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or mps, for photos; the others use one CPU thread.")
    ] = "auto",
) -> None:
    """Pre-train a small network by self-supervision. Cut off? The same command goes on where it stopped.

    `photos` learns from what `cause-lite data photos` packed, and goes on from there when more steps are asked for.
    """
    from cause_lite.backbones.backbone import pretrained_dir
    from cause_lite.backbones.pretrain import pretrain_and_export, pretraining_recipe
    from cause_lite.backbones.pretrain_photos import PhotosConfig, pretrain_and_export_photos

    folder = out or pretrained_dir(name)
    if name == "photos":
        pretrain_and_export_photos(PhotosConfig(seed=seed, **({"steps": steps} if steps else {})), folder, device)
    else:
        pretrain_and_export(pretraining_recipe(name, seed=seed, steps=steps), folder)
    console.print(f"Backbone written to {folder}; use it with `cause-lite fit --backbone {out or name}`.")


@app.command()
def fit(
    data: Annotated[str, typer.Option(help="A data set (see `cause-lite data`), or a folder of images.")] = "scenes",
    head: Annotated[str, typer.Option(help="tr (transformer) or mlp.")] = "tr",
    seed: int = 0,
    backbone: Annotated[
        str | None, typer.Option(help="Bundled name, folder, or timm name; the recipe's when left out.")
    ] = None,
    clusters: Annotated[
        int | None, typer.Option(help="Groups to find in a folder of images; 12 when left out.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option(help="Leave out images that cannot be read, and list them.")] = False,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; the recipe's when left out.")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile backbone and head (torch.compile).")] = False,
    out: Out = Path("runs/fit"),
    device: Device = "auto",
) -> None:
    """Fit the three steps (clusterbook, head, probes) and write a segmenter. Cut off? The same command goes on.

    `torchrun --nproc-per-node=2 -m cause_lite fit ...` shares the batches among processes.
    """
    from cause_lite.lab.recipes import recipe
    from cause_lite.lab.runs import fit_to

    asked = {"data.clusters": clusters, "optimisation.precision": precision, "data.skip_bad": skip_bad or None}
    asked |= {"optimisation.compiled": compiled or None}
    changes = {name: value for name, value in asked.items() if value is not None}
    fitted = fit_to(recipe(data, head, seed, backbone, changes), out, device)
    took = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in fitted.seconds.items())
    console.print(f"Segmenter written to {out} ({took}); score it with `cause-lite evaluate {out}`.")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A folder that `cause-lite fit` wrote.")],
    out: Annotated[Path, typer.Argument(help="The model folder to write; must not exist.")],
    licence: Annotated[str, typer.Option(help="The licence that the card names.")] = "mit",
) -> None:
    """Write a fitted segmenter as a Hugging Face model folder, with its card."""
    from cause_lite.checkpoints.export import export as write

    console.print(
        f"Model folder written to {write(run, out, licence)}; share it with `cause-lite push {out} OWNER/NAME`."
    )


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A folder that `cause-lite export` wrote.")],
    name: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face Hub.")],
    private: Annotated[bool, typer.Option(help="Visible to its owner alone.")] = False,
) -> None:
    """Upload a model folder to the Hugging Face Hub; needs `hf auth login` once."""
    from cause_lite.checkpoints.hub import push as upload

    console.print(f"Pushed to {upload(folder, name, private)}; load it with cause_lite.load('hf:{name}').")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A folder that `cause-lite fit` wrote.")],
    crf: Annotated[bool, typer.Option(help="Also refine with the dense CRF (slow; needs pydensecrf2).")] = False,
    device: Device = "auto",
) -> None:
    """Score a fitted segmenter: clusters matched to classes over the whole split; writes scores.json there."""
    from cause_lite.lab.runs import evaluate_run

    scores = evaluate_run(run, crf, device)
    table = Table("prediction", "mIoU %", "pixel accuracy %", title=str(run))
    for name, score in scores.items():
        table.add_row(name, f"{score['miou']:.1f}", f"{score['pacc']:.1f}")
    console.print(table)


@app.command()
def reproduce(
    what: Annotated[
        str | None,
        typer.Argument(help="scenes, camvid, a published table (cocostuff27) or its row (cocostuff27/dino-s8-tr)."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds 0, 1, ... to run.", min=1)] = 3,
    crf: Annotated[bool, typer.Option(help="Also refine with the dense CRF (scenes, camvid: the first seed).")] = False,
    released: Annotated[bool, typer.Option(help="Score the authors' checkpoint instead of training.")] = False,
    as_released: Annotated[bool, typer.Option(help="Train with the release's label flow and averaging.")] = False,
    rehearse: Annotated[bool, typer.Option(help="Run every published row on miniatures.")] = False,
    device: Device = "auto",
) -> None:
    """Fill a table: every method over seeds, or a published row from data and weights to its record.

    Without a name, lists the published rows. `torchrun --nproc-per-node=4 -m cause_lite reproduce ROW` shares a
    row among GPUs.
    """
    from cause_lite.lab import reproduce as rows_of
    from cause_lite.lab.recipes import TABLES, row, rows

    if released and as_released:
        raise UserError("reproduce: --released and --as-released exclude each other")
    if rehearse:
        for record in rows_of.rehearse(console.print, device):
            console.print(f"rehearsed {record['row']}, {record['kind']}: {record['seconds']:.0f} s")
    elif what is None:
        table = Table("row", "published mIoU %", "pixel accuracy %", title="Published rows")
        for each in rows():
            table.add_row(each.key, *(str(each.published[key] or "-") for key in ("miou", "pacc")))
        console.print(table)
    elif what.split("/")[0] in TABLES:
        kind = "released" if released else "as_released" if as_released else "clean"
        for each in [row(what)] if "/" in what else rows(what):
            for seed in range(1 if released else seeds):
                record = rows_of.reproduce_row(each, seed, kind, device, console.print, crf)
                console.print(
                    f"{each.key}, {kind}, seed {seed}: mIoU {record['miou']:.1f} %, pAcc {record['pacc']:.1f} %, "
                    f"published {each.published['miou']}; record in {rows_of.write_record(record)}"
                )
    else:
        _reproduce_here(what, seeds, crf)


def _reproduce_here(data: str, seeds: int, crf: bool) -> None:
    """The table of a data set of ours, baselines included; the records are what the book shows."""
    from cause_lite.lab.comparison import summary, table_records
    from cause_lite.runtime.files import project_dir, write_json

    records, target = [], project_dir() / "data" / "records" / f"{data}.json"
    for seed in range(seeds):
        for record in table_records(data, seed, crf and seed == 0):
            records.append(record)
            console.print(f"seed {seed}  {record['method']}: mIoU {record['miou']:.1f} %, pAcc {record['pacc']:.1f} %")
    write_json(target, {"records": records})
    console.print(summary(records).round(1).to_string())
    console.print(f"Records written to {target}")


@app.command()
def audit(
    data: Annotated[str, typer.Option(help="A labelled data set.")] = "scenes",
    head: Annotated[str, typer.Option(help="tr or mlp.")] = "mlp",
    label_flow: Annotated[str, typer.Option(help="clean, or as_released: the release's third step.")] = "clean",
    images: Annotated[int, typer.Option(help="Training images to take.", min=2)] = 64,
    seed: int = 0,
) -> None:
    """Train twice, with true and with permuted labels, and say what differs and what the labels reach.

    Ends with status 1 when labels have a way to a prediction.
    """
    import dataclasses

    from cause_lite.backbones.backbone import load_backbone
    from cause_lite.lab.audit import audit as audit_of
    from cause_lite.lab.recipes import recipe
    from cause_lite.lab.runs import load_training

    config = recipe(data, head, seed, changes={"probe.label_flow": label_flow})
    train = load_training(config)
    labels = train.labels[:images] if train.labels is not None else None
    some = dataclasses.replace(train, images=train.images[:images], labels=labels)
    found = audit_of(config, some, load_backbone(config.backbone))
    table = Table(
        "question", "answer", title=f"{data}, {head}, label flow {label_flow}, {len(some)} images, seed {seed}"
    )
    table.add_row("parameters that the labelled loss reaches", ", ".join(found.reached))
    table.add_row("tensors that differ between true and permuted labels", ", ".join(found.changed) or "none")
    table.add_row("predicted pixels that differ", f"{100 * found.pixels:.2f} %")
    table.add_row("checkpoints without the diagnostic are the same bytes", "yes" if found.same_file else "no")
    console.print(table)
    if not found.clean:
        raise UserError(f"audit: labels reach what predicts ({len(found.reached)} parameters)")
    console.print("Clean: labels reach the linear probe, a diagnostic, and nothing that predicts.")


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="ablations, or labels: what the labels touch in step 3.")],
    data: Annotated[str, typer.Argument(help="scenes or camvid.")],
    seeds: Annotated[int, typer.Option(help="Seeds 0, 1, ... to run.", min=1)] = 5,
    heads: Annotated[str, typer.Option(help="Heads to study, with commas between.")] = "mlp,tr",
    only: Annotated[str, typer.Option(help="Names of runs, with commas between; all when left out.")] = "",
) -> None:
    """Run a study's experiments, one thing changed in each; cut off, the same command does what is missing."""
    from cause_lite.lab import studies

    kinds = {"ablations": studies.ablation_runs, "labels": studies.label_runs}
    if name not in kinds:
        raise UserError(f"no study named {name!r}; choose from {', '.join(kinds)}")
    runs = kinds[name](data, seeds, tuple(heads.split(",")))
    for key, record in studies.run_study(name, data, (r for r in runs if not only or r.name in only.split(","))):
        console.print(f"{key}: mIoU {record['miou']:.1f} %, pAcc {record['pacc']:.1f} %")
    base = studies.BASE if name == "ablations" else "clean"
    console.print(studies.paired(studies.read_study(name, data), base).round(2).to_string())


@app.command()
def bench(
    lines: Annotated[
        list[str] | None, typer.Argument(help="Names of lines, such as modularity; all when left out.")
    ] = None,
) -> None:
    """Measure speed and memory against the formulas in their plain form, as ratios within this process."""
    from cause_lite.lab import bench
    from cause_lite.runtime.device import choose_device

    known = bench.load_lines()
    if unknown := [name for name in lines or () if name not in known]:
        raise UserError(f"bench: no line named {', '.join(unknown)}; choose from {', '.join(known)}")
    for name in lines or known:
        table = Table("case", "ours, s", "baseline, s", "ratio (range)", "ours, MB", "baseline, MB", title=name)
        for row in bench.run(name, known[name]):
            shown = [f"{row[key]:,.4g}" if key in row else "" for key in ("seconds", "baseline_seconds")]
            spread = f" ({row['ratio_low']:.3g} to {row['ratio_high']:.3g})" if "ratio_low" in row else ""
            shown.append(f"{row['ratio']:.3g}{spread}" if "ratio" in row else "")
            shown += [f"{row[key]:,.0f}" if key in row else "" for key in ("megabytes", "baseline_megabytes")]
            table.add_row(row["case"], *shown)
        console.print(table)
    console.print(f"Records written to {bench.records_path(choose_device('auto').type)}")


@app.command()
def segment(
    images: Annotated[list[Path], typer.Argument(help="Photographs: PNG, JPEG, ... of any size up to 100 megapixels.")],
    model: Annotated[
        str, typer.Option(help="A segmenter that ships (scenes) or a folder that `fit` wrote.")
    ] = "scenes",
    out: Out = Path("segments"),
    device: Device = "auto",
) -> None:
    """Segment images: writes NAME.labels.png (cluster numbers) and NAME.overlay.png (colours on the image)."""
    from cause_lite.lab.runs import segment_files

    for written in segment_files(images, model, out, device):
        console.print(str(written))


@app.command()
def verify(
    records: Annotated[Path | None, typer.Option(help="Records of a build; _build/records when left out.")] = None,
    expected: Annotated[Path | None, typer.Option(help="data/expected.json when left out.")] = None,
    accept: Annotated[bool, typer.Option(help="Take the build's numbers as the new expectation instead.")] = False,
) -> None:
    """Compare the numbers that the last build of the book computed with data/expected.json."""
    from cause_lite.pages import headlines

    if accept:
        console.print(
            f"{headlines.accept(records, expected)} numbers accepted; look at the difference before committing it."
        )
        return
    checks = headlines.verify(records, expected)
    table = Table("number", "expected", "tolerance", "found", "status", title="Verified numbers")
    show = lambda value: "-" if value is None else f"{value:.4g}"  # noqa: E731
    for check in checks:
        style = None if check.status == "ok" else "bold red"
        table.add_row(
            check.key, show(check.expected), show(check.tolerance), show(check.found), check.status, style=style
        )
    console.print(table)
    wrong = [check for check in checks if check.status != "ok"]
    if wrong or not checks:
        named = ", ".join(f"{check.key} ({check.status})" for check in wrong) or "nothing was computed"
        raise UserError(f"verify: {len(wrong)} of {len(checks)} numbers do not hold: {named}")
    console.print(f"All {len(checks)} numbers hold.")


def main() -> None:
    """Run the command line; an error that the user can mend is one line and exit status 1."""
    try:
        app(standalone_mode=False)
    except UserError as error:
        sys.exit(f"cause-lite: {' '.join(str(error).split())}")
    except typer.Abort:
        sys.exit("cause-lite: stopped")
    except Exception as error:
        if hasattr(error, "format_message"):  # click's usage errors
            sys.exit(f"cause-lite: {error.format_message()}")
        raise
