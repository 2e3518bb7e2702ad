"""Measure how many small faults in the method's code the tests notice: `make mutants`.

A mutant is the code with one change, such as `+` for `-`, 5 for 4, a call or a keyword argument left out (operators
of cosmic-ray, and two of our own). A seeded sample of mutants meets the tests named in `TESTS`. Each runs in a forked
process, on a copy of the code, until the first test fails: the mutant is killed. What no test notices survives, and
is listed. Results are kept, so that a run that was cut off goes on where it was. `tests/mutants.py SEED SIZE` takes
another sample.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import gc
import hashlib
import importlib
import itertools
import json
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import parso
import pytest
import yaml
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.operators.provider import OperatorProvider

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "_build" / "mutants.json"
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.yaml")
SIZE, SEED, WANTED = 200, 0, 0.9
CPU_SECONDS, MEMORY = 300, 8 << 30  # of one mutant; beyond either it counts as killed
WITHOUT_ARGUMENTS = {"VariableReplacer", "VariableInserter"}  # which want to be told the names to put in

# The first failure ends it. No plugins: most of a short run would be their start. Shapes are not checked either, so a
# mutant that only such a check would notice counts as a survivor.
PYTEST = (
    "-x",
    "-q",
    "--no-header",
    "--tb=line",
    "-o",
    "addopts=",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:unraisableexception",
)

# The tests that a mutant of a module of cause_lite meets, the likeliest to notice first.
TESTS = {
    "mediator": ("test_method.py", "test_reference.py"),
    "frontdoor": ("test_method.py", "test_thresholds.py", "test_reference.py", "test_training.py"),
    "head": ("test_method.py", "test_reference.py"),
    "probe": ("test_method.py", "test_reference.py"),
    "metrics": ("test_method.py",),
    "initialise": ("test_loop.py",),
    "loop": ("test_loop.py", "test_training.py"),
    "runtime/learner": ("test_training.py", "test_loop.py"),
    "train": ("test_loop.py",),
    "steps": ("test_training.py", "test_loop.py"),
}
# Imported once, before the forks. Nothing of cause_lite is.
HEAVY = (
    *("accelerate", "beartype", "filelock", "hypothesis", "jaxtyping", "joblib", "lightly.models.utils", "numpy"),
    *("PIL.Image", "platformdirs", "pydantic", "requests", "rich.progress", "safetensors.torch", "scipy.io"),
    *("scipy.optimize", "sklearn.cluster", "timm", "torch", "torch._dynamo", "torchvision.transforms.v2"),
)


class DropCall(Operator):
    """Replace a statement that is a call by `pass`."""

    def mutation_positions(self, node: parso.tree.NodeOrLeaf) -> Iterator[tuple]:
        statement = node.children[0] if node.type == "simple_stmt" else None
        if getattr(statement, "type", None) in ("atom_expr", "power") and statement.children[-1].type == "trailer":
            yield node.start_pos, node.end_pos

    def mutate(self, node: parso.tree.NodeOrLeaf, index: int) -> parso.tree.NodeOrLeaf:
        first = node.children[0].get_first_leaf()
        node.children[0] = parso.python.tree.Keyword("pass", node.start_pos, first.prefix)
        return node

    @classmethod
    def examples(cls) -> tuple:
        return ()


class DropKeyword(Operator):
    """Replace a keyword argument of a call by `**{}`, which passes nothing.

    A `device` is left alone: without an accelerator there is but one.
    """

    def mutation_positions(self, node: parso.tree.NodeOrLeaf) -> Iterator[tuple]:
        if node.type == "argument" and node.get_code().strip().partition("=")[0] not in (
            "device",
            node.get_code().strip(),
        ):
            yield node.start_pos, node.end_pos

    def mutate(self, node: parso.tree.NodeOrLeaf, index: int) -> parso.tree.NodeOrLeaf:
        return parso.python.tree.Name("**{}", node.start_pos, node.get_first_leaf().prefix)

    @classmethod
    def examples(cls) -> tuple:
        return ()


@dataclass(frozen=True)
class Mutant:
    """One change of one module: the lines before and after it, and the whole changed source."""

    module: str
    line: int
    before: str
    after: str
    source: str

    @property
    def name(self) -> str:
        return f"{self.module}.py:{self.line}\n    - {self.before}\n    + {self.after}"


def operators() -> Iterator[Operator]:
    """Yield cosmic-ray's operators and ours."""
    provider = OperatorProvider()
    yield from (provider[name]() for name in provider if name not in WITHOUT_ARGUMENTS)
    yield from (DropCall(), DropKeyword())


