"""Share a segmenter's model folder on the Hugging Face Hub, and read one from there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from cause_lite.backbones.loading import CARDS
from cause_lite.checkpoints.matching import MATCHING_FILE
from cause_lite.checkpoints.onnx_export import CARD_FILE, NETWORK_FILE
from cause_lite.checkpoints.segmenter_folder import SHAPE_FILE, WEIGHTS_FILE
from cause_lite.runtime.files import UserError

BACKBONE_FILES = [
    f"backbone/{Path(card).with_suffix(ending)}" for card in CARDS for ending in (".json", ".safetensors")
]
FILES = [SHAPE_FILE, WEIGHTS_FILE, MATCHING_FILE, "README.md", *BACKBONE_FILES]  # tensors and texts, nothing that runs


def push(folder: Path, name: str, private: bool = False) -> str:
    """Upload a folder that `export` wrote to OWNER/NAME on the Hub, and return its address.

    Raises UserError when the folder is not exported, or the Hub refuses it.
    """
    folder = Path(folder)
    if not (folder / "README.md").exists() or not (folder / SHAPE_FILE).exists():
        raise UserError(f"{folder}: is no exported folder; run `cause-lite export RUN {folder}` first")

    def upload() -> str:
        address = HfApi().create_repo(name, private=private, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder, allow_patterns=[*FILES, NETWORK_FILE, CARD_FILE])
        return str(address)

    return _call(name, upload)


def download(name: str) -> Path:
    """Return the local copy of the model OWNER/NAME; raise UserError when the Hub does not have or give it."""
    return Path(_call(name, lambda: snapshot_download(name, allow_patterns=FILES)))


def _call(name: str, request: Callable[[], str]) -> str:
    """Return what a request to the Hub returns; its errors become UserError."""
    try:
        return request()
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"hf:{name}: {reason}; check the name, the network, and `hf auth login`") from error
