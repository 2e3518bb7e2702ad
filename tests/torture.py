"""`make torture`: kill a fit at random moments, and feed every reader damaged files; counts what held.

A case holds when it ends in a result or in one error that names the file. Anything else is a failure: another
exception, more than the seconds or bytes allowed, or a file written elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import tifffile
import torch
from accelerate.utils import patch_environment
from PIL import Image
from safetensors.torch import save_file

from cause_lite import checkpoints, datasets
from cause_lite.backbones import load_backbone
from cause_lite.checkpoints.matching import ClusterMatch, Matching, write_matching
from cause_lite.datasets import archives, scenes
from cause_lite.datasets.arrays import Reading
from cause_lite.datasets.label_table import read_codes, read_table
from cause_lite.datasets.mat_files import read_mat_ids
from cause_lite.datasets.picture_files import read_picture, stored_ids, stored_rgb
from cause_lite.datasets.tiff import read_georeference
from cause_lite.head import build_head
from cause_lite.lab import recipes, rehearsal
from cause_lite.pages import verify
from cause_lite.probe import ClusterProbe, LinearProbe
from cause_lite.runtime import provenance
from cause_lite.runtime.device import state_kept
from cause_lite.runtime.files import UserError, project_dir, read_json, write_json
from cause_lite.runtime.journal import Journal, Stage
from cause_lite.segmenter import Segmenter

SECONDS, MEGABYTES = 20.0, 1500.0  # what one case may take
FIT = """
import sys
from cause_lite import datasets
from cause_lite.lab import recipes, runs
from cause_lite.runtime import journal
whole = datasets.load_split
runs.load_split = lambda *a: __import__("dataclasses").replace(
    whole("scenes", "train"), images=whole("scenes", "train").images[:48], labels=whole("scenes", "train").labels[:48])
journal.Journal.__init__.__defaults__ = (None, "", 0.0)
config = recipes.recipe("scenes", "tr", changes={
    "clusterbook.concepts": 32, "head.projection_dim": 16, "head.epochs": 6, "probe.epochs": 3})
