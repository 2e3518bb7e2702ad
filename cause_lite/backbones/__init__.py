"""Frozen backbones: images (N, H, W, 3) -> patch features (N, P, D), and how the small ones were pre-trained.

Begin with `load_backbone`, which finds a backbone by name, folder or timm name. `feature_store` keeps the features
of many images on disk, and `pretrain` makes a backbone from unlabelled images.
"""

from cause_lite.backbones.backbone import Backbone, load_backbone
from cause_lite.backbones.feature_store import PatchStore, cached_features

__all__ = ["Backbone", "PatchStore", "cached_features", "load_backbone"]
