"""Look at every page of the built book in headless Chromium without a network, as a reader meets it: `make book-check`.

Begin with `check`. With `--quick`, as in a build, each chapter is looked at once, and pictures are not segmented.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from accessibility import severe_findings
from playwright.sync_api import Browser, ConsoleMessage, ElementHandle, Error, Request, ViewportSize
from try_check import Comparison, check_try

from cause_lite.pages.printing import open_page, opened_book
from cause_lite.runtime.files import UserError, project_dir, write_json
from cause_lite.runtime.progress import track


class View(NamedTuple):
    """How a reader looks at a page."""

    device: str
    theme: Literal["light", "dark"]


SIZES: dict[str, ViewportSize] = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
FIRST_VIEW = View("desktop", "light")  # in which sliders and numbers are tried, and which generated pages get alone
VIEWS = (FIRST_VIEW, View("desktop", "dark"), View("phone", "light"), View("phone", "dark"))
FORWARD = "index.html"  # it leads on to the first page at once, in the middle of an audit
GENERATED = ("_modules", "genindex", "py-modindex", "search")
# Run in the page: images without a text, formulas and how many were set, errors, links, what sticks out. Raw text is
# a line of a Markdown table, or a formula between dollars, that was not made into one.
SURVEY = """() => ({
  raw: [...document.querySelectorAll('article :is(p, li, td, th, figcaption, dd)')].map(e => {
    const copy = e.cloneNode(true);
    copy.querySelectorAll('code, pre, .math, mjx-container, script').forEach(part => part.remove());
    return copy.textContent.trim();
  }).filter(text => text.startsWith('|') || /\\$[^$\\s][^$]*\\$/.test(text)).map(text => text.slice(0, 60)),
  twice: [...document.querySelectorAll('article .cell_output > img, article .cell_output .output > img')]
    .map(i => i.src).filter((source, n, all) => all.indexOf(source) < n),
  clipped: [...document.querySelectorAll('article :is(.cell_output, .pst-scrollable-table-container)')]
    .filter(o => o.scrollWidth > o.clientWidth + 1).map(o => o.textContent.trim().replace(/\\s+/g, ' ').slice(0, 60)),
  images: [...document.querySelectorAll('article img')].filter(i => !i.alt.trim()).map(i => i.src.slice(0, 80)),
  formulas: document.querySelectorAll('article .math').length,
  set: document.querySelectorAll('article .math mjx-container').length,
  errors: [...document.querySelectorAll('mjx-merror, .jupyter-widgets-error')].map(e => e.textContent.slice(0, 80)),
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  links: [...document.querySelectorAll('a[href]')].map(a => a.href),
  ids: [...document.querySelectorAll('[id]')].map(e => e.id),
  cut: [...document.querySelectorAll('article pre')].filter(p => p.scrollWidth > p.clientWidth + 1)
    .map(p => p.textContent.trim().slice(0, 60)),
  widgets: document.querySelectorAll('script[type="application/vnd.jupyter.widget-view+json"]').length,
})"""


@dataclass
class Report:
    """The faults of the book, each with its page; and how much was looked at."""

    faults: list[str] = field(default_factory=list)
    pages: int = 0
    sliders: int = 0
    links: int = 0
    formulas: int = 0
    requests: int = 0
    numbers: int = 0
    comparisons: list[Comparison] = field(default_factory=list)


def check(folder: Path, pictures: Path, quick: bool = False) -> Report:
    """Open every page at both sizes and in both themes, and try its sliders, numbers and links.

    Parameters
    ----------
    folder
        The built book.
    pictures
        The folder for a screenshot of each page and view.
    quick
        Only open the chapters, on a light desktop, and leave out the segmenting of pictures.

    Raises
    ------
    UserError
        When this machine has no Chromium.
    """
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.html") if "_static" not in path.parts)
    if quick:
        names = [name for name in names if not name.startswith(GENERATED)]
    report, surveys = Report(), {}
    pictures.mkdir(parents=True, exist_ok=True)
    with opened_book(folder) as (browser, address):
        for name in track(names, "Looking at pages"):
            report.pages += 1
            for view in (FIRST_VIEW,) if quick or name.startswith(GENERATED) else VIEWS:
                survey = PageCheck(browser, address, name, view, report).run(pictures)
                if view == FIRST_VIEW:
                    surveys[name] = survey
        _check_search(browser, address, report)
        report.comparisons = [] if quick else check_try(browser, address, folder, report.faults)
    _check_links(address, folder, surveys, report)
    return report


class PageCheck:
    """The check of one page in one view; faults and counts go to the report."""

    def __init__(self, browser: Browser, address: str, name: str, view: View, report: Report) -> None:
        self.address, self.name, self.view, self.report = address, name, view, report
        self.page = browser.new_page(viewport=SIZES[view.device], color_scheme=view.theme)
        theme = view.theme
        self.page.add_init_script(f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')")
        self.page.on("request", self._on_request)
        self.page.on("console", self._on_console)
        self.page.on("pageerror", self._on_error)

    def run(self, pictures: Path) -> dict:
        """Load the page, look at it, write its screenshot, and return what `SURVEY` found in it."""
        open_page(self.page, f"{self.address}/{self.name}")
        self.page.wait_for_timeout(300)
        survey = self.page.evaluate(SURVEY)
        if survey["widgets"]:
            self.page.wait_for_selector(".jupyter-widgets .noUi-handle", timeout=20_000)
            survey = self.page.evaluate(SURVEY)
        self._judge(survey)
        if self.view == FIRST_VIEW:
            self.report.formulas += survey["formulas"]
            self._move_sliders()
            self._play()
        picture = f"{self.name.removesuffix('.html').replace('/', '-')}-{self.view.device}-{self.view.theme}.png"
        self.page.screenshot(path=pictures / picture, full_page=True)
        if self.view == FIRST_VIEW:  # after the picture, in which no focus is to show
            self._open_numbers()
        self.page.close()
        return survey

    def _fault(self, text: str) -> None:
        self.report.faults.append(f"{self.name} ({self.view.device}, {self.view.theme}): {text}")

    def _on_request(self, request: Request) -> None:
        self.report.requests += 1
        if not request.url.startswith((self.address, "data:", "blob:")):
            self._fault(f"asks {request.url}")

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._fault(f"the console shows {message.text[:200]}")

    def _on_error(self, error: Error) -> None:
        self._fault(f"a script failed: {str(error)[:200]}")

    def _judge(self, survey: dict) -> None:
        for source in survey["images"]:
            self._fault(f"an image has no alternative text: {source}")
        for text in survey["errors"]:
            self._fault(f"a formula or widget failed: {text}")
        if survey["set"] < survey["formulas"]:
            self._fault(f"{survey['formulas'] - survey['set']} formulas were not set")
        for text in survey["raw"]:
            self._fault(f"shows raw text: {text}")
        for source in survey["twice"]:
            self._fault(f"shows a picture twice: {source[-80:]}")
        for text in survey["cut"]:
            self._fault(f"code is cut off at the right: {text}")
        for text in survey["clipped"] if self.view.device == "desktop" else ():
            self._fault(f"an output is cut off at the right: {text}")
        findings = [] if self.name == FORWARD else severe_findings(self.page)
        for text in findings:
            self._fault(f"axe-core finds {text}")
        if survey["wide"] > 1:
            self._fault(f"is {survey['wide']} pixels wider than the window")

    def _move_sliders(self) -> None:
        """Move each slider by its keys: the picture must change, and change back."""
        for handle in self.page.query_selector_all(".jupyter-widgets .noUi-handle"):
            self.report.sliders += 1
            before = _shown_pictures(handle)
            if not before:
                self._fault("a slider shows no picture")
            handle.focus()
            for key, same in (("ArrowRight", False), ("ArrowLeft", True)):
                self.page.keyboard.press(key)
                self.page.wait_for_timeout(150)
                if (_shown_pictures(handle) == before) is not same:
                    self._fault(f"a slider does not follow {key}")

    def _play(self) -> None:
        """Use the leak by its buttons and the patch explorer by pointer and keys: what they tell must follow."""
        for box in self.page.query_selector_all(".leak-live"):
            before = box.inner_text()
            box.query_selector("input").uncheck()
            box.query_selector("button").press("Enter")
            if box.inner_text() == before:
                self._fault("the leak does not follow its button")
        for box in self.page.query_selector_all(".patch-explorer"):
            scene = box.wait_for_selector("canvas", timeout=10_000)
            drawn = [scene.evaluate("c => c.toDataURL()")]
            scene.click(position={"x": 9, "y": 9})
            drawn.append(scene.evaluate("c => c.toDataURL()"))
            scene.press("ArrowDown")
            drawn.append(scene.evaluate("c => c.toDataURL()"))
            if len(set(drawn)) < 3:
                self._fault("the patch explorer does not follow a click or a key")

    def _open_numbers(self) -> None:
        """Open each headline number by the keyboard: its record must show, and go."""
        for button in self.page.query_selector_all("article button.number"):
            self.report.numbers += 1
            key = (button.get_attribute("title") or "").split(":")[0]
            button.focus()
            self.page.keyboard.press("Enter")
            box = self.page.query_selector("dialog.number[open]")
            if not box or key not in box.inner_text() or "commit" not in box.inner_text():
                self._fault(f"{key} does not show its record")
            self.page.keyboard.press("Escape")
            if self.page.query_selector("dialog.number[open]"):
                self._fault(f"the record of {key} does not close")


def _shown_pictures(handle: ElementHandle) -> str:
    """Return the alternative texts of the pictures that show beside a slider's handle."""
    images = "[...h.closest('.widget-vbox').querySelectorAll('img')]"
    return handle.evaluate(f"h => {images}.filter(i => i.offsetParent).map(i => i.alt).join()")