runs.fit_to(config, sys.argv[1], "cpu")
"""


# ---------------------------------------------------------------- kills


def fit_command(out: Path, cache: Path) -> subprocess.Popen:
    environment = os.environ | {"CAUSE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", FIT, str(out)], env=environment, stderr=subprocess.PIPE, text=True)


def kills(moments: int, seed: int = 0) -> dict:
    """kill -9 at random moments, each time starting the same command again; the end must be the same bytes."""
    rng, survived, tried = np.random.default_rng(seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        start = time.perf_counter()
        fit_command(root / "whole", root / "cache-whole").communicate()
        usual = time.perf_counter() - start
        wanted = (root / "whole" / "segmenter.safetensors").read_bytes()
        stages: dict[str, int] = {}
        while tried < moments:
            out, cache, round_kills = root / f"run-{tried}", root / f"cache-{tried}", 0
            while True:
                process = fit_command(out, cache)
                # Early moments hit the features and their file, later ones the steps and the journals.
                wait = rng.uniform(0.15, 1.0) * usual
                try:
                    process.communicate(timeout=wait if tried + round_kills < moments and round_kills < 5 else None)
                    break
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
                    round_kills += 1
                    saved = sorted((out / "resume").glob("*.pt"), key=lambda p: p.stat().st_mtime)
                    stage = saved[-1].stem if saved else "before the first step"
                    stages[stage] = stages.get(stage, 0) + 1
            whole = (out / "segmenter.safetensors").read_bytes() == wanted if process.returncode == 0 else False
            left = [p for p in out.iterdir() if ".part" in p.name or p.name == "resume"]
            tried += round_kills or 1
            survived += (round_kills or 1) if whole and not left else 0
    return {"tried": tried, "survived": survived, "latest stage saved at the kill": stages}


# ---------------------------------------------------------------- damaged files


@dataclass
class Target:
    """A kind of file: how to write a good one into a folder, and how it is read."""

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], object]


@dataclass
class Tally:
    """What came of the cases of one target."""

    cases: int = 0
    results: int = 0
    errors: int = 0
    failures: list[str] = field(default_factory=list)
    longest: float = 0.0
    megabytes: float = 0.0


def picture(name: str, mode: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        Image.fromarray(scenes.render(0, "train", 0).image).convert(mode).save(folder / name)
        return folder / name

    return make


def label_map(folder: Path) -> Path:
    Image.fromarray(scenes.render(0, "train", 0).labels.astype(np.uint8)).save(folder / "labels.png")
    return folder / "labels.png"


PICTURES = (
    ("b.png", "RGBA"),
    ("b.png", "P"),
    ("b.jpg", "RGB"),
    ("b.tif", "RGB"),
    ("b.tif", "F"),
    ("b.tif", "CMYK"),
    ("b.webp", "RGBA"),
    ("b.avif", "RGB"),
    ("b.gif", "P"),
    ("b.bmp", "RGB"),
)


def label_csv(folder: Path) -> Path:
    (folder / "labels.csv").write_text("id,name,colour,ignore\n0,sky,#87ceeb,\n1,land,#8b4513,\n255,void,,yes\n")
    return folder / "labels.csv"


def stage_file(name: str) -> Callable[[Path], Path]:
    """One file of a miniature benchmark."""

    def make(folder: Path) -> Path:
        rehearsal.write_stage(folder, set())
        return folder / name

    return make


def reads_split(name: str, folders_up: int) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        with patch_environment(CAUSE_DATA=str(path.parents[folders_up])):
            split = datasets.load_split(name, "val", 32)
            return split.images[:], split.labels[:]

    return read


def recipe_file(folder: Path) -> Path:
    target = folder / "rows" / "cocostuff27" / "dino-s8-tr.yaml"
    target.parent.mkdir(parents=True)
    shutil.copy(recipes.FOLDER / "rows" / "cocostuff27" / "dino-s8-tr.yaml", target)
    return target


def small_segmenter(folder: Path) -> Path:
    torch.manual_seed(0)
    codebook = torch.randn(8, 16)
    head = build_head("tr", 16, 4, 16, codebook)
    segmenter = Segmenter(head, codebook, ClusterProbe(3, 4), LinearProbe(3, 4), None, 32, ("a", "b", "c"))
    checkpoints.save(segmenter, folder)
    return folder / "segmenter.safetensors"


def reads_segmenter(path: Path) -> object:
    return checkpoints.load(path.parent)


def reads_backbone(path: Path) -> object:
    return load_backbone(str(path.parent))


def vit_card(folder: Path) -> Path:
    for name in ("vit.json", "vit.safetensors"):
        shutil.copy(project_dir() / "data" / "backbones" / "scenes" / name, folder)
    return folder / "vit.json"


def journal_stage() -> Stage:
    generator = torch.Generator().manual_seed(0)
    return Stage("Head", {"learner": torch.nn.Linear(3, 2)}, generator, torch.arange(8), [0.5])


def journal_file(folder: Path) -> Path:
    Journal(folder, "k").step(journal_stage(), end=True)
    return folder / "Head.pt"


def reads_journal(path: Path) -> object:
    with state_kept():
        return Journal(path.parent, "k").restore(journal_stage())


def released_file(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        content = {}
        for part in ("head", "head_ema"):
            for layer, shape in (("f1", (4, 16)), ("f2.0", (16, 16)), ("f2.2", (4, 16))):
                content |= {
                    f"{part}.{layer}.weight": torch.randn(*shape, 1, 1),
                    f"{part}.{layer}.bias": torch.zeros(shape[0]),
                }
        content |= {"linear.f.weight": torch.randn(3, 4, 1, 1), "linear.f.bias": torch.zeros(3)}
        torch.save(content, folder / "segment.pth")
        torch.save({"cluster_probe": torch.randn(3, 4)}, folder / "cluster.pth")
        np.save(folder / "modular.npy", np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32))
        return folder / name

    return make


def reads_released(path: Path) -> object:
    files = {
        name: path.parent / f"{name}.{end}"
        for name, end in (("segment", "pth"), ("cluster", "pth"), ("modular", "npy"))
    }
    return checkpoints.load_released(**files)


def archive(kind: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        inner = folder / "inner" / "data"
        inner.mkdir(parents=True)
        for number in range(3):
            (inner / f"{number}.txt").write_text("line\n" * (50 + number))
        return Path(shutil.make_archive(str(folder / "archive"), kind, folder / "inner"))

    return make


def reads_archive(path: Path) -> object:
    root = path.parent / "root"
    root.mkdir(exist_ok=True)
    return archives.unpack(path, root, archives.Archive("", "", 10**6, 100, {"data/": ""}))


def expected_file(folder: Path) -> Path:
    whole = read_json(verify.expected_path())
    write_json(folder / "expected.json", whole | {"numbers": dict(list(whole["numbers"].items())[:6])})
    return folder / "expected.json"


def reads_expected(path: Path) -> object:
    (path.parent / "none").mkdir(exist_ok=True)
    return verify.verify(path.parent / "none", path)


def record_file(folder: Path) -> Path:
    (folder / "records").mkdir()
    entry = {"key": "a.b", "value": 1.5, "unit": "%", "digits": 1, "spread": 0.5, "seed": 0}
    entry |= {"config_hash": "x", "commit": "c", "environment": {}}
    write_json(folder / "records" / "a.b.json", entry)
    return folder / "records" / "a.b.json"


def reads_record(path: Path) -> object:
    return verify.verify(path.parent, verify.expected_path())


def weights_file(folder: Path) -> Path:
    save_file({"cls_token": torch.zeros(1, 1, 8)}, folder / "msn_vit_small_16.safetensors")
    rehearsal.write_weights("msn_vit_small_16", folder / "weights")
    return folder / "weights" / "msn_vit_small_16.pth"


def reads_weights(path: Path) -> object:
    with patch_environment(CAUSE_DATA=str(path.parents[1])):
        return load_backbone("msn_vit_small_16")


def geotiff(folder: Path) -> Path:
    tags = ((33550, "d", 3, (10.0, 10.0, 0.0), True), (33922, "d", 6, (0.0, 0.0, 0.0, 5e5, 4.6e6, 0.0), True))
    levels = scenes.render(0, "train", 0).image.astype(np.uint16) * 16
    tifffile.imwrite(folder / "b.tif", levels, photometric="rgb", extratags=tags)
    return folder / "b.tif"


def stack(folder: Path) -> Path:
    frames = np.stack([scenes.render(0, "train", number).image[..., 0] for number in range(3)])
    tifffile.imwrite(folder / "b.tif", frames, photometric="minisblack")
    return folder / "b.tif"


def matching_file(folder: Path) -> Path:
    small_segmenter(folder)
    clusters = [ClusterMatch(cluster=number, one_to_one=None, most="sky", share=0.5, pixels=9) for number in range(3)]
    write_matching(
        folder, Matching(data="a", split="train", images=2, classes=["sky"], clusters=clusters, date=provenance.now())
    )
    return folder / "matching.json"


def reads_folder(path: Path) -> object:
    """Every photograph and label map of the folder that the damaged file is in."""
    split = datasets.load_split(str(path.parents[1] if path.parent.name == "labels" else path.parent), "train", 32)
    return split.images[:], None if split.labels is None else split.labels[:]


def labelled_photograph(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "labels").mkdir()
        picture("a.jpg", "RGB")(folder)
        label_map(folder).rename(folder / "labels" / "a.png")
        rows = "".join(f"{number},class {number}\n" for number in range(16))
        (folder / "labels.csv").write_text("id,name\n" + rows)
        return folder / name

    return make


COCO = "cocostuff/images/val2017/000000000001.jpg"
TARGETS = [
    *(Target(f"picture, {mode} {name}", picture(name, mode), read_picture) for name, mode in PICTURES),
    Target("GeoTIFF of 16 bits", geotiff, read_picture),
    Target("georeference of a GeoTIFF", geotiff, read_georeference),
    Target("one image of a stack", stack, partial(read_picture, reading=Reading(frame=2))),
    Target("photograph of a labelled folder", labelled_photograph("a.jpg"), reads_folder),
    Target("label map of a labelled folder", labelled_photograph("labels/a.png"), reads_folder),
    Target("classes of a labelled folder", labelled_photograph("labels.csv"), reads_folder),
    Target("matching of a model", matching_file, reads_segmenter),
    Target("label map of any kind", label_map, read_codes),
    Target("labels.csv", label_csv, read_table),
    Target("photograph, PNG", picture("a.png", "RGB"), stored_rgb),
    Target("photograph, JPEG", picture("a.jpg", "RGB"), stored_rgb),
    Target("photograph, WebP", picture("a.webp", "RGB"), stored_rgb),
    Target("photograph, palette GIF", picture("a.gif", "P"), stored_rgb),
    Target("label map, PNG", label_map, stored_ids),
    Target("label map, Potsdam's .mat", stage_file("potsdam/gt/val_0.mat"), read_mat_ids),
    Target("COCO image in its layout", stage_file(COCO), reads_split("cocostuff27", 3)),
    Target(
        "COCO label map in its layout",
        stage_file(COCO.replace("images", "annotations").replace("jpg", "png")),
        reads_split("cocostuff27", 3),
    ),
    Target(
        "COCO list file",
        stage_file("cocostuff/curated/val2017/Coco164kFull_Stuff_Coarse_7.txt"),
        reads_split("cocostuff27", 3),
    ),
    Target(
        "VOC list file",
        stage_file("pascalvoc/VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"),
        reads_split("pascalvoc", 5),
    ),
    Target("recipe, YAML", recipe_file, recipes.read_row),
    Target("segmenter, safetensors", small_segmenter, reads_segmenter),
    Target("segmenter, JSON", lambda f: small_segmenter(f).with_name("segmenter.json"), reads_segmenter),
    Target("backbone card, JSON", vit_card, reads_backbone),
    Target("backbone, safetensors", lambda f: vit_card(f).with_name("vit.safetensors"), reads_backbone),
    Target("backbone, released pickle", weights_file, reads_weights),
    Target("journal of a fit", journal_file, reads_journal),
    Target("released segmenter, pickle", released_file("segment.pth"), reads_released),
    Target("released clusters, pickle", released_file("cluster.pth"), reads_released),
    Target("released codebook, .npy", released_file("modular.npy"), reads_released),
    Target("archive, zip", archive("zip"), reads_archive),
    Target("archive, tar.gz", archive("gztar"), reads_archive),
    Target("expected values, JSON", expected_file, reads_expected),
    Target("record of a number, JSON", record_file, reads_record),
]

WORDS = [
    b"NaN",
    b"-1",
    b"1e309",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'"x"',
    b"..",
    b"/",
    "\u202e\u00fc".encode(),
    b"9" * 400,
    b"",
]


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """One damage: bits flipped, cut, doubled, stretches zeroed or shuffled, hostile words, or another file."""
    kind, data = rng.integers(8), bytearray(content)
    at = int(rng.integers(max(1, len(data))))
    if kind == 0:
        for place in rng.integers(0, max(1, len(data)), rng.integers(1, 20)):
            if data:
                data[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        data = data[:at]
    elif kind == 2:
        data = data + data[at:]
    elif kind == 3:
        data[at : at + 64] = bytes(min(64, max(0, len(data) - at)))
    elif kind == 4:
        stretch = data[at : at + 256]
        data[at : at + 256] = bytes(rng.permutation(np.frombuffer(bytes(stretch), np.uint8)))
    elif kind == 5:
        data[at : at + int(rng.integers(1, 12))] = WORDS[int(rng.integers(len(WORDS)))]
    elif kind == 6:
        data = _swapped(content, rng)
    else:
        data = bytearray([b"", b"<html>login</html>", b"\0" * 5000, rng.bytes(3000), b"{" * 3000][int(rng.integers(5))])
    return bytes(data)


def _swapped(content: bytes, rng: np.random.Generator) -> bytes:
    """In JSON, one value for a hostile one; in any other text, one word."""
    try:
        tree = json.loads(content)
    except ValueError:
        words = content.split(b" ")
        words[int(rng.integers(len(words)))] = WORDS[int(rng.integers(len(WORDS)))]
        return b" ".join(words)
    hostile = [None, float("nan"), -1, 10**12, "x" * 5000, "\u202e", [], {}, True, [[1]], "../../etc", 0, 2.5, "0"]
    at = tree
    while isinstance(at, dict | list) and at:
        keys = list(at) if isinstance(at, dict) else range(len(at))
        key = keys[int(rng.integers(len(keys)))]
        if not isinstance(at[key], dict | list) or not at[key] or rng.random() < 0.5:
            at[key] = hostile[int(rng.integers(len(hostile)))]
            break
        at = at[key]
    return json.dumps(tree).encode()


def tree_of(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def fuzz(target: Target, cases: int, seed: int = 0) -> Tally:
    """Damage the target's file `cases` times, each time from a whole one, and read it."""
    tally, process = Tally(), psutil.Process()
    for case in range(cases):
        rng = np.random.default_rng([seed, TARGETS.index(target), case])
        with tempfile.TemporaryDirectory() as folder:
            outer = Path(folder)
            (outer / "in").mkdir()
            path = target.make(outer / "in")
            path.write_bytes(damaged(path.read_bytes(), rng))
            before, memory, start = tree_of(outer), process.memory_info().rss, time.perf_counter()
            reason = _read(target, path, outer, tally)
            taken, more = time.perf_counter() - start, (process.memory_info().rss - memory) / 1e6
            tally.longest, tally.megabytes = max(tally.longest, taken), max(tally.megabytes, more)
            strays = {name for name in tree_of(outer) - before if not name.startswith(("in/root", "in/none"))}
            if reason is None and (taken > SECONDS or more > MEGABYTES or strays):
                reason = f"took {taken:.0f} s, {more:.0f} MB, wrote {sorted(strays)}"
            if reason:
                tally.failures.append(f"case {case}: {reason}")
        tally.cases += 1
    return tally


