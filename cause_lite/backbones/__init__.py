"""Frozen backbones: images (N, H, W, 3) -> patch features (N, P, D), and how the small ones were pre-trained.

Begin with `load_backbone` in `loading`, which finds a backbone by name, folder or timm name. `backbone` is what they
share, `vit` and `convolutional` are the two kinds, `released` reads files that timm does not know, and `positions`
resizes position embeddings. `feature_store` keeps the features of many images on disk, `kmeans` clusters them.
`pretrain` makes small ones from unlabelled images.
"""

from cause_lite.backbones.backbone import Backbone
from cause_lite.backbones.feature_store import PatchStore, cached_features
from cause_lite.backbones.loading import load_backbone

__all__ = ["Backbone", "PatchStore", "cached_features", "load_backbone"]
