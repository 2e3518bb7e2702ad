"""Open the built book in headless Chromium, and print it as one PDF: begin with `print_book`."""

from __future__ import annotations

import functools
import http.server
import io
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, PdfMargins, sync_playwright
from pypdf import PdfWriter

from cause_lite.runtime.files import UserError, write_whole
from cause_lite.runtime.progress import track

NO_OTHER_HOST = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
PDF = "cause-lite.pdf"  # in the folder of the site
MARGIN: PdfMargins = {"top": "15mm", "bottom": "15mm", "left": "15mm", "right": "15mm"}
# On paper: no navigation, no folded code; solutions unfolded.
PRINT = """#print-main-content, details.hide, button.toggle-button, nav, header, .bd-sidebar-primary,
.bd-sidebar-secondary, .bd-header-article, .prev-next-footer, .bd-footer-content, .headerlink, button.copybtn {
  display: none !important;
}"""
CONTENTS = "() => [...document.querySelectorAll('nav.bd-links a.internal')].map(a => [a.href, a.textContent.trim()])"
UNFOLD = "document.querySelectorAll('.toggle-hidden').forEach(e => e.classList.remove('toggle-hidden'))"


def chromium() -> str | None:
    """Return the path of a Chromium or Chrome on this machine, if there is one."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for name in names if name and (path := shutil.which(name))), None)


@contextmanager
def opened_book(folder: Path) -> Iterator[tuple[Browser, str]]:
    """Serve a built book on a local port, and give a headless browser that finds no other host, and the address.

    Raises UserError when this machine has no Chromium.
    """
    if not (path := chromium()):
        raise UserError("there is no Chromium here: install the package `chromium`, or set CHROMIUM to its path")
    server = QuietServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", NO_OTHER_HOST])
            yield browser, f"http://127.0.0.1:{server.server_port}"
            browser.close()
    finally:
        server.shutdown()
        server.server_close()


def open_page(page: Page, url: str) -> None:
    """Load a page, and wait until its formulas are set."""
    page.goto(url, wait_until="load")
    page.wait_for_function("() => !window.MathJax || !MathJax.startup || MathJax.startup.promise.then(() => true)")


def print_book(folder: Path) -> int:
    """Print all pages of the site in `folder`, in the order of the contents, as one PDF; return how many sheets."""
    book = PdfWriter()
    with opened_book(folder) as (browser, address):
        page = browser.new_page()
        page.goto(f"{address}/intro.html")
        first = [f"{address}/intro.html", "CAUSE, step by step"]
        for url, title in track([first, *page.evaluate(CONTENTS)], "Printing"):
            open_page(page, url)
            page.add_style_tag(content=PRINT)
            page.evaluate(UNFOLD)
            book.append(io.BytesIO(page.pdf(format="A4", margin=MARGIN)), outline_item=title)
    write_whole(folder / PDF, book.write)
    return len(book.pages)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Send files without a line for each request."""

    def log_message(self, *words: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Send a file; of the icon that browsers ask for by themselves, say that there is none."""
        if self.path != "/favicon.ico":
            return super().do_GET()
        self.send_response(http.HTTPStatus.NO_CONTENT)
        self.end_headers()
        return None


class QuietServer(http.server.ThreadingHTTPServer):
    """Serve files; a page that is closed while it loads is no fault."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing."""
