"""Run what the book reports: tables, the audit, studies, speed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cause_lite.commands.console import Device, Set, console, settings_of
from cause_lite.runtime.files import UserError


def reproduce(
    what: Annotated[
        str | None,
        typer.Argument(help="scenes, camvid, a published table (cocostuff27) or its row (cocostuff27/dino-s8-tr)."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds 0, 1, ... to run.", min=1)] = 5,
    crf: Annotated[bool, typer.Option(help="Also refine with the dense CRF.")] = False,
    released: Annotated[bool, typer.Option(help="Score the authors' checkpoint instead of training.")] = False,
    as_released: Annotated[bool, typer.Option(help="Train with the release's label flow and averaging.")] = False,
    rehearse: Annotated[bool, typer.Option(help="Run every published row on miniatures.")] = False,
    settings: Set = None,
    device: Device = "auto",
) -> None:
    """Fill a table: every method over seeds, or a published row from data and weights to its record.

    Without a name, lists the published rows. `torchrun --nproc-per-node=4 -m cause_lite reproduce ROW` shares a
    row among GPUs. With `--set`, scores are printed and no record is written: they are not the row's.
    """
    from cause_lite.lab.recipes import TABLES

    if released and as_released:
        raise UserError("reproduce: --released and --as-released exclude each other")
    if rehearse and what:
        raise UserError(f"reproduce: --rehearse runs every row; leave out {what!r}")
    if rehearse:
        _rehearse(device)
    elif what is None:
        _list_rows()
    elif what.split("/")[0] in TABLES:
        kind = "released" if released else "as_released" if as_released else "clean"
        _reproduce_rows(what, kind, 1 if released else seeds, crf, settings_of(settings), device)
    elif released or as_released:
        raise UserError(f"reproduce {what}: --released and --as-released are for published rows")
    elif device != "auto":
        raise UserError(f"reproduce {what}: takes the fastest device of this machine; leave --device out")
    else:
        _reproduce_data(what, seeds, crf, settings_of(settings))


def _rehearse(device: str) -> None:
    from cause_lite.lab.reproduce import rehearse

    for record in rehearse(console.print, device):
        console.print(f"rehearsed {record['row']}, {record['kind']}: {record['seconds']:.0f} s")


def _list_rows() -> None:
    from cause_lite.lab.recipes import rows

    table = Table("row", "published mIoU %", "pixel accuracy %", title="Published rows")
    for each in rows():
        table.add_row(each.key, *(str(each.published[key] or "-") for key in ("miou", "pacc")))
    console.print(table)


def _reproduce_rows(what: str, kind: str, seeds: int, crf: bool, changes: dict[str, object], device: str) -> None:
    """Run one published row, or all rows of a table."""
    from cause_lite.lab.recipes import row, rows
    from cause_lite.lab.reproduce import reproduce_row, write_record

    for each in [row(what)] if "/" in what else rows(what):
        for seed in range(seeds):
            record = reproduce_row(
                each, seed, kind, device, console.print, crf, lambda config: config.replace(changes), drawn=not changes
            )
            why_not = "settings were changed" if changes else record["lacking"]
            scores = f"mIoU {record['miou']:.1f} %, pAcc {record['pacc']:.1f} %, published {each.published['miou']}"
            place = f"not recorded, since {why_not}" if why_not else f"record in {write_record(record)}"
            console.print(f"{each.key}, {kind}, seed {seed}: {scores}; {place}")


def _reproduce_data(data: str, seeds: int, crf: bool, changes: dict[str, object]) -> None:
    """Fill the table of `scenes` or `camvid`, baselines included; the book shows its records."""
    from cause_lite.lab.comparison import CAPTIONS, captioned_tables, seed_records, table_records
    from cause_lite.runtime.files import project_dir, write_json

    if data not in (known := sorted({name for name, _ in CAPTIONS})):
        raise UserError(f"reproduce: no table named {data!r}; choose from {', '.join(known)}, or a published row")
    records, target = [], project_dir() / "data" / "records" / f"{data}.json"
    for seed in range(seeds):
        # Each seed's records are kept, so that the command, cut off, goes on where it was.
        for record in table_records(data, seed, crf, changes) if changes else seed_records(data, seed, crf):
            records.append(record)
            console.print(f"seed {seed}  {record['method']}: mIoU {record['miou']:.1f} %, pAcc {record['pacc']:.1f} %")
    for caption, table in captioned_tables(records):
        console.print(f"{caption}\n{table.round(1).to_string()}")
    if changes:
        console.print("Not recorded, since settings were changed")
        return
    write_json(target, {"records": records})
    console.print(f"Records written to {target}")


def audit(
    data: Annotated[str, typer.Option(help="A labelled data set.")] = "scenes",
    head: Annotated[str, typer.Option(help="tr or mlp.")] = "mlp",
    label_flow: Annotated[str, typer.Option(help="clean, detached or as_released.")] = "clean",
    images: Annotated[int, typer.Option(help="Training images to take.", min=2)] = 64,
    seed: int = 0,
    settings: Set = None,
) -> None:
    """Train twice, with true and with permuted labels, and say what differs and what the labels reach.

    Ends with status 1 when labels have a way to a prediction.
    """
    import dataclasses

    from cause_lite.backbones import load_backbone
    from cause_lite.lab.audit import audit as audit_of
    from cause_lite.lab.recipes import recipe
    from cause_lite.lab.runs import load_training

    config = recipe(data, head, seed, changes={"probe.label_flow": label_flow} | settings_of(settings))
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


def study(
    name: Annotated[
        str,
        typer.Argument(
            help="ablations; labels: what they touch; photographs: stronger features; backbones: their seed; "
            "concepts: the seed of numbers in chapters; machines: processor and threads of this process; "
            "objectives: short pre-trainings on photographs; contexts: how far features are averaged."
        ),
    ],
    data: Annotated[
        str,
        typer.Argument(
            help="scenes or camvid; photographs, objectives, contexts: msrc or camvid; backbones, concepts: scenes."
        ),
    ],
    seeds: Annotated[int, typer.Option(help="Seeds 0, 1, ... to run.", min=1)] = 5,
    heads: Annotated[str, typer.Option(help="Heads to study, with commas between.")] = "mlp,tr",
    only: Annotated[str, typer.Option(help="Names of runs, with commas between; all when left out.")] = "",
) -> None:
    """Run a study's experiments, one thing changed in each; cut off, the same command does what is missing."""
    from cause_lite.lab import backbone_seeds, concept_seeds, contexts, machines, objectives, photographs, studies

    kinds = {
        "ablations": studies.ablation_runs,
        "labels": studies.label_runs,
        photographs.STUDY: photographs.photograph_runs,
        backbone_seeds.STUDY: backbone_seeds.backbone_runs,
        concept_seeds.STUDY: concept_seeds.concept_runs,
        machines.STUDY: machines.machine_runs,
        objectives.STUDY: objectives.objective_runs,
        contexts.STUDY: contexts.context_runs,
    }
    if name not in kinds:
        raise UserError(f"no study named {name!r}; choose from {', '.join(kinds)}")
    runs, wanted = list(kinds[name](data, seeds, tuple(heads.split(",")))), set(filter(None, only.split(",")))
    if unknown := wanted - (names := {run.name for run in runs}):
        raise UserError(
            f"study {name}: --only {', '.join(sorted(unknown))}: no such run; choose from {', '.join(sorted(names))}"
        )
    for key, record in studies.run_study(name, data, (r for r in runs if not wanted or r.name in wanted)):
        scores = f"mIoU {record['miou']:.1f} %, pAcc {record['pacc']:.1f} %" if "miou" in record else record["values"]
        console.print(f"{key}: {scores}")
    summaries = {
        photographs.STUDY: lambda: photographs.table(data),
        backbone_seeds.STUDY: lambda: backbone_seeds.deviations(studies.read_study(name, data)),
        concept_seeds.STUDY: lambda: concept_seeds.summary(data),
        machines.STUDY: lambda: machines.moves(data),
        objectives.STUDY: lambda: objectives.summary(data),
        contexts.STUDY: lambda: contexts.summary(data),
    }
    summary = summaries.get(name, lambda: studies.effects(name, data).drop(columns="title"))
    console.print(summary().round(2).to_string())


