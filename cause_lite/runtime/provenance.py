"""Say where a number comes from: the hash of its settings, the commit, the versions, the machine and the date."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version

import torch
import yaml
from pydantic_core import to_jsonable_python
from threadpoolctl import threadpool_info

from cause_lite.runtime.device import choose_device, device_name, processor_name
from cause_lite.runtime.files import project_dir

CHOOSE_INSTRUCTIONS = ("MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")  # variables of libraries that do not tell them


def config_hash(config: object) -> str:
    """Return a short hash of a dataclass, model or dict of settings, equal for equal settings."""
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()[:12]


def canonical_json(config: object) -> str:
    """Return settings as JSON with sorted keys; a value that JSON does not know becomes its text."""
    return json.dumps(to_jsonable_python(config, fallback=str), sort_keys=True)


def versions() -> dict[str, str]:
    """Return the versions of the packages that compute, and Python's."""
    packages = {name: version(name) for name in ("torch", "timm", "numpy", "scipy", "scikit-learn")}
    return packages | {"python": platform.python_version()}


def environment() -> dict[str, str]:
    """Return what a number may depend on beside its settings: versions, device, processor, threads, libraries."""
    device = choose_device("auto")
    accelerator = {} if device.type == "cpu" else {"accelerator": device_name(device)}
    processor = {
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "blas": blas(),
    }
    asked = {name: os.environ[name] for name in CHOOSE_INSTRUCTIONS if name in os.environ}
    return versions() | accelerator | processor | asked


def blas() -> str:
    """Return the libraries of matrix products: torch's, and NumPy's and SciPy's with the kernels that they chose."""
    import scipy.linalg  # noqa: F401  # loads SciPy's library, so that it counts whatever was imported before

    named = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    others = {
        " ".join(str(library[key]) for key in ("internal_api", "version", "architecture") if library.get(key))
        for library in threadpool_info()
        if library["user_api"] == "blas"
    }
    return " + ".join([f"torch {named[1] if named else 'unknown'}", *sorted(others)])


def commit() -> str:
    """Return the checkout's commit, with `+` when tracked files differ from it; `unknown` outside a checkout.

    Changed records do not count: a long measurement writes them as it goes.
    """

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=project_dir(), capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)data/records")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def repository() -> str:
    """Return the address of the public repository, as the book's configuration gives it."""
    return yaml.safe_load((project_dir() / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]


def now() -> str:
    """Return the date and time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
