"""Downloads against a local server that breaks off, lies and sends login pages; archives that want out."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from cause_lite.datasets import downloads
from cause_lite.datasets.archives import Archive, unpack
from cause_lite.datasets.downloads import download
from cause_lite.datasets.registry import PUBLISHED
from cause_lite.runtime.files import UserError

CONTENT = np.random.default_rng(0).bytes(300_000)


class Server(ThreadingHTTPServer):
    """Serves `content`; `breaks_after` bytes it closes the connection, once for each entry."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.kind, self.etag, self.status = CONTENT, "application/zip", '"one"', 200
        self.breaks_after: list[int] = []
        self.ranges, self.asked = True, []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.zip"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        server, start = self.server, 0
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        if wanted and server.ranges and self.headers.get("If-Range") == server.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else server.status)
        self.send_header("Content-Type", server.kind)
        self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(server.content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.end_headers()
        end = start + server.breaks_after.pop(0) if server.breaks_after else len(server.content)
        self.wfile.write(server.content[start:end])


@pytest.fixture
def server():
    held = Server()
    thread = threading.Thread(target=held.serve_forever, daemon=True)
    thread.start()
    yield held
    held.shutdown()
    held.server_close()


def test_a_break_is_gone_on_from(server, tmp_path):
    server.breaks_after = [100_000, 50_000]
    target = tmp_path / "file.zip"
    for _ in range(2):
        with pytest.raises(UserError, match="same command again"):
            download(server.url, target)
        assert not target.exists()
    assert download(server.url, target).read_bytes() == CONTENT
    started = [int(a.split("=")[1].rstrip("-")) if a else 0 for a in server.asked]
    assert started[0] == 0 and 0 < 100_000 - started[1] < downloads.CHUNK and started[1] <= started[2]
    assert [p.name for p in tmp_path.iterdir()] == ["file.zip"]
    download(server.url, target)
    assert len(server.asked) == 3  # what is whole is not asked for again


def test_a_file_that_changed_in_between_is_fetched_anew(server, tmp_path):
    server.breaks_after = [100_000]
    with pytest.raises(UserError):
        download(server.url, tmp_path / "file.zip")
    server.content, server.etag = CONTENT[::-1], '"two"'
    assert download(server.url, tmp_path / "file.zip").read_bytes() == CONTENT[::-1]


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.breaks_after, server.ranges = [100_000], False
    with pytest.raises(UserError):
        download(server.url, tmp_path / "file.zip")
    assert download(server.url, tmp_path / "file.zip").read_bytes() == CONTENT


def test_all_came_but_the_rename(server, tmp_path):
    (tmp_path / "file.zip.part").write_bytes(CONTENT)
    (tmp_path / "file.zip.part.json").write_text(json.dumps({"version": '"one"'}))
    assert download(server.url, tmp_path / "file.zip").read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["md5", "sha1", "sha256"])
def test_a_wrong_digest_is_refused_and_a_right_one_taken(server, tmp_path, kind):
    right = hashlib.new(kind, CONTENT).hexdigest()
    with pytest.raises(UserError, match=f"{kind} is {right}, expected 0"):
        download(server.url, tmp_path / "file.zip", "0" * len(right))
    assert list(tmp_path.iterdir()) == []
    assert download(server.url, tmp_path / "file.zip", right).exists()


def test_a_login_page_is_not_taken_for_the_file(server, tmp_path):
    server.content, server.kind = b"<html>sign in</html>", "text/html; charset=utf-8"
    with pytest.raises(UserError, match="web page"):
        download(server.url, tmp_path / "file.zip")
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_is_told(server, tmp_path):
    server.status = 403
    with pytest.raises(UserError, match="answered 403"):
        download(server.url, tmp_path / "file.zip")
    with pytest.raises(UserError, match="broke off"):
        download("http://127.0.0.1:9/file.zip", tmp_path / "file.zip")


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return path


def tarred(path: Path, members: dict[str, bytes], link: str | None = None) -> Path:
    with tarfile.open(path, "w:gz") as packed:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo("data/link")
            info.type, info.linkname = tarfile.SYMTYPE, link
            packed.addfile(info)
    return path


def broken_stream(content: bytes) -> bytes:
    """The same zip with a first block of a kind that deflate does not know."""
    start = 30 + int.from_bytes(content[26:28], "little") + int.from_bytes(content[28:30], "little")
    return content[:start] + b"\xff" + content[start + 1 :]


PLACES = Archive("", "", 10_000, 10, {"data/": "in/"})


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_members_go_to_their_places(tmp_path, pack):
    root = tmp_path / "root"
    root.mkdir()
    file = pack(tmp_path / "a", {"data/x/1.txt": b"one", "data/2.txt": b"two", "other/3.txt": b"three"})
    assert unpack(file, root, PLACES) == 2
    assert {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()} == {"in/x/1.txt", "in/2.txt"}


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda p: zipped(p, {"data/1": b"1", "data/../../evil": b"2"}), "leads out"),
        (lambda p: zipped(p, {"data/1": b"1", "/data/evil": b"2"}), "leads out"),
        (lambda p: zipped(p, {"data/1": b"1", "data\\..\\..\\evil": b"2"}), "leads out"),
        (lambda p: tarred(p, {"data/1": b"1", "data/../../evil": b"2"}), "leads out"),
        (lambda p: tarred(p, {"data/1": b"1"}, link="/etc/passwd"), "link or a device"),
        (lambda p: zipped(p, {f"data/{i}": b"" for i in range(11)}), "more than it may"),
        (lambda p: zipped(p, {"data/bomb": b"0" * 20_000}), "more than it may"),
        (lambda p: zipped(p, {"unknown/1": b"1"}), "another archive"),
        (lambda p: p.write_text("<html>login</html>"), "not a whole archive"),
        (lambda p: p.write_bytes(zipped(p, {"data/1": CONTENT[:5000]}).read_bytes()[:-2000]), "not a whole archive"),
        (lambda p: p.write_bytes(tarred(p, {"data/1": CONTENT[:5000]}).read_bytes()[:-2000]), "damaged|whole archive"),
        (lambda p: p.write_bytes(broken_stream(zipped(p, {"data/1": CONTENT[:5000]}).read_bytes())), "Error -3"),
    ],
)
def test_a_bad_archive_leaves_nothing(tmp_path, make, reason):
    root, file = tmp_path / "root", tmp_path / "archive"
    root.mkdir()
    make(file)
    with pytest.raises(UserError, match=reason):
        unpack(file, root, PLACES)
    assert list(root.iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["archive", "root"]


def test_a_data_set_is_fetched_once_and_goes_on(server, tmp_path, monkeypatch):
    """Two archives; the second breaks off; the next try takes only what is missing."""
    server.content = zipped(tmp_path / "made.zip", {"data/1.txt": b"one"}).read_bytes()
    second = server.url.replace("file", "second")
    archives = tuple(Archive(url, "", 10_000, 10, {"data/": f"{n}/"}) for n, url in enumerate((server.url, second)))
    published = replace(PUBLISHED["cocostuff27"], archives=archives)
    monkeypatch.setenv("CAUSE_DATA", str(tmp_path / "root"))
    server.breaks_after = [len(server.content), 20]
    with pytest.raises(UserError, match="same command again"):
        published.fetch(print)
    assert len(server.asked) == 2
    published.fetch(print)
    assert len(server.asked) == 3
    root = published.root
    found = {str(p.relative_to(root)) for p in root.rglob("*.txt")}
    assert found == {"0/1.txt", "1/1.txt"}
    published.fetch(print)
    assert len(server.asked) == 3