def bench(
    lines: Annotated[
        list[str] | None, typer.Argument(help="Names of lines, such as modularity; all when left out.")
    ] = None,
) -> None:
    """Measure speed and memory against the formulas in their plain form, as ratios within this process."""
    from cause_lite.lab import bench
    from cause_lite.lab.bench_lines import LINES
    from cause_lite.runtime.device import choose_device

    if unknown := [name for name in lines or () if name not in LINES]:
        raise UserError(f"bench: no line named {', '.join(unknown)}; choose from {', '.join(LINES)}")
    for name in lines or LINES:
        table = Table("case", "ours, s", "baseline, s", "ratio (range)", "ours, MB", "baseline, MB", title=name)
        for row in bench.run(name, LINES[name]):
            shown = [f"{row[key]:,.4g}" if key in row else "" for key in ("seconds", "baseline_seconds")]
            spread = f" ({row['ratio_low']:.3g} to {row['ratio_high']:.3g})" if "ratio_low" in row else ""
            shown.append(f"{row['ratio']:.3g}{spread}" if "ratio" in row else "")
            shown += [f"{row[key]:,.0f}" if key in row else "" for key in ("megabytes", "baseline_megabytes")]
            table.add_row(row["case"], *shown)
        console.print(table)
    console.print(f"Records written to {bench.records_path(choose_device('auto').type)}")


