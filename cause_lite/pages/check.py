"""`make book-check`: every page of the built book in headless Chromium with no network, as a reader would meet it."""

from __future__ import annotations

import functools
import http.server
import io
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright
from pypdf import PdfWriter

from cause_lite.runtime.files import UserError, project_dir, write_json, write_whole
from cause_lite.runtime.progress import track

VIEWS = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
THEMES = ("light", "dark")
# The theme writes sphinx-thebe's constant twice; nothing on the pages uses it.
KNOWN = ("Identifier 'THEBE_JS_URL' has already been declared",)
GENERATED = ("_modules", "genindex", "py-modindex", "search")  # looked at in one view only
# What a page holds, asked of the browser: images without a text, formulas that were not set, what sticks out.
PROBE = """() => ({
  images: [...document.querySelectorAll('article img')].filter(i => !i.alt.trim()).map(i => i.src.slice(0, 80)),
  formulas: document.querySelectorAll('article .math').length,
  set: document.querySelectorAll('article .math mjx-container').length,
  errors: [...document.querySelectorAll('mjx-merror, .jupyter-widgets-error')].map(e => e.textContent.slice(0, 80)),
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  links: [...document.querySelectorAll('a[href]')].map(a => a.href),
  ids: [...document.querySelectorAll('[id]')].map(e => e.id),
  widgets: document.querySelectorAll('script[type="application/vnd.jupyter.widget-view+json"]').length,
})"""


@dataclass
class Found:
    """What is wrong with the book, each with its page; and what was looked at."""

    wrong: list[str] = field(default_factory=list)
    pages: int = 0
    sliders: int = 0
    links: int = 0
    formulas: int = 0
    requests: int = 0
    printed: int = 0
    numbers: int = 0


