"""The Hugging Face Hub: a segmenter's folder is pushed to it and read back from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from cause_lite.runtime.files import UserError

FILES = ("segmenter.json", "segmenter.safetensors", "README.md", "backbone/vit.json", "backbone/vit.safetensors")


def push(folder: Path, name: str, private: bool = False) -> str:
    """Upload an exported folder as OWNER/NAME -> its address. Raises UserError when it is none, or is refused."""
    if not (Path(folder) / "README.md").exists() or not (Path(folder) / "segmenter.json").exists():
        raise UserError(f"{folder}: is no exported folder; run `cause-lite export RUN {folder}` first")
    return _asked(name, lambda: _upload(Path(folder), name, private))


def _upload(folder: Path, name: str, private: bool) -> str:
    api = HfApi()
    address = api.create_repo(name, private=private, exist_ok=True)
    api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(FILES))
    return str(address)


def fetched(name: str) -> Path:
    """The local copy of the model OWNER/NAME: tensors, JSON and the card, nothing that runs."""
    return Path(_asked(name, lambda: snapshot_download(name, allow_patterns=list(FILES))))


def _asked(name: str, ask: Callable[[], str]) -> str:
    try:
        return ask()
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"hf:{name}: {reason}; check the name, the network, and `hf auth login`") from error
