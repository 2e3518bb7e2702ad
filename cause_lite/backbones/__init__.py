"""Frozen backbones: images (N, H, W, 3) -> patch features (N, P, D), and how the small ones were pre-trained.

Begin with `load_backbone`, which finds a backbone by name, folder or timm name; `frozen` is what they share, and
`convolutional` joins the levels of networks that are no ViT. `feature_store` keeps the features of many images on disk.
`pretrain` makes a ViT from unlabelled images, `pretrain_photos` a ResNet from photographs, with `photo_views` and
`photo_regions`.
"""

from cause_lite.backbones.backbone import load_backbone
from cause_lite.backbones.feature_store import PatchStore, cached_features
from cause_lite.backbones.frozen import Backbone

__all__ = ["Backbone", "PatchStore", "cached_features", "load_backbone"]
