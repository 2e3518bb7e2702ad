"""Try the page that segments a photograph as a reader does, and compare its label map with the package's.

Begin with `check_try`.
"""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page

from cause_lite import checkpoints
from cause_lite.backbones.loading import labels_seen
from cause_lite.checkpoints.segmenter_folder import read_config
from cause_lite.datasets import scenes
from cause_lite.runtime.files import project_dir, read_json

MOST_DIFFERENT = 0.01  # of the pixels: decoders of JPEG and the last bits of floats may differ
PATIENCE = 300_000  # milliseconds until a picture is segmented, on a slow machine
TURNED = 6  # the orientation tag of a photograph that was taken upright
DROP = """([name, content]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0)), data = new DataTransfer();
  data.items.add(new File([bytes], name, { type: "image/jpeg" }));
  const area = document.getElementById("try-drop"), how = { dataTransfer: data, bubbles: true, cancelable: true };
  for (const kind of ["dragenter", "dragover", "drop"]) area.dispatchEvent(new DragEvent(kind, how));
}"""


@dataclass(frozen=True)
class Comparison:
    """The share of pixels, 0..1, in which the page's label map of a picture differs from the package's."""

    segmenter: str
    picture: str
    different: float


def check_try(browser: Browser, address: str, folder: Path, faults: list[str]) -> list[Comparison]:
    """Drop a photograph on the page, choose one by the keyboard's way, and compare what it saves; for each segmenter.

    Parameters
    ----------
    browser, address, folder
        An open browser, and where the book is served and lies.
    faults
        What is wrong is appended to it.
    """
    comparisons = []
    with tempfile.TemporaryDirectory() as scratch:
        pictures = write_pictures(Path(scratch))
        for model in read_json(folder / "segmenters" / "index.json")["models"]:
            comparisons += list(_compared(browser, address, model, pictures, faults))
    for line in comparisons:
        if line.different > MOST_DIFFERENT:
            share = f"{100 * line.different:.1f} % of its pixels"
            faults.append(f"try.html: {line.picture} by {line.segmenter} differs from the package in {share}")
    return comparisons


def write_pictures(folder: Path) -> list[Path]:
    """Write a wide photograph with an orientation tag and a tall picture, part of which is transparent."""
    views = [scenes.render(0, "val", index, 420).image for index in (1, 2)]
    turned, tall = folder / "turned.jpg", folder / "tall.png"
    tag = Image.Exif()
    tag[0x0112] = TURNED
    Image.fromarray(np.concatenate(views, 1)).save(turned, quality=90, exif=tag)
    tallest = Image.fromarray(np.concatenate([views[0][:, :300], views[1][:150, :300]])).convert("RGBA")
    tallest.putalpha(Image.new("L", tallest.size, 200))
    tallest.save(tall)
    return [turned, tall]


def _compared(
    browser: Browser, address: str, model: dict, pictures: list[Path], faults: list[str]
) -> Iterator[Comparison]:
    """Segment pictures on the page by one segmenter, the first by dropping it, and yield how far the maps agree."""
    name = model["name"]
    page, segmenter = browser.new_page(), checkpoints.load(name)
    page.goto(f"{address}/try.html")
    page.wait_for_selector("#try-file")
    page.eval_on_selector(
        "#try-model", "(list, name) => { list.value = name; list.dispatchEvent(new Event('change')); }", name
    )
    seen = labels_seen(read_config(project_dir() / "data" / "segmenters" / name).backbone.name)
    if seen and (seen not in (told := page.text_content("#try")) or "No label was used" in told):
        faults.append(f"try.html: does not say that the backbone of {name} saw {seen}")
    for number, path in enumerate(pictures):
        if number:
            page.set_input_files("#try-file", path)
        else:
            page.evaluate(DROP, [path.name, base64.b64encode(path.read_bytes()).decode()])
        page.wait_for_selector(f"#try-save[download='{path.stem}.labels.png']", timeout=PATIENCE)
        labels = _saved_labels(page)
        wanted = segmenter.segment(path)
        same_shape = labels.shape == wanted.shape
        yield Comparison(name, path.name, float((labels != wanted).mean()) if same_shape else 1.0)
    faults += _keyboard_faults(page)
    page.close()


def _saved_labels(page: Page) -> np.ndarray:
    """Return the label map (H, W) that the page offers to save."""
    with page.expect_download() as download:
        page.click("#try-save")
    return np.array(Image.open(io.BytesIO(Path(download.value.path()).read_bytes())).convert("L"))


def _keyboard_faults(page: Page) -> Iterator[str]:
    """Move the frame by the keyboard, and yield what does not follow."""
    for name in ("row", "column"):
        before = page.inner_text("#try-patch")
        page.focus(f"#try-{name}")
        page.keyboard.press("ArrowLeft")
        if page.inner_text("#try-patch") == before:
            yield f"try.html: the frame does not follow the arrow keys in its {name}"