def _check_search(browser: Browser, address: str, report: Report) -> None:
    page = browser.new_page()
    page.goto(f"{address}/search.html?q=modularity")
    try:
        page.wait_for_selector("ul.search li a", timeout=10_000)
    except Exception:
        report.faults.append("search.html: finds nothing for `modularity`")
    page.close()


def _check_links(address: str, folder: Path, surveys: dict[str, dict], report: Report) -> None:
    """Follow every link within the book: to a file, and to a place in it where the link names one."""
    anchors = {name: set(survey["ids"]) for name, survey in surveys.items()}
    for name, survey in surveys.items():
        for target in sorted(set(survey["links"])):
            parts = urlsplit(target)
            if not target.startswith(address):
                continue
            report.links += 1
            path = unquote(parts.path).lstrip("/") or "index.html"
            if not (folder / path).is_file():
                report.faults.append(f"{name}: links to {path}, which is not there")
            elif parts.fragment and path in anchors and unquote(parts.fragment) not in anchors[path]:
                report.faults.append(f"{name}: links to #{parts.fragment} of {path}, which is not there")


def main() -> None:
    """Check _build/html; print the faults, and end with status 1 if there are any."""
    folder, pictures = project_dir() / "_build" / "html", project_dir() / "_build" / "screenshots"
    if not (folder / "index.html").exists():
        sys.exit(f"book-check: {folder} holds no book; run `make book` first")
    try:
        report = check(folder, pictures, quick="--quick" in sys.argv[1:])
    except UserError as error:
        sys.exit(f"book-check: {error}")
    write_json(project_dir() / "_build" / "book-check.json", dataclasses.asdict(report))
    for line in report.faults:
        print(line)
    if report.faults:
        sys.exit(f"{len(report.faults)} faults on {report.pages} pages")
    print(
        f"{report.pages} pages, {report.formulas} formulas, {report.sliders} sliders, {report.numbers} numbers, "
        f"{report.links} links, {report.requests} requests, none to another host; "
        f"{len(report.comparisons)} label maps of the page that segments compared; screenshots in {pictures}"
    )


if __name__ == "__main__":
    main()
