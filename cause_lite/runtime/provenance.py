"""Say where a number comes from: the hash of its settings, the commit, the versions and the date."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version

import yaml
from pydantic import BaseModel

from cause_lite.runtime.device import choose_device, device_name
from cause_lite.runtime.files import project_dir


def config_hash(config: object) -> str:
    """Return a short hash of a dataclass, model or dict of settings, equal for equal settings."""
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()[:12]


def canonical_json(config: object) -> str:
    """Return settings as JSON with sorted keys; a value that JSON does not know becomes its text."""
    plain = config
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        plain = dataclasses.asdict(config)
    elif isinstance(config, BaseModel):
        plain = config.model_dump()
    return json.dumps(plain, sort_keys=True, default=str)


def environment() -> dict[str, str]:
    """Return the versions and the kind of machine: what a number may depend on beside its configuration."""
    packages = {name: version(name) for name in ("torch", "timm", "numpy", "scipy", "scikit-learn")}
    device = choose_device("auto")
    accelerator = {} if device.type == "cpu" else {"accelerator": device_name(device)}
    system = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}
    return packages | accelerator | system


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
