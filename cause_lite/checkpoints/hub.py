"""Share a segmenter's model folder on the Hugging Face Hub, and read one from there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from cause_lite.runtime.files import UserError

FILES = (
    "segmenter.json",
    "segmenter.safetensors",
    "matching.json",
    "README.md",
    "backbone/vit.json",
    "backbone/vit.safetensors",
)


def push(folder: Path, name: str, private: bool = False) -> str:
    """Upload a folder that `export` wrote, and return its address.

    Parameters
    ----------
    folder
        The model folder.
    name
        OWNER/NAME on the Hub.
    private
        Keep the model private.

    Raises
    ------
    UserError
        When the folder is not exported, or the Hub refuses it.
    """
    folder = Path(folder)
    if not (folder / "README.md").exists() or not (folder / "segmenter.json").exists():
        raise UserError(f"{folder}: is no exported folder; run `cause-lite export RUN {folder}` first")
    return _call(name, lambda: _upload(folder, name, private))


def _upload(folder: Path, name: str, private: bool) -> str:
    api = HfApi()
    address = api.create_repo(name, private=private, exist_ok=True)
    api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(FILES))
    return str(address)


def download(name: str) -> Path:
    """Return the local copy of the model OWNER/NAME: tensors, JSON and the card, nothing that runs.

    Raises UserError when the Hub does not have it or cannot be reached.
    """
    return Path(_call(name, lambda: snapshot_download(name, allow_patterns=list(FILES))))


def _call(name: str, request: Callable[[], str]) -> str:
    """Return what a request to the Hub returns; its errors become UserError."""
    try:
        return request()
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"hf:{name}: {reason}; check the name, the network, and `hf auth login`") from error
