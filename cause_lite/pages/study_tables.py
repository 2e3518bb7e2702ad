"""Tables of the studies, as the pages show them: scores, differences with their intervals, and the decisions."""

from __future__ import annotations

import html
import itertools
import re
from typing import Any

import numpy as np
import pandas as pd
import yaml

from cause_lite.backbones.loading import labels_seen
from cause_lite.datasets import camvid, msrc
from cause_lite.lab import contexts, ladder, photographs, studies
from cause_lite.lab.comparison import CAUSE, agreement_summary
from cause_lite.lab.recipes import FOLDER
from cause_lite.lab.statistics import SEEDS_FOR_FINDING, SEEDS_FOR_INTERVAL, compared, device_of
from cause_lite.pages.headlines import record

NO_BREAK = "\N{NO-BREAK SPACE}"
SPLITS = {"val": "validation images", "test": "test images"}
CLASSES = {"msrc": msrc.CLASSES, "camvid": camvid.CLASSES}
DATA_WORDS = {"msrc": "MSRC, 21 classes", "camvid": "CamVid, 11 classes"}
OBJECTIVES = ("contrast", "wholes", "regions", "distilled", "mixed", "crops-48", "crops-96", "longer")  # trials
LADDER_WORDS = {
    "gain": "the clean method less mini-batch k-means",
    "leak": "step 3 as released less the same step with labels detached",
    "loop": "step 3 as released with labels detached less the clean method",
}
SPREAD = (
    "A ± is the sample standard deviation over the seeds of the fit. It covers neither another backbone nor another "
    "choice of test images."
)
INTERVALS = (
    "A difference is paired by seed and, in the studies, by device; early records that name no processor count as one "
    "device. Its interval (from three seeds on) is a paired t interval of 95 %. It is called a finding, and marked, "
    "from five seeds on where its p-value, adjusted by Holm's method for all differences of its table and score that "
    "have five seeds, is at most 0.05. Seeds fewer than five are named with the interval. " + SPREAD
)
LADDER_NOTE = (
    "Means over five seeds of the fit, or as many as are named; in brackets a paired t interval of 95 %. `*` marks a "
    "finding: a p-value of at most 0.05 after Holm's correction for all differences of the data set, head and score. "
    "Only the seed of the fit is covered: not another backbone, other test images or another processor."
)


def with_interval(row: Any) -> str:
    """Return a difference with its interval, such as `+1.2 (+0.3 to +2.1)`; few seeds are named with it or instead."""
    if row.seeds < SEEDS_FOR_INTERVAL:
        spread = f"({row.seeds} seed{'s' if row.seeds > 1 else ''})"
    else:
        few = "" if row.seeds >= SEEDS_FOR_FINDING else f", {row.seeds} seeds"
        spread = f"({row.low:+z.1f} to {row.high:+z.1f}{few})"
    return f"{row.difference:+z.1f} " + spread.replace(" ", NO_BREAK) + ("*" if row.finding else "")


def verdict(row: Any) -> str:
    """Return in words whether a difference is a finding."""
    return "a finding" if row.finding else "no finding"


def with_spread(mean: float, deviation: float) -> str:
    """Return `mean ± deviation`; a deviation that is NaN is left out."""
    return f"{mean:.1f}" + ("" if np.isnan(deviation) else f"{NO_BREAK}±{NO_BREAK}{deviation:.1f}")


def study_table(study: str, data: str) -> pd.DataFrame:
    """Return each run's scores and its differences from its base, a row a head and run; `*` marks a finding."""
    by_score = {name: studies.effects(study, data, score) for score, name in (("miou", "mIoU"), ("pacc", "pAcc"))}
    table = by_score["mIoU"]
    titles = table.set_index("name")["title"].to_dict()
    shown = pd.DataFrame({"head": table["method"], "run": table["title"], "seeds": table["seeds"]})
    shown["compared with"] = ["" if row.base == row.name else titles[row.base] for row in _rows(table)]
    for name, scored in by_score.items():
        shown[f"{name}, %"] = [with_spread(row.mean, row.std) for row in _rows(scored)]
        shown[f"Δ {name}"] = ["" if row.name == row.base else with_interval(row) for row in _rows(scored)]
    return shown[["head", "run", "compared with", "mIoU, %", "Δ mIoU", "pAcc, %", "Δ pAcc", "seeds"]]


