"""Build the book from scratch: run every chapter, render, print the PDF, look at the pages, and last verify.

Begin with `build`.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import nbformat
import torch
from accelerate.utils import patch_environment
from joblib.externals.loky import get_reusable_executor
from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor
from myst_nb.core.read import is_myst_markdown_notebook
from sphinx_external_toc.parsing import parse_toc_yaml

from cause_lite.backbones.feature_store import cached_features
from cause_lite.datasets import load_split
from cause_lite.lab import cost, reproduce, study
from cause_lite.lab.recipes import HEADS, TABLES, recipe
from cause_lite.lab.runs import fitted_run
from cause_lite.pages.assets import PAGE_ASSETS, fetch_assets
from cause_lite.pages.explorer import write_explorer
from cause_lite.pages.printing import PDF, chromium, print_book
from cause_lite.pages.try_page import write_segmenters
from cause_lite.runtime import provenance
from cause_lite.runtime.files import UserError, project_dir, write_whole
from cause_lite.runtime.progress import track

PAGE_SECONDS = 900  # that a page may take
CHECKERS = Path("exercises", "checkers.py")  # in the book, and beside its notebooks
FETCH_PACKAGE = """try:
    import cause_lite
except ImportError:
    %pip install -q 'cause-lite[book] @ git+{address}'"""
FETCH_CHECKERS = f"""
from pathlib import Path
from urllib.request import urlretrieve
if not Path("{CHECKERS.as_posix()}").exists():
    Path("exercises").mkdir(exist_ok=True)
    urlretrieve("{{address}}/raw/main/book/{CHECKERS.as_posix()}", "{CHECKERS.as_posix()}")"""


def _rehearse() -> None:
    list(reproduce.rehearse(lambda text: None))


def _perform(run: study.Run) -> None:
    """Do a run, without the idle workers of its library, which would keep this process for minutes."""
    study.performed(run)
    get_reusable_executor().shutdown()


def run_all() -> None:
    """Rehearse, and fit and score what the pages show: two processes of one thread each, faster than one of two."""
    first = recipe("scenes", HEADS[0])
    for split in ("train", "val", "test"):  # before two processes would both render them
        images = load_split("scenes", split).images
        cached_features(study.backbone_of(first), images, "Features")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        fits = [pool.submit(fitted_run, recipe("scenes", head)) for head in reversed(HEADS)]
        rehearsal = pool.submit(_rehearse)
        for fit in track(fits, "Fitting scenes, rehearsing the published rows", total=len(fits)):
            fit.result()
        for done in track([pool.submit(_perform, run) for run in study.repeated_runs()], "Scoring seed 0 again"):
            done.result()
        rehearsal.result()


def execute_pages(pages: list[Path], cache: Path) -> None:
    """Run the notebooks among pages, two at a time and a thread each, into the cache that Jupyter Book renders from.

    Raises
    ------
    UserError
        When a notebook fails, with its traceback.
    """
    notebooks = get_cache(cache)
    for page in pages:
        if is_myst_markdown_notebook(page.read_text(encoding="utf-8")):
            notebooks.add_nb_to_project(str(page), read_data={"name": "myst_nb_md", "type": "plugin"})
    with patch_environment(OMP_NUM_THREADS="1"):
        result = load_executor("local-parallel", notebooks).run_and_cache(timeout=PAGE_SECONDS)
    for page in (*result.excepted, *result.errored):
        raise UserError(f"{page} failed:\n{notebooks.get_project_record(page).traceback}")


def write_table_pages(book: Path) -> None:
    """Write a page for each published table, from one template."""
    template = (book / "_templates" / "table.md").read_text(encoding="utf-8")
    for name, title in TABLES.items():
        page = template.format(name=name, title=title, basis=cost.basis())
        (book / "tables").mkdir(exist_ok=True)
        write_whole(book / "tables" / f"{name}.md", partial(Path.write_text, data=page, encoding="utf-8"))


def write_notebooks(build: Path, book: Path) -> None:
    """Copy the executed notebook of every page into the site; each fetches the package and the checkers if need be."""
    address = provenance.repository()
    for path in sorted((build / "jupyter_execute").rglob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        fetch = FETCH_PACKAGE.format(address=address)
        if any("from exercises" in cell.source for cell in notebook.cells):
            fetch += FETCH_CHECKERS.format(address=address)
        notebook.cells.insert(0, nbformat.v4.new_code_cell(fetch))
        target = build / "html" / "notebooks" / path.relative_to(build / "jupyter_execute")
        write_whole(target, partial(nbformat.write, notebook))
    folder = build / "html" / "notebooks"
    write_whole(folder / CHECKERS, partial(shutil.copyfile, book / CHECKERS))
    requirements = f"cause-lite[book] @ git+{address}\n"  # what Binder installs
    write_whole(folder / "requirements.txt", partial(Path.write_text, data=requirements, encoding="utf-8"))


def write_kernel_settings(folder: Path) -> None:
    """Write what kernels read in place of the settings of whoever builds: none but silence about local connections."""
    profile = folder / "profile_default"
    profile.mkdir(parents=True)
    (profile / "ipython_kernel_config.py").write_text('c.IPKernelApp.log_level = "ERROR"\n', encoding="utf-8")


def prepare(root: Path) -> None:
    """Remove _build, so that no number of an earlier build is left over, and write all that the pages need."""
    shutil.rmtree(root / "_build", ignore_errors=True)
    fetch_assets(PAGE_ASSETS, root / "book" / "_vendor")
    os.environ["CAUSE_CACHE"] = str(root / "_build" / "cache")
    os.environ["IPYTHONDIR"] = str(root / "_build" / "ipython")
    write_kernel_settings(root / "_build" / "ipython")
    write_table_pages(root / "book")
    write_segmenters(root / "book" / "_vendor")


def run(command: Sequence[str | Path]) -> bool:
    """Run a command in the checkout with this Python's tools, and return whether it succeeded."""
    tool = Path(sys.executable).with_name(str(command[0]))
    return subprocess.run([tool, *command[1:]], cwd=project_dir(), check=False).returncode == 0


def finish(root: Path) -> list[str]:
    """Render the pages that were run, print them, look at them and verify; return what failed, and never stop early."""
    config = ["--config", "_config.yml", "--path-output", "."]
    done = {"render": run(["jupyter-book", "build", "book", *config, "-W", "--keep-going"])}
    site = root / "_build" / "html"
    if not (site / "index.html").exists():
        return ["render"]
    write_notebooks(root / "_build", root / "book")
    if chromium():
        print(f"{site / PDF}: {print_book(site)} pages")
        done["check"] = run(["python", "tests/book/check.py", "--quick"])
    else:
        print("There is no Chromium here: no PDF was made, and the pages were not looked at (`make book-check`).")
    print(f"The book is at {site / 'index.html'}")
    done["verify"] = run(["cause-lite", "verify"])
    return [step for step, succeeded in done.items() if not succeeded]


def build() -> None:
    """Build the book (`make book`); a step that fails leaves the rest of the site whole, and status 1."""
    root = project_dir()
    prepare(root)
    run_all()
    write_explorer(root / "book" / "_vendor" / "explorer" / "patches.js")
    table = parse_toc_yaml(root / "book" / "_toc.yml")
    execute_pages([root / "book" / f"{page}.md" for page in table], root / "_build" / ".jupyter_cache")
    if failed := finish(root):
        sys.exit(f"make book: not all went well, see above: {', '.join(failed)}")


if __name__ == "__main__":
    build()
