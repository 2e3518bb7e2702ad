"""A fitted segmenter: backbone, teacher head, clusterbook and probes, from an image to a label map."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite.backbones.backbone import Backbone
from cause_lite.backbones.tiling import by_strips, largest, plan_tiles, tiled_maps
from cause_lite.datasets.arrays import Reading, label_type
from cause_lite.datasets.picture_files import as_pictures, is_batch
from cause_lite.head import Head
from cause_lite.probe import ClusterProbe, LinearProbe
from cause_lite.runtime.files import UserError
from cause_lite.runtime.precision import working_type


class Segmenter(nn.Module):
    """Everything that predicts, and the linear probe, a diagnostic that is no part of any prediction.

    The backbone, which may be attached later, is shown squares of `size` pixels a side. `classes` names what the
    clusters are scored against, `cluster_names` each cluster by its classes where an evaluation matched them; neither
    decides any label. `reading` is how the training images were read.
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
        self.size, self.classes, self.reading = size, classes, Reading()
        self.cluster_names: tuple[str, ...] = ()

    def in_precision(self, precision: str) -> Segmenter:
        """Compute in `fp64` or `fp32` from here on, the backbone too, and return the segmenter itself."""
        self.to(working_type(precision))
        if self.backbone is not None:
            self.backbone.prepare(precision)
        return self

    @torch.no_grad()
    def segment_features(
        self, features: Float[Tensor, "b p d"], mirrored: Tensor | None = None
    ) -> Float[Tensor, "b r h w"]:
        """Return the head's output as a map; with features of the mirror images, the mean of both views."""
        side = round(features.shape[1] ** 0.5)
        maps = self.head.eval()(features.to(self.codebook.dtype)).transpose(1, 2).unflatten(2, (side, side))
        if mirrored is None:
            return maps
        return (maps + self.segment_features(mirrored).flip(3)) / 2

    @torch.no_grad()
    def similarities(self, maps: Float[Tensor, "b r h w"], size: tuple[int, int]) -> Float[Tensor, "b n x y"]:
        """Return the cosine of each pixel, upsampled bilinearly to `size`, to each cluster."""
        pixels = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        return self.cluster_probe.similarity(pixels.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    @torch.no_grad()
    def maps(self, image: UInt8[np.ndarray, "x y 3"], scale: float = 1.0) -> Float[Tensor, "1 r h w"]:
        """Return the head's output for an RGB image, seen in tiles at `scale` times the scale of training."""
        if (backbone := self.backbone) is None:
            raise UserError("this segmenter has no backbone; set `segmenter.backbone = load_backbone(NAME)`")
        tiling = plan_tiles(image.shape[:2], self.size, backbone.patch, scale)
        both_views = lambda tiles: self.segment_features(backbone(tiles), backbone(tiles.flip(3)))  # noqa: E731
        return tiled_maps(both_views, image, tiling, self.codebook.device, backbone.dtype)

    @torch.no_grad()
    def segment(self, image: object, scale: float = 1.0, reading: Reading | None = None) -> np.ndarray:
        """Return the cluster of each pixel, (H, W), or (N, H, W) of a batch; the type's last value is an ignored pixel.

        `image` is whatever `as_picture` reads, or a batch of it; without `reading`, it is read as the training images
        were; what was decided about it is a warning. Up to 255 clusters are uint8, more uint16. Memory: bytes a pixel.

        Raises
        ------
        UserError
            When the image cannot be read, the segmenter has no backbone or more than 65,535 clusters.
        """
        kind = label_type(len(self.cluster_probe.centres))
        labels = []
        for picture in as_pictures(image, reading or self.reading):
            for note in picture.notes:
                warnings.warn(note, stacklevel=3)  # two frames up, as `no_grad` wraps this one
            nearest = by_strips(self.maps(picture.rgb, scale), picture.rgb.shape[:2], self.similarities, largest)
            labels.append(picture.with_ignored(nearest.cpu().numpy().astype(kind)))
        return np.stack(labels) if is_batch(image) else labels[0]