def photographs_table(data: str, rung: str = photographs.BACKBONE, fewest: int = 1) -> pd.DataFrame:
    """Return the runs on a backbone that have so many seeds, a row a method and run, gains with their intervals."""
    table = photographs.table(data, rung)
    table = table[table["seeds"] >= fewest]
    runs = [", ".join(filter(None, pair)) for pair in zip(table["method"], table["run"], strict=True)]
    told = table.iloc[:, 2:].replace(r" (±|to) ", rf"{NO_BREAK}\1{NO_BREAK}", regex=True)
    return pd.DataFrame({"method": runs} | {name: told[name].tolist() for name in told})


def agreement_table(data: str) -> pd.DataFrame:
    """Return what needs no one-to-one matching (see `lab.agreement`), a row an unlabelled arm of the ladder."""
    recorded = studies.read_study(photographs.STUDY, data).values()
    runs = [
        run | {"method": f"{run['method']}, {rung}"}
        for rung, arm in itertools.product(reversed(photographs.LADDER), (photographs.FEATURE_ARM, "clean"))
        for run in recorded
        if run["name"] == photographs.named(arm, rung)
    ]
    table = agreement_summary(runs).rename_axis("method").reset_index()
    return table.set_axis(["method", "many-to-one, %", "NMI", "ARI"], axis=1).round(
        {"many-to-one, %": 1, "NMI": 3, "ARI": 3}
    )


def thresholds_table(data: str) -> pd.DataFrame:
    """Return the scores of the thresholds that were tried on validation images, a row a pair, columns by backbone."""
    lines: dict[str, dict[str, str]] = {}
    for (title, rung), part in _choice_runs(data).groupby(["title", "rung"], sort=False):
        line = lines.setdefault(title, {"thresholds": title})
        for key, name in (("miou", "mIoU"), ("pacc", "pAcc")):
            line[f"{rung}: {name}, %"] = with_spread(part[key].mean(), part[key].std())
        line[f"{rung}: seeds"] = str(len(part))
    return pd.DataFrame(lines.values()).fillna("not run")


def thresholds_text(data: str) -> str:
    """Return between which mIoU of seed 0 the thresholds that were tried lie, by backbone and kind, as Markdown."""
    first = _choice_runs(data).query("seed == 0")
    kinds = first["title"].str.split().str[0]
    ranges = first.groupby(["rung", kinds], sort=False)["miou"].agg(["min", "max"])
    lines = []
    for rung, part in ranges.groupby(level=0, sort=False):
        told = [
            f"{low:.1f} to {high:.1f} mIoU with {kind}s" for (_, kind), low, high in part[["min", "max"]].itertuples()
        ]
        lines.append(f"* `{rung}`: {' and '.join(told)}")
    return "\n".join(lines)


def thresholds_gain_text(data: str) -> str:
    """Return what other thresholds change on validation images against those of the test scores, as Markdown.

    Only pairs with enough seeds for an interval are told.
    """
    recorded = studies.read_study(photographs.STUDY, data)
    lines = []
    for rung in photographs.LADDER:
        tried = {key: run for key, run in recorded.items() if run["name"].startswith(f"{rung}/{photographs.CHOICE}")}
        told: dict[str, list[str]] = {}
        for key, score in ladder.SCORES.items():
            for row in _rows(compared(tried, photographs.choice_name(rung), key)):
                if row.name != row.base and row.seeds >= SEEDS_FOR_INTERVAL:
                    told.setdefault(row.title, []).append(f"{with_interval(row)} {score}")
        lines += [f"* {DATA_WORDS[data]}, `{rung}`, {title}: {' and '.join(scores)}" for title, scores in told.items()]
    return "\n".join(lines)


def _choice_runs(data: str) -> pd.DataFrame:
    frame = pd.DataFrame(studies.read_study(photographs.STUDY, data).values())
    frame[["rung", "arm"]] = frame["name"].str.split("/", n=1, expand=True)
    return frame[frame["arm"].str.startswith(photographs.CHOICE)]


def ladder_table(data: str, score: str, head: str = "mlp") -> pd.DataFrame:
    """Return what stronger features change: scores of each arm and differences, a column a backbone; `*`: a finding."""
    columns = {}
    for rung, part in ladder.ladder(data, head, score).groupby(level="backbone", sort=False):
        rows, differences = part.droplevel("backbone"), ladder.differences(part.droplevel("backbone"))
        column = {
            title: with_spread(*rows.loc[arm, ["mean", "std"]]) if arm in rows.index else "not run"
            for arm, title in ladder.ARMS.items()
        }
        for name in ladder.DIFFERENCES:
            column[name] = with_interval(differences[name]) if name in differences else "not run"
        columns[rung] = column
    return pd.DataFrame(columns).rename_axis(index="").reset_index()