def without_annotations(source: str) -> str:
    """Return a dump of the source's tree, in which annotations, which never run, are blank."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if getattr(node, field, None) is not None:
                setattr(node, field, ast.Constant(None))
    return ast.dump(tree)


def sites(module: str) -> dict[tuple, list[tuple[Operator, int]]]:
    """Return the module and place of each possible change -> the operators that change it there, and which time."""
    tree, found = parso.parse(path_of(ROOT, module).read_text()), {}
    for operator in operators():
        places = (place for node in ast_nodes(tree) for place in operator.mutation_positions(node))
        for occurrence, place in enumerate(places):
            found.setdefault((module, place), []).append((operator, occurrence))
    return found


def path_of(root: Path, module: str) -> Path:
    return root / "cause_lite" / f"{module}.py"


def mutated(module: str, operator: Operator, occurrence: int) -> Mutant | None:
    """Return the mutant, or None where only an annotation changes or nothing that parses comes out."""
    source = path_of(ROOT, module).read_text()
    changed = mutate_code(source, operator, occurrence)
    try:
        if changed is None or without_annotations(changed) == without_annotations(source):
            return None
    except SyntaxError:
        return None
    before, after = source.splitlines(), changed.splitlines()
    for tag, low, high, start, stop in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag != "equal":
            texts = (" ".join(line.strip() for line in lines) for lines in (before[low:high], after[start:stop]))
            return Mutant(module, low + 1, *texts, changed)
    return None


def sample(size: int = SIZE, seed: int = SEED) -> list[Mutant]:
    """Draw places without replacement, and one change of each: all operators of a place share its one chance.

    Chance is a digest of the line and the column, so that a change elsewhere in a file leaves the sample as it is. The
    order is that of the draw, so that the score of a run that was cut off is an estimate too.
    """
    places = {}
    for module in TESTS:
        lines = path_of(ROOT, module).read_text().splitlines()
        for place, choices in sites(module).items():
            line, column = place[1][0]
            places[place] = (
                int(hashlib.sha256(f"{seed} {module} {column} {lines[line - 1]}".encode()).hexdigest(), 16),
                choices,
            )
    drawn: list[Mutant] = []
    for (module, _), (chance, choices) in sorted(places.items(), key=lambda item: (item[1][0], item[0])):
        mutant = mutated(module, *choices[chance % len(choices)])
        if mutant is not None and len(drawn) < size:
            drawn.append(mutant)
    return drawn


@contextlib.contextmanager
def working_copy() -> Iterator[Path]:
    """Yield a copy of the code and the tests, with the data linked, in a folder that goes away."""
    with tempfile.TemporaryDirectory() as folder:
        copy, skip = Path(folder), shutil.ignore_patterns("__pycache__")
        for part in ("cause_lite", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=skip)
        for part in ("data", "book", "README.md", "Makefile"):
            (copy / part).symlink_to(ROOT / part)
        shutil.copy(ROOT / "pyproject.toml", copy)
        yield copy


def run_tests(copy: Path, files: tuple[str, ...]) -> tuple[bool, str]:
    """Run test files in a forked process -> whether all passed, and the end of what they said."""
    log = copy / "log"
    child = os.fork()
    if child == 0:
        status = 70
        try:
            with log.open("w") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            os.chdir(copy)
            sys.path[:0] = [str(copy), str(copy / "tests")]
            status = int(pytest.main([*(str(copy / "tests" / name) for name in files), *PYTEST]))
        finally:
            sys.stdout.flush()
            os._exit(status)
    status = os.waitpid(child, 0)[1]
    said = log.read_text(errors="replace").splitlines()
    return status == 0, "\n".join(line for line in said if line.startswith(("FAILED", "ERROR")))


def digest() -> str:
    """Return a digest of everything that decides a result: the code, the tests, and this file."""
    files = sorted([*ROOT.glob("cause_lite/**/*.py"), *ROOT.glob("tests/*.py")])
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def kept_results() -> dict[str, dict]:
    """Return the results of an earlier run on the same code and tests, by the mutant's source."""
    if RESULTS.exists():
        kept = json.loads(RESULTS.read_text())
        if kept["digest"] == digest():
            return kept["results"]
    return {}


