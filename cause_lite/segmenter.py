"""A fitted segmenter: backbone, teacher head, clusterbook and probes, from an image to a label map."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite.backbones.backbone import Backbone
from cause_lite.head import MLPHead, TRHead
from cause_lite.probe import ClusterProbe, LinearProbe

STRIP = 2**18  # pixels whose similarities are computed at once


def build_head(
    kind: str, dim: int, reduced_dim: int, num_patches: int, codebook: Tensor, dropout: float = 0.1
) -> nn.Module:
    """The head of a variant, `mlp` or `tr`."""
    if kind == "mlp":
        return MLPHead(dim, reduced_dim, dropout)
    return TRHead(dim, reduced_dim, num_patches, codebook, dropout)


class Segmenter(nn.Module):
    """Everything that predicts. `linear_probe` is a diagnostic and is not part of any prediction."""

    def __init__(
        self, head: nn.Module, codebook: Tensor, cluster_probe: ClusterProbe, linear_probe: LinearProbe,
        backbone: Backbone | None = None, size: int = 320, classes: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.head, self.cluster_probe, self.linear_probe, self.backbone = head, cluster_probe, linear_probe, backbone
        self.register_buffer("codebook", codebook)
        self.size, self.classes = size, classes

    def shape(self) -> dict:
        """What is needed to build an empty segmenter of the same shape."""
        tr = isinstance(self.head, TRHead)
        num_classes, reduced_dim = self.cluster_probe.centres.shape
        return {
            "head": "tr" if tr else "mlp", "dim": self.codebook.shape[1], "reduced_dim": reduced_dim,
            "num_patches": len(self.head.query_position) if tr else 1, "num_concepts": len(self.codebook),
            "num_classes": num_classes, "size": self.size, "classes": list(self.classes),
        }  # fmt: skip

    @torch.no_grad()
    def segment_features(
        self, features: Float[Tensor, "b p d"], mirrored: Tensor | None = None
    ) -> Float[Tensor, "b r h w"]:
        """Head output as a map; with features of the mirror images given, the mean of both views."""
        side = round(features.shape[1] ** 0.5)
        maps = self.head.eval()(features.float()).transpose(1, 2).unflatten(2, (side, side))
        if mirrored is None:
            return maps
        return (maps + self.segment_features(mirrored).flip(3)) / 2

    @torch.no_grad()
    def similarities(self, maps: Float[Tensor, "b r h w"], size: tuple[int, int]) -> Float[Tensor, "b n x y"]:
        """Cosine of each pixel, upsampled bilinearly to `size`, to each cluster."""
        pixels = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        return self.cluster_probe.similarity(pixels.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    @torch.no_grad()
    def segment(self, image: np.ndarray) -> np.ndarray:
        """An RGB image (H, W, 3) uint8 -> the cluster of each pixel, (H, W) uint8 in 0..n-1.

        The image is resized to the square that the segmenter was trained on; its map is scaled back, some rows at a
        time, so that memory is some bytes a pixel whatever the number of clusters.
        """
        square = Image.fromarray(image).resize((self.size, self.size), Image.Resampling.BILINEAR)
        small = torch.from_numpy(np.array(square)).to(self.codebook.device).permute(2, 0, 1)[None].float() / 255
        maps = self.segment_features(self.backbone(small), self.backbone(small.flip(3)))
        return self._nearest(maps, image.shape[:2]).cpu().numpy()

    def _nearest(self, maps: Float[Tensor, "1 r h w"], size: tuple[int, int]) -> UInt8[Tensor, "x y"]:
        """The nearest cluster of each pixel, upsampled to `size`."""
        height, width = size
        if height > width:
            return self._nearest(maps.transpose(2, 3), (width, height)).T
        tall = F.interpolate(maps, size=(height, maps.shape[3]), mode="bilinear", align_corners=False)
        strips = tall.split(max(1, STRIP // width), dim=2)  # bilinear is separable: first all rows, then each strip
        nearest = [self.similarities(strip, (strip.shape[2], width)).argmax(1)[0].to(torch.uint8) for strip in strips]
        return torch.cat(nearest)