def classes_table(data: str, shown: dict[str, tuple[str, str]]) -> pd.DataFrame:
    """Return the IoU of each class in percent, means over seeds, a row a class.

    `shown` gives the name of the runs and their method by the title of a column.
    """
    columns = {}
    for title, runs in shown.items():
        scores = [record["iou"] for record in ladder.runs_of(photographs.STUDY, data, *runs)]
        columns[title] = [f"{score:.1f}" for score in np.mean(scores, axis=0)]
    return pd.DataFrame({"class": CLASSES[data]} | columns)


def ladder_text(
    data: str, rung: str = photographs.BACKBONE, wanted: tuple[str, ...] = tuple(LADDER_WORDS), head: str = "mlp"
) -> str:
    """Return a Markdown list of the wanted differences on a backbone, in points, with their intervals."""
    return _differences_text(_by_score(data, head), rung, wanted)


def _by_score(data: str, head: str) -> dict[str, pd.DataFrame]:
    return {name: ladder.ladder(data, head, key) for key, name in ladder.SCORES.items()}


def _differences_text(tables: dict[str, pd.DataFrame], rung: str, wanted: tuple[str, ...]) -> str:
    by_score = {name: ladder.differences(table.loc[rung]) for name, table in tables.items()}
    lines = []
    for difference in wanted:
        told = [f"{with_interval(rows[difference])} {name}" for name, rows in by_score.items() if difference in rows]
        if told:
            lines.append(f"* `{rung}`, {LADDER_WORDS[difference]}: {' and '.join(told)}")
    return "\n".join(lines)


def leak_text() -> str:
    """Return gain, leak and loop on the strongest backbone for both data sets, and what they cover, as Markdown.

    The lead over full k-means stands beside the gain, which is measured from a weaker k-means.
    """
    leads = ladder.leads(photographs.FULL_ARM).query("backbone == @photographs.BACKBONE")
    parts = [
        f"{name}:\n\n* `{photographs.BACKBONE}`, the clean method less full k-means: "
        f"{_told(leads[leads['data'] == data])}\n{ladder_text(data)}"
        for data, name in DATA_WORDS.items()
    ]
    seen = f"`{photographs.BACKBONE}` was trained on {labels_seen(photographs.BACKBONE)}."
    family = "The differences from full k-means, of all backbones, data sets and scores, are one family of their own."
    return "\n\n".join([*parts, f"{LADDER_NOTE} {family} {seen}"])


def each_backbone_text(difference: str, head: str = "mlp") -> str:
    """Return one difference of the ladder on every data set and backbone that has it, as Markdown."""
    parts = []
    for data, name in DATA_WORDS.items():
        tables = _by_score(data, head)
        rungs = next(iter(tables.values())).index.unique("backbone")
        lines = [_differences_text(tables, rung, (difference,)) for rung in rungs]
        parts.append(f"{name}:\n\n" + "\n".join(filter(None, lines)))
    return "\n\n".join(parts)