def gpu_run(
    out: Annotated[
        Path | None, typer.Option(help="Folder of the record and weights; data/records when left out.")
    ] = None,
    minutes: Annotated[
        float, typer.Option(help="Time in all; what the measurements leave goes to pre-training.")
    ] = 9.0,
    photos: Annotated[
        Path | None, typer.Option(help="Folder of the packed photographs, and an earlier run's state, in parts.")
    ] = None,
    write_photos: Annotated[
        Path | None, typer.Option(help="Write the packed photographs there in parts; stop.")
    ] = None,
    miniature: Annotated[bool, typer.Option(help="Go through everything in small, in seconds on a CPU.")] = False,
    shared: Annotated[bool, typer.Option(hidden=True)] = False,
    device: Device = "auto",
) -> None:
    """Measure every stage of published rows on a GPU, then pre-train on photographs for the time that is left.

    The record holds the device, its driver, rates, fractions of the peak, the longest kernels, memory and ratios. With
    several GPUs it also holds how rates grow. From the state in parts that is written, the next run goes on.
    """
    from cause_lite.datasets import photo_parts
    from cause_lite.datasets import photos as packed
    from cause_lite.lab import gpu_run as runs

    plan = runs.MINIATURE if miniature else runs.FULL
    if write_photos is not None:
        for path in photo_parts.write_parts(packed.load(), write_photos):
            console.print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
        return
    if miniature and out is None:
        raise UserError("gpu-run: a miniature is no record; name another folder with --out")
    if shared:
        runs.shared_row(out or runs.default_out(), plan)
        return
    record = runs.run(out or runs.default_out(), minutes, plan, device, photos, console.print)
    for name, reason in record["failed"].items():
        console.print(f"{name} failed: {reason}")
    console.print(f"Record written to {(out or runs.default_out()) / runs.RECORD}")


def verify(
    records: Annotated[Path | None, typer.Option(help="Records of a build; _build/records when left out.")] = None,
    expected: Annotated[Path | None, typer.Option(help="data/expected.json when left out.")] = None,
    accept: Annotated[bool, typer.Option(help="Take the build's numbers as the new expectation instead.")] = False,
) -> None:
    """Compare the numbers that the last build of the book computed with data/expected.json."""
    from cause_lite.pages import verify as verification

    if accept:
        console.print(
            f"{verification.accept(records, expected)} numbers accepted; look at the difference before committing it."
        )
        return
    checks = verification.verify(records, expected)
    table = Table("number", "expected", "tolerance", "found", "status", title="Verified numbers")
    for check in checks:
        numbers = (check.expected, check.tolerance, check.found)
        cells = ["-" if number is None else f"{number:.4g}" for number in numbers]
        table.add_row(check.key, *cells, check.status, style=None if check.status == "ok" else "bold red")
    console.print(table)
    wrong = [check for check in checks if check.status != "ok"]
    if wrong or not checks:
        named = ", ".join(f"{check.key} ({check.status})" for check in wrong) or "nothing was computed"
        raise UserError(f"verify: {len(wrong)} of {len(checks)} numbers do not hold: {named}")
    console.print(f"All {len(checks)} numbers hold.")
