"""A fitted segmenter: backbone, teacher head, clusterbook and probes, from an image to a label map."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite.backbones.backbone import Backbone
from cause_lite.head import Head
from cause_lite.probe import ClusterProbe, LinearProbe
from cause_lite.runtime.files import UserError

STRIP = 2**18  # pixels whose similarities are computed at once


class Segmenter(nn.Module):
    """Everything that predicts, and the linear probe, a diagnostic that is no part of any prediction.

    The backbone, which may be attached later, is shown squares of `size` pixels a side. `classes` names what the
    clusters are scored against.
    """

    codebook: Tensor

    def __init__(
        self,
        head: Head,
        codebook: Float[Tensor, "k d"],
        cluster_probe: ClusterProbe,
        linear_probe: LinearProbe,
        backbone: Backbone | None = None,
        size: int = 320,
        classes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.head, self.cluster_probe, self.linear_probe, self.backbone = head, cluster_probe, linear_probe, backbone
        self.register_buffer("codebook", codebook)
        self.size, self.classes = size, classes

    @torch.no_grad()
    def segment_features(
        self, features: Float[Tensor, "b p d"], mirrored: Tensor | None = None
    ) -> Float[Tensor, "b r h w"]:
        """Return the head's output as a map; with features of the mirror images, the mean of both views."""
        side = round(features.shape[1] ** 0.5)
        maps = self.head.eval()(features.float()).transpose(1, 2).unflatten(2, (side, side))
        if mirrored is None:
            return maps
        return (maps + self.segment_features(mirrored).flip(3)) / 2

    @torch.no_grad()
    def similarities(self, maps: Float[Tensor, "b r h w"], size: tuple[int, int]) -> Float[Tensor, "b n x y"]:
        """Return the cosine of each pixel, upsampled bilinearly to `size`, to each cluster."""
        pixels = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        return self.cluster_probe.similarity(pixels.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    @torch.no_grad()
    def segment(self, image: UInt8[np.ndarray, "x y 3"]) -> UInt8[np.ndarray, "x y"]:
        """Return the cluster of each pixel of an RGB image, 0..n-1.

        The image is resized to the square that the segmenter was trained on; its map is scaled back, some rows at a
        time, so that memory is some bytes a pixel whatever the number of clusters.

        Raises
        ------
        UserError
            When the segmenter has no backbone.
        """
        if self.backbone is None:
            raise UserError("this segmenter has no backbone; set `segmenter.backbone = load_backbone(NAME)`")
        square = Image.fromarray(image).resize((self.size, self.size), Image.Resampling.BILINEAR)
        small = torch.from_numpy(np.array(square)).to(self.codebook.device).permute(2, 0, 1)[None].float() / 255
        maps = self.segment_features(self.backbone(small), self.backbone(small.flip(3)))
        return self._nearest(maps, (image.shape[0], image.shape[1])).cpu().numpy()

    def _nearest(self, maps: Float[Tensor, "1 r h w"], size: tuple[int, int]) -> UInt8[Tensor, "x y"]:
        """Return the nearest cluster of each pixel, upsampled to `size`, as one image."""
        height, width = size
        if height > width:
            return self._nearest(maps.transpose(2, 3), (width, height)).T
        tall = F.interpolate(maps, size=(height, maps.shape[3]), mode="bilinear", align_corners=False)
        strips = tall.split(max(1, STRIP // width), dim=2)  # bilinear is separable: all rows first, then each strip
        nearest = [self.similarities(strip, (strip.shape[2], width)).argmax(1)[0].to(torch.uint8) for strip in strips]
        return torch.cat(nearest)
