"""Nothing asks the network: not at import, not in a fit, a score, a segmentation or the command line."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import cause_lite

# Runs before the package is imported: any connection beyond this machine is an error.
GUARD = """
import socket, sys
class Blocked(Exception): pass
def refuse(self, address, *rest):
    local = self.family not in (socket.AF_INET, socket.AF_INET6) or str(address[0]).startswith(("127.", "::1"))
    if not local:
        raise Blocked(f"asked for {address}")
    return connect(self, address, *rest)
connect, socket.socket.connect = socket.socket.connect, refuse
resolve = socket.getaddrinfo
def looked_up(host, *rest, **named):
    if host not in (None, "", "localhost", "127.0.0.1", "::1"):
        raise Blocked(f"looked up {host}")
    return resolve(host, *rest, **named)
socket.getaddrinfo = looked_up
"""


def guarded(code: str, tmp_path: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"CAUSE_CACHE": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(
        [sys.executable, "-c", GUARD + code], env=environment, capture_output=True, text=True, cwd=tmp_path
    )


def test_the_guard_guards(tmp_path):
    done = guarded("import urllib.request; urllib.request.urlopen('http://example.org')", tmp_path)
    assert done.returncode and "Blocked" in done.stderr


def test_no_import_asks_the_network(tmp_path):
    names = [
        m.name for m in pkgutil.iter_modules(cause_lite.__path__, "cause_lite.") if not m.name.endswith("__main__")
    ]
    done = guarded("".join(f"import {name}\n" for name in names), tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_fit_or_prediction_asks_the_network(tmp_path):
    code = (
        "from conftest import few_images, quick_config, random_backbone\n"
        "from cause_lite.methods.as_released import fit\nimport cause_lite\n"
        "fit(quick_config({'head.kind': 'mlp'}), few_images(), random_backbone())\n"
        "cause_lite.load('scenes').segment(few_images().images[0])\n"
    )
    done = guarded(code, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_backbone_that_must_be_fetched_says_so(tmp_path):
    code = (
        "from cause_lite.backbones import load_backbone\nfrom cause_lite.runtime.files import UserError\n"
        "try:\n    load_backbone('vit_small_patch8_224.dino')\nexcept UserError as error:\n    print(error)\n"
    )
    done = guarded(code, tmp_path)
    assert done.returncode == 0 and "weights at hand" in done.stdout, done.stderr[-2000:]
