"""Write a segmenter's networks as one ONNX file, which runs without PyTorch: in a browser, on a phone, in a server.

Begin with `write_onnx`. The file shows one tile at a time. What is left to its user is what `Segmenter.segment` does
around the networks: cut a picture into tiles, join their maps, and enlarge these to pixels (see `backbones.tiling`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite.backbones.backbone import Backbone
from cause_lite.runtime.files import UserError, write_json, write_whole
from cause_lite.segmenter import Segmenter

NETWORK_FILE, CARD_FILE = "segmenter.onnx", "onnx.json"
INPUT, OUTPUTS = "tile", ("features", "logits")


class TileNetwork(nn.Module):
    """All that a segmenter with its backbone computes of one tile: the patch features and the clusters' logits."""

    centres: Tensor

    def __init__(self, segmenter: Segmenter, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.head, self.side = backbone, segmenter.head, segmenter.size // backbone.patch
        self.register_buffer("centres", F.normalize(segmenter.cluster_probe.centres.detach(), dim=1))

    def forward(self, tile: Float[Tensor, "1 3 s s"]) -> tuple[Float[Tensor, "1 p d"], Float[Tensor, "1 n h w"]]:
        """Return the features of a tile's patches, row by row, and the logits of the clusters as a map.

        A logit is the dot product of the head's output, the mean over the tile and its mirror image, with the unit
        vector of a cluster. A pixel's nearest cluster by cosine is the one of the largest logit, also after maps were
        joined and enlarged, which are linear: the length of a pixel's vector changes no order.
        """
        features = self.backbone(tile)
        grid = (self.side, self.side)
        seen = self.head(features).unflatten(1, grid)
        mirrored = self.head(self.backbone(tile.flip(3))).unflatten(1, grid).flip(2)
        return features, ((seen + mirrored) / 2 @ self.centres.T).permute(0, 3, 1, 2)


def check_onnx() -> None:
    """Raise UserError unless the packages that write ONNX files are installed."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX files are written through {' and '.join(missing)}: pip install 'cause-lite[onnx]'")


def write_onnx(segmenter: Segmenter, folder: Path) -> None:
    """Write segmenter.onnx and onnx.json into a folder.

    segmenter.onnx takes `tile` (1, 3, S, S), float32 in 0..1, and returns `features` (1, P, D) and `logits`
    (1, n, h, w); see `TileNetwork`. onnx.json holds `size` (S), `patch` (pixels a side of a patch), `clusters` (n),
    `dim` (D) and `classes`, the names of the classes that the segmenter was fitted on.

    Raises
    ------
    UserError
        When the packages are not installed, or the segmenter has no backbone or one that ONNX cannot express.
    """
    check_onnx()
    if segmenter.backbone is None:
        raise UserError("this segmenter has no backbone; set `segmenter.backbone = load_backbone(NAME)`")
    network = TileNetwork(segmenter, segmenter.backbone).eval().cpu()
    card = {
        "size": segmenter.size,
        "patch": segmenter.backbone.patch,
        "clusters": len(network.centres),
        "dim": segmenter.codebook.shape[1],
        "classes": list(segmenter.classes),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / NETWORK_FILE, lambda part: _export(network, segmenter.size, part))
    write_json(folder / CARD_FILE, card)


def _export(network: TileNetwork, size: int, path: Path) -> None:
    """Trace a network on one tile, and write what it did; the exporter's own remarks are not shown."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            program = torch.onnx.export(
                network,
                (torch.zeros(1, 3, size, size),),
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            program.save(str(path), external_data=False)
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"backbone {network.backbone.name!r}: cannot be written as ONNX ({reason})") from error
    finally:
        log.setLevel(level)
