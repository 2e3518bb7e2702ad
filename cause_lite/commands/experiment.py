"""Run what the book reports: tables, the audit, studies, speed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from cause_lite.commands.console import Device, Set, say, settings_of, show
from cause_lite.runtime.files import UserError


def reproduce(
    what: Annotated[
        str | None,
        Argument(help="scenes, camvid, a published table (cocostuff27) or its row (cocostuff27/dino-s8-tr)."),
    ] = None,
    seeds: Annotated[int, Option(help="Seeds 0, 1, ... to run.", min=1)] = 5,
    crf: Annotated[bool, Option(help="Also refine with the dense CRF.")] = False,
    released: Annotated[bool, Option(help="Score the authors' checkpoint instead of training.")] = False,
    as_released: Annotated[bool, Option(help="Train with the release's label flow and averaging.")] = False,
    rehearse: Annotated[bool, Option(help="Run every published row on miniatures.")] = False,
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
    kind = "released" if released else "as_released" if as_released else "clean"
    if rehearse:
        from cause_lite.lab.reproduce import rehearse as rehearsed

        for record in rehearsed(say, device):
            say(f"rehearsed {record['row']}, {record['kind']}: {record['seconds']:.0f} s")
    elif what is None:
        from cause_lite.lab.recipes import rows

        listed = [(each.key, *(each.published[key] or "-" for key in ("miou", "pacc"))) for each in rows()]
        show(("row", "published mIoU %", "pixel accuracy %"), listed, "Published rows")
    elif what.split("/")[0] in TABLES:
        _reproduce_rows(what, kind, 1 if released else seeds, crf, settings_of(settings), device)
    elif kind != "clean":
        raise UserError(f"reproduce {what}: --released and --as-released are for published rows")
    elif device != "auto":
        raise UserError(f"reproduce {what}: takes the fastest device of this machine; leave --device out")
    else:
        _reproduce_data(what, seeds, crf, settings_of(settings))


def _reproduce_rows(what: str, kind: str, seeds: int, crf: bool, changes: dict[str, object], device: str) -> None:
    """Run one published row, or all rows of a table."""
    from cause_lite.lab.recipes import row, rows
    from cause_lite.lab.reproduce import reproduce_row, write_record

    for each in [row(what)] if "/" in what else rows(what):
        for seed in range(seeds):
            record = reproduce_row(
                each, seed, kind, device, say, crf, lambda config: config.replace(changes), drawn=not changes
            )
            why_not = "settings were changed" if changes else record["lacking"]
            scores = f"mIoU {record['miou']:.1f} %, pAcc {record['pacc']:.1f} %, published {each.published['miou']}"
            place = f"not recorded, since {why_not}" if why_not else f"record in {write_record(record)}"
            say(f"{each.key}, {kind}, seed {seed}: {scores}; {place}")


def _reproduce_data(data: str, seeds: int, crf: bool, changes: dict[str, object]) -> None:
    """Fill the tables of a data set, baselines included; with changed settings, say their scores and record nothing."""
    from cause_lite.lab import results
    from cause_lite.lab.study import changed, perform, read_study, runs_of

    grid = read_study("tables")
    arms = [name for name, arm in grid.arms.items() if crf or not arm.crf]
    if not changes:
        study("tables", data, seeds, ",".join(arms))
    for run in runs_of(grid, data, seeds) if changes else ():
        if run.arm_name in arms:
            row = results.row(perform(changed(run, changes)))
            scores = f"mIoU {row['miou']:.2f} %, pAcc {row['pacc']:.2f} %"
            say(f"{run.key}: {scores}; not recorded, since settings were changed")


def audit(
    data: Annotated[str, Option(help="A labelled data set.")] = "scenes",
    head: Annotated[str, Option(help="tr or mlp.")] = "mlp",
    label_flow: Annotated[str, Option(help="clean, detached or as_released.")] = "clean",
    images: Annotated[int, Option(help="Training images to take.", min=2)] = 64,
    seed: int = 0,
    settings: Set = None,
) -> None:
    """Train twice, with true and with permuted labels, and say what differs and what the labels reach.

    Ends with status 1 when labels have a way to a prediction.
    """
    from cause_lite.lab.audit import audit_recipe
    from cause_lite.lab.recipes import recipe

    found = audit_recipe(
        recipe(data, head, seed, changes={"probe.label_flow": label_flow} | settings_of(settings)), images
    )
    answers = {
        "parameters that the labelled loss reaches": ", ".join(found.reached),
        "tensors that differ between true and permuted labels": ", ".join(found.changed) or "none",
        "predicted pixels that differ": f"{100 * found.pixels:.2f} %",
        "checkpoints without the diagnostic are the same bytes": "yes" if found.same_file else "no",
    }
    title = f"{data}, {head}, label flow {label_flow}, {found.images} images, seed {seed}"
    show(("question", "answer"), answers.items(), title)
    if not found.clean:
        raise UserError(f"audit: labels reach what predicts ({len(found.reached)} parameters)")
    say("Clean: labels reach the linear probe, a diagnostic, and nothing that predicts.")


def study(
    name: Annotated[str, Argument(help="A study, such as tables; each is a file in lab/studies.")],
    data: Annotated[str, Argument(help="A data set of the study, such as scenes.")],
    seeds: Annotated[int | None, Option(help="Seeds 0, 1, ... to run; the study's when left out.", min=1)] = None,
    only: Annotated[str, Option(help="Names of arms, with commas between; all when left out.")] = "",
) -> None:
    """Run a study's experiments, one thing changed in each; cut off, the same command does what is missing."""
    from cause_lite.lab import results
    from cause_lite.lab.study import run_study

    for key, record in run_study(name, data, seeds, tuple(filter(None, only.split(",")))):
        row = results.row(record)
        say(f"{key}: mIoU {row['miou']:.2f} %, pAcc {row['pacc']:.2f} %, {record['seconds']:.0f} s")
    say(results.summary(results.frame(name, data)).round(2).to_string())