def chromium() -> str:
    """A Chromium or Chrome on this machine. Raises UserError when there is none."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome", "chrome")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if not found:
        raise UserError("book-check needs Chromium: install the package `chromium`, or set CHROMIUM to its path")
    return found


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder on a local port, as a web server would give it."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path != "/favicon.ico":  # what browsers ask for by themselves on the page that only redirects
                return super().do_GET()
            self.send_response(http.HTTPStatus.NO_CONTENT)
            self.end_headers()
            return None

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    server.handle_error = lambda request, address: None  # a page that is closed while it loads is no fault
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


# On paper: no navigation, no folded code; solutions unfolded.
PRINT = """#print-main-content, details.hide, button.toggle-button, nav, header, .bd-sidebar-primary,
.bd-sidebar-secondary, .bd-header-article, .prev-next-footer, .bd-footer-content, .headerlink, button.copybtn {
  display: none !important;
}"""


def print_book(browser: Browser, address: str, target: Path) -> int:
    """All pages as one PDF with an outline, in the order of the contents; returns its number of pages."""
    page, whole = browser.new_page(), PdfWriter()
    page.goto(f"{address}/intro.html")
    listed = "() => [...document.querySelectorAll('nav.bd-links a.internal')].map(a => [a.href, a.textContent.trim()])"
    for url, title in track([[f"{address}/intro.html", "CAUSE, step by step"], *page.evaluate(listed)], "Printing"):
        page.goto(url, wait_until="load")
        page.wait_for_function("() => !window.MathJax || !MathJax.startup || MathJax.startup.promise.then(() => true)")
        page.add_style_tag(content=PRINT)
        page.evaluate("document.querySelectorAll('.toggle-hidden').forEach(e => e.classList.remove('toggle-hidden'))")
        printed = io.BytesIO(page.pdf(format="A4", margin=dict.fromkeys(("top", "bottom", "left", "right"), "15mm")))
        whole.append(printed, outline_item=title)
    page.close()
    write_whole(target, lambda part: whole.write(part))
    return len(whole.pages)


def check(folder: Path, pictures: Path) -> Found:
    """Open every page at both sizes in both themes; screenshots go to `pictures`, a PDF of all beside the pages."""
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.html") if "_static" not in p.parts)
    found, anchors, links = Found(), {}, {}
    pictures.mkdir(parents=True, exist_ok=True)
    with served(folder) as address, sync_playwright() as play:
        options = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        browser = play.chromium.launch(executable_path=chromium(), args=options)
        found.printed = print_book(browser, address, folder / "cause-lite.pdf")
        for name in track(names, "Looking at pages"):
            views = [(v, t) for v in VIEWS for t in THEMES][: 1 if name.startswith(GENERATED) else None]
            for view, theme in views:
                seen = _look(browser, address, name, view, theme, pictures, found)
                if (view, theme) == ("desktop", "light"):
                    found.pages += 1
                    anchors[name], links[name] = set(seen["ids"]), seen["links"]
        _check_search(browser, address, found)
        browser.close()
        _check_links(address, folder, anchors, links, found)
    return found


def _look(browser: Browser, address: str, name: str, view: str, theme: str, pictures: Path, found: Found) -> dict:
    page = browser.new_page(viewport=VIEWS[view], color_scheme=theme)
    page.add_init_script(f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')")
    where, outside = f"{name} ({view}, {theme})", []

    def asked(request: Request) -> None:
        found.requests += 1
        if not request.url.startswith((address, "data:", "blob:")):
            outside.append(request.url)

    def said(message: ConsoleMessage) -> None:
        if message.type == "error":
            found.wrong.append(f"{where}: the console says {message.text[:200]}")

    def failed(text: str) -> None:
        if text not in KNOWN:
            found.wrong.append(f"{where}: a script failed: {text[:200]}")

    page.on("request", asked)
    page.on("console", said)
    page.on("pageerror", lambda error: failed(str(error)))
    page.goto(f"{address}/{name}", wait_until="load")
    page.wait_for_function("() => !window.MathJax || !MathJax.startup || MathJax.startup.promise.then(() => true)")
    page.wait_for_timeout(300)
    seen = page.evaluate(PROBE)
    if seen["widgets"]:
        page.wait_for_selector(".jupyter-widgets .noUi-handle", timeout=20_000)
        seen = page.evaluate(PROBE)
    found.wrong += [f"{where}: asks {url}" for url in outside]
    found.wrong += [f"{where}: an image has no alternative text: {source}" for source in seen["images"]]
    found.wrong += [f"{where}: a formula or widget failed: {text}" for text in seen["errors"]]
    if seen["set"] < seen["formulas"]:
        found.wrong.append(f"{where}: {seen['formulas'] - seen['set']} formulas were not set")
    if seen["wide"] > 1:
        found.wrong.append(f"{where}: is {seen['wide']} pixels wider than the window")
    if (view, theme) == ("desktop", "light"):
        found.formulas += seen["formulas"]
        _move_sliders(page, where, found)
    page.screenshot(
        path=pictures / f"{name.removesuffix('.html').replace('/', '-')}-{view}-{theme}.png", full_page=True
    )
    if (view, theme) == ("desktop", "light"):  # after the picture, in which no focus is to show
        _ask_numbers(page, where, found)
    page.close()
    return seen


def _move_sliders(page: Page, where: str, found: Found) -> None:
    """Each slider by its keys: the picture must change, and change back."""
    for handle in page.query_selector_all(".jupyter-widgets .noUi-handle"):
        found.sliders += 1
        box = handle.evaluate_handle("h => h.closest('.widget-vbox')")
        showing = lambda box=box: box.evaluate(  # noqa: E731
            "b => [...b.querySelectorAll('img')].filter(i => i.offsetParent).map(i => i.alt).join()"
        )
        before = showing()
        handle.focus()
        for key, same in (("ArrowRight", False), ("ArrowLeft", True)):
            page.keyboard.press(key)
            page.wait_for_timeout(150)
            if (showing() == before) is not same:
                found.wrong.append(f"{where}: a slider does not follow {key}")
        if not before:
            found.wrong.append(f"{where}: a slider shows no picture")


def _ask_numbers(page: Page, where: str, found: Found) -> None:
    """Each headline number by the keyboard: its record must show, and go."""
    for button in page.query_selector_all("article button.number"):
        found.numbers += 1
        key = button.get_attribute("title").split(":")[0]
        button.focus()
        page.keyboard.press("Enter")
        box = page.query_selector("dialog.number[open]")
        if not box or key not in box.inner_text() or "commit" not in box.inner_text():
            found.wrong.append(f"{where}: {key} does not tell its record")
        page.keyboard.press("Escape")
        if page.query_selector("dialog.number[open]"):
            found.wrong.append(f"{where}: the record of {key} does not close")


def _check_search(browser: Browser, address: str, found: Found) -> None:
    page = browser.new_page()
    page.goto(f"{address}/search.html?q=modularity")
    try:
        page.wait_for_selector("ul.search li a", timeout=10_000)
    except Exception:
        found.wrong.append("search.html: finds nothing for `modularity`")
    page.close()


def _check_links(address: str, folder: Path, anchors: dict, links: dict, found: Found) -> None:
    """Every link within the book leads to a file, and to a place in it where it names one."""
    for name, targets in links.items():
        for target in sorted(set(targets)):
            parts = urlsplit(target)
            if not target.startswith(address):
                continue
            found.links += 1
            path = unquote(parts.path).lstrip("/") or "index.html"
            if not (folder / path).is_file():
                found.wrong.append(f"{name}: links to {path}, which is not there")
            elif parts.fragment and path in anchors and unquote(parts.fragment) not in anchors[path]:
                found.wrong.append(f"{name}: links to #{parts.fragment} of {path}, which is not there")


def main() -> None:
    """Check _build/html; prints what is wrong and ends with status 1 if anything is."""
    folder, pictures = project_dir() / "_build" / "html", project_dir() / "_build" / "screenshots"
    if not (folder / "index.html").exists():
        sys.exit(f"book-check: {folder} holds no book; run `make book` first")
    try:
        found = check(folder, pictures)
    except UserError as error:
        sys.exit(str(error))
    write_json(project_dir() / "_build" / "book-check.json", vars(found))
    for line in found.wrong:
        print(line)
    print(
        f"{found.pages} pages, {found.formulas} formulas, {found.sliders} sliders, {found.numbers} numbers, "
        f"{found.links} links, {found.requests} requests, none to another host; {found.printed} pages printed; "
        f"screenshots in {pictures}"
        if not found.wrong
        else f"{len(found.wrong)} faults on {found.pages} pages"
    )
    sys.exit(bool(found.wrong))


if __name__ == "__main__":
    main()