def _read(target: Target, path: Path, outer: Path, tally: Tally) -> str | None:
    """Read the damaged file -> what is wrong with how that ended, None when nothing is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(path)
        tally.results += 1
    except UserError as error:
        tally.errors += 1
        if not any(name in str(error) for name in (path.name, path.stem, str(outer))):
            return f"the error names no file: {error}"
    except Exception:
        return traceback.format_exc(limit=-3)
    return None


def main(cases: int = 48, moments: int = 20) -> None:
    """Damage each file `cases` times, kill at `moments` moments, and write data/records/torture.json.

    Ends with status 1 when something did not hold.
    """
    from rich.console import Console
    from rich.table import Table

    console, table = Console(), Table("file", "cases", "read", "refused", "failures", "longest, s", "most, MB")
    lines, failures = {}, []
    for target in TARGETS:
        tally = fuzz(target, cases)
        failures += [f"{target.name}, {text}" for text in tally.failures]
        shown = (
            tally.cases,
            tally.results,
            tally.errors,
            len(tally.failures),
            f"{tally.longest:.1f}",
            f"{tally.megabytes:.0f}",
        )
        table.add_row(target.name, *map(str, shown))
        lines[target.name] = vars(tally) | {"failures": len(tally.failures)}
    console.print(table)
    found = kills(moments)
    console.print(f"kills: {found['survived']} of {found['tried']} survived; {found['latest stage saved at the kill']}")
    for text in failures:
        console.print(text, markup=False)
    total = sum(line["cases"] for line in lines.values())
    about = {
        "files": lines,
        "kills": found,
        "cases": total,
        "failures": len(failures),
        "allowed": {"seconds": SECONDS, "MB": MEGABYTES},
        "commit": provenance.commit(),
        "environment": provenance.environment(),
        "date": provenance.now(),
    }
    write_json(project_dir() / "data" / "records" / "torture.json", about)
    console.print(f"{total} cases, {len(failures)} failures; {found['survived']} of {found['tried']} kills survived")
    sys.exit(bool(failures) or found["survived"] < found["tried"])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