def leads_text(baseline: str, head: str = "mlp") -> str:
    """Return how far the clean method is ahead of a baseline on each backbone that has it, as Markdown."""
    parts = []
    for data, part in ladder.leads(baseline, head).groupby("data", sort=False):
        lines = [f"* `{rung}`: {_told(rows)}" for rung, rows in part.groupby("backbone", sort=False)]
        parts.append(f"{DATA_WORDS[data]}:\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _told(rows: pd.DataFrame) -> str:
    return " and ".join(f"{with_interval(row)} {row.score}" for row in _rows(rows))


def lacking_text() -> str:
    """Return what the ladder has not run, or with too few seeds for a finding, as a Markdown list."""
    titles, lines = ladder.ARMS | ladder.OTHER_ARMS, []
    for (data, name), (head, method) in itertools.product(DATA_WORDS.items(), CAUSE.items()):
        lacking = ladder.lacking(data, head)
        clean = lacking.get("clean", {})
        if len(clean) == len(photographs.LADDER) and not any(clean.values()):
            lines.append(f"* {name}, {method}: nothing was run with this head")
        elif lacking:
            arms = [f"    * {titles[arm]}: {_rungs(few)}" for arm, few in lacking.items()]
            lines += [f"* {name}, {method}:", *arms]
    return "\n".join(lines)


def objectives_scores(data: str) -> pd.DataFrame:
    """Return the trials of the study of objectives, a row each: `title`, `minutes` of pre-training, and scores."""
    frame = pd.DataFrame(studies.read_study("objectives", data).values())
    frame[["trial", "method"]] = frame["name"].str.split("/", n=1, expand=True)
    trials = frame.groupby("trial")
    minutes = trials["pretraining"].first().map(lambda trained: trained["seconds"] / 60)
    scores = studies.method_scores(frame, "trial").assign(title=trials["title"].first(), minutes=minutes)
    return scores.loc[list(OBJECTIVES)]


def objectives_table() -> pd.DataFrame:
    """Return the short pre-trainings on photographs, a row each; cells with two numbers are mIoU / pAcc in percent."""
    columns: dict[str, pd.Series] = {}
    for data in DATA_WORDS:
        table = objectives_scores(data)
        columns = {"learns by": table["title"], "minutes": table["minutes"].round(0).astype(int)} | columns
        for method, title in (("kmeans", "k-means"), ("logistic", "labels")):
            columns[f"{data}, {title}"] = both_scores(table, method)
    return pd.DataFrame(columns)


def both_scores(table: pd.DataFrame, method: str) -> pd.Series:
    """Return `mIoU / pAcc` of a method, each with its spread, for each row of `studies.method_scores`."""
    pairs = [(f"{method}_{score}", f"{method}_{score}_std") for score in ("miou", "pacc")]
    return pd.Series(
        {place: " / ".join(with_spread(row[mean], row[std]) for mean, std in pairs) for place, row in table.iterrows()}
    )


def contexts_table(rung: str) -> pd.DataFrame:
    """Return what averaging features changes on a backbone, a row a context; cells are mIoU / pAcc in percent."""
    titles = {"kmeans": "k-means", "logistic": "labels"}
    columns: dict[str, pd.Series] = {}
    for data in DATA_WORDS:
        table = contexts.summary(data).loc[rung]
        columns |= {f"{data}, {title}": both_scores(table, method) for method, title in titles.items()}
    return pd.DataFrame(columns).rename_axis("cells to each side").reset_index()


def contexts_text(rung: str, context: int) -> str:
    """Return what averaging over so many cells to each side adds on a backbone, in mIoU, as a Markdown list."""
    lines = []
    for data, name in DATA_WORDS.items():
        table = contexts.summary(data).loc[rung]
        more = {
            method: table.loc[context, f"{method}_miou"] - table.loc[0, f"{method}_miou"] for method in contexts.METHODS
        }
        lines.append(
            f"* {name}: {more['kmeans']:+z.1f} by k-means, {more['logistic']:+z.1f} by the logistic regression."
        )
    return "\n".join(lines)


def objectives_text() -> str:
    """Return which trial is best and worst by each score, and what longer training adds, as a Markdown list."""
    lines = []
    for data, name in DATA_WORDS.items():
        table = objectives_scores(data)
        trials = table.drop(index=OBJECTIVES[-1])
        told = []
        for method, title in (("kmeans", "k-means"), ("logistic", "the logistic regression")):
            score = table[f"{method}_miou"]
            order = score[trials.index].sort_values()
            best, worst = _highest(order, trials["title"]), trials.loc[order.index[0], "title"]
            more = score[OBJECTIVES[-1]] - score[OBJECTIVES[0]]
            told.append(f"by {title}, best {best}, worst is *{worst}*, and longer training adds {more:+z.1f} mIoU")
        lines.append(f"* {name}: {'; '.join(told)}.")
    return "\n".join(lines)


def _highest(scores: pd.Series, titles: pd.Series) -> str:
    """Return in words what scores highest; what reads the same at the shown precision shares the place."""
    names = [f"*{titles[trial]}*" for trial, score in scores.items() if f"{score:.1f}" == f"{scores.max():.1f}"]
    return f"{'is' if len(names) == 1 else 'are'} {' and '.join(names)}"


def _rungs(seeds: dict[str, int]) -> str:
    """Return backbones in words, those that have no run first."""
    told = []
    for count in sorted(set(seeds.values())):
        rungs = ", ".join(f"`{rung}`" for rung in seeds if seeds[rung] == count)
        told.append(f"not run on {rungs}" if not count else f"({count} seed{'s' if count > 1 else ''} on {rungs})")
    return " ".join(told)


def growth_text(lower: str, higher: str) -> str:
    """Return how much larger the clean gain is on one backbone than on another, and whether that is a finding."""
    rows = _rows(ladder.growth((lower, higher)))
    lines = [f"* {DATA_WORDS[row.data]}, {row.score}: {with_interval(row)}; {verdict(row)}" for row in rows]
    found = [row for row in rows if row.finding]
    told = "is a finding" if len(found) < 2 else "are findings"
    answer = f"Of these {len(rows)} differences, {len(found) or 'none'} {told}."
    return "\n".join([f"The gain on `{higher}` less that on `{lower}`, in points:", "", *lines, "", answer])


def _rows(table: pd.DataFrame) -> list:
    return list(table.itertuples(index=False))


def scored_on(study: str, data: str) -> str:
    """Return which images a study scored and where the runs of each head ran, in words."""
    records = studies.read_study(study, data).values()
    splits = " and ".join(sorted({SPLITS[record["split"]] for record in records}))
    ran = ", ".join(
        f"{method} on {device}" for method, device in sorted({(r["method"], device_of(r)) for r in records})
    )
    return f"scored on {splits}; {ran}"


def gains_text(gains: dict[str, pd.DataFrame]) -> str:
    """Return a Markdown list of the differences of `comparison.gains`, by score, and which are findings."""
    lines = []
    for pairs in zip(*(_rows(table) for table in gains.values()), strict=True):
        told = [f"{with_interval(row)} {score} ({verdict(row)})" for score, row in zip(gains, pairs, strict=True)]
        lines.append(f"* {pairs[0].method} against {pairs[0].base}: {' and '.join(told)}.")
    return "\n".join([*lines, "", INTERVALS])


def record_gains(data: str, gains: dict[str, pd.DataFrame], keys: dict[str, str], config: object) -> None:
    """Record the differences of `comparison.gains`, by score, as headline numbers; `keys` shortens the methods."""
    for score, rows in gains.items():
        for row in _rows(rows):
            name = f"{data}.{keys[row.method]}_over_{keys[row.base]}_{score.split()[-1].lower()}"
            record(name, row.difference, config=config, kind="difference")


def findings(table: pd.DataFrame, unit: str = "mIoU") -> list[str]:
    """Return a sentence for each finding of a table of effects, the largest first; none gives an empty list."""
    found = table[table["finding"]].sort_values("difference", key=abs, ascending=False)
    return [f"{row.method}, {row.title}: {with_interval(row)} {unit}" for row in _rows(found)]


def decisions() -> list[dict]:
    """Return where paper and release differ, what follows, and the ablations of it (recipes/decisions.yaml)."""
    return yaml.safe_load((FOLDER / "decisions.yaml").read_text(encoding="utf-8"))


def effect(study: pd.DataFrame, name: str) -> str:
    """Return the difference in mIoU of one ablation with its interval, for each head that was run, or a dash."""
    return "; ".join(with_interval(row) for row in _rows(study[study["name"] == name])) or "-"


def decisions_table(data: tuple[str, ...] = ("scenes", "camvid")) -> pd.DataFrame:
    """Return what differs, what each side does, and the measured effect in points of mIoU; cells are HTML."""
    by_data = {name: studies.effects("ablations", name) for name in data}
    lines = []
    for entry in decisions():
        cell = {key: _as_html(str(entry[key])) for key in ("release", "ours", "paper")}
        parts = [
            f"{ablation}, {name}: {effect(study, ablation)}"
            for ablation in entry.get("ablations", ())
            for name, study in by_data.items()
            if len(study)
        ]
        measured = "see <a href='audit.html'>An audit</a>" if "study" in entry else "<br>".join(parts)
        sides = f"<b>Paper:</b> {cell['paper']}<br><b>Release:</b> {cell['release']}"
        effects = measured or "not measured"
        lines.append({"what": entry["what"], "paper and release": sides, "we": cell["ours"], "effect on mIoU": effects})
    return pd.DataFrame(lines)


def _as_html(text: str) -> str:
    return re.sub("`(.+?)`", r"<code>\1</code>", html.escape(text))