def bench(
    lines: Annotated[list[str] | None, Argument(help="Names of lines, such as modularity; all when left out.")] = None,
) -> None:
    """Measure speed and memory against the formulas in their plain form, as ratios within this process."""
    from cause_lite.lab import bench
    from cause_lite.lab.bench_lines import LINES
    from cause_lite.runtime.device import choose_device

    if unknown := [name for name in lines or () if name not in LINES]:
        raise UserError(f"bench: no line named {', '.join(unknown)}; choose from {', '.join(LINES)}")
    for name in lines or LINES:
        rows = []
        for row in bench.run(name, LINES[name]):
            shown = [f"{row[key]:,.4g}" if key in row else "" for key in ("seconds", "baseline_seconds")]
            spread = f" ({row['ratio_low']:.3g} to {row['ratio_high']:.3g})" if "ratio_low" in row else ""
            shown.append(f"{row['ratio']:.3g}{spread}" if "ratio" in row else "")
            shown += [f"{row[key]:,.0f}" if key in row else "" for key in ("megabytes", "baseline_megabytes")]
            rows.append([row["case"], *shown])
        show(("case", "ours, s", "baseline, s", "ratio (range)", "ours, MB", "baseline, MB"), rows, name)
    say(f"Records written to {bench.records_path(choose_device('auto').type)}")


def gpu_run(
    out: Annotated[Path | None, Option(help="Folder of the record and weights; data/records when left out.")] = None,
    minutes: Annotated[float, Option(help="Time in all; what the measurements leave goes to pre-training.")] = 9.0,
    photos: Annotated[
        Path | None, Option(help="Folder of the packed photographs, and an earlier run's state, in parts.")
    ] = None,
    write_photos: Annotated[Path | None, Option(help="Write the packed photographs there in parts; stop.")] = None,
    miniature: Annotated[bool, Option(help="Go through everything in small, in seconds on a CPU.")] = False,
    shared: Annotated[bool, Option(hidden=True)] = False,
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
            say(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
        return
    if miniature and out is None:
        raise UserError("gpu-run: a miniature is no record; name another folder with --out")
    if shared:
        runs.shared_row(out or runs.default_out(), plan)
        return
    record = runs.run(out or runs.default_out(), minutes, plan, device, photos, say)
    for name, reason in record["failed"].items():
        say(f"{name} failed: {reason}")
    say(f"Record written to {(out or runs.default_out()) / runs.RECORD}")


def verify(
    records: Annotated[Path | None, Option(help="Records of a build; _build/records when left out.")] = None,
    expected: Annotated[Path | None, Option(help="data/expected.json when left out.")] = None,
    accept: Annotated[bool, Option(help="Take the build's numbers as the new expectation instead.")] = False,
) -> None:
    """Compare the numbers that the last build of the book computed with data/expected.json."""
    from cause_lite.pages import verify as verification

    if accept:
        count = verification.accept(records, expected)
        say(f"{count} numbers accepted; look at the difference before committing it.")
        return
    checks = verification.verify(records, expected)
    rows = [[check.key, *check.values(), check.status] for check in checks]
    show(("number", "record", "this build", "allowed", "status"), rows, "Verified numbers")
    if wrong := verification.summary(checks):
        raise UserError(f"verify: {wrong}")
    say(f"All {len(checks)} numbers hold.")


COMMANDS = (reproduce, audit, study, bench, gpu_run, verify)