def keep(results: dict[str, dict]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    part = RESULTS.with_suffix(".part")
    part.write_text(json.dumps({"digest": digest(), "results": results}, indent=1))
    part.replace(RESULTS)


def equivalents() -> dict[tuple[str, str, str], str]:
    """Return the changes that no test can notice, by module, line and changed line, each with the reason."""
    listed = yaml.safe_load(EQUIVALENT.read_text())
    return {(item["module"], item["before"], item["after"]): item["reason"] for item in listed}


def judge(mutants: list[Mutant]) -> list[dict]:
    """Return the result of each mutant: its lines, whether it was killed, and by which test."""
    results, keys = kept_results(), [hashlib.sha256(mutant.source.encode()).hexdigest() for mutant in mutants]
    with working_copy() as copy:
        passed, said = run_tests(copy, tuple(dict.fromkeys(itertools.chain(*TESTS.values()))))
        if not passed:
            sys.exit(f"tests fail on the unchanged code; mend them first:\n{said}")
        for number, (key, mutant) in enumerate(zip(keys, mutants, strict=True), 1):
            if key not in results:
                place, unchanged = path_of(copy, mutant.module), path_of(ROOT, mutant.module).read_text()
                place.write_text(mutant.source)
                passed, said = run_tests(copy, TESTS[mutant.module])
                place.write_text(unchanged)
                results[key] = {"name": mutant.name, "killed": not passed, "by": said}
                keep(results)
            mark = "killed" if results[key]["killed"] else "SURVIVED"
            print(f"{number:>4} of {len(mutants)}: {mark:<8} {mutant.name}", flush=True)
    return [results[key] for key in keys]


def report(found: list[dict], same: list[tuple[Mutant, str]]) -> float:
    """Print the equivalent mutants, the survivors and the score; return the share that was killed."""
    for mutant, reason in same:
        print(f"\nequivalent: {reason}\n  {mutant.name}")
    survivors = [result["name"] for result in found if not result["killed"]]
    for name in survivors:
        print(f"\nsurvived\n  {name}")
    share = 1 - len(survivors) / len(found)
    print(f"\nmutation score: {len(found) - len(survivors)} of {len(found)} killed, {100 * share:.1f} %", end=" ")
    print(f"({len(same)} equivalent mutants of the sample are not counted and not run)")
    return share


def main() -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for name in HEAVY:
        importlib.import_module(name)
    gc.freeze()
    reasons = equivalents()
    seed, size = (int(given) for given in sys.argv[1:] or (SEED, SIZE))
    drawn = [(mutant, reasons.get((mutant.module, mutant.before, mutant.after))) for mutant in sample(size, seed)]
    same = [(mutant, reason) for mutant, reason in drawn if reason]
    sys.exit(report(judge([mutant for mutant, reason in drawn if not reason]), same) < WANTED)


if __name__ == "__main__":
    main()
