"""Data of the patch explorer (book/_static/explorer.js): scenes, and what each of their patches is to the method."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cause_lite.backbones.feature_store import cached_features
from cause_lite.datasets import load_split
from cause_lite.lab.recipes import recipe
from cause_lite.lab.runs import fitted_segmenter
from cause_lite.lab.study import backbone_of
from cause_lite.mediator import quantize
from cause_lite.runtime.files import write_whole

SCENES = 16  # the first of the validation images
CHANNELS = 40  # of each space, after a projection that keeps cosines nearly as they are


def write_explorer(path: Path) -> None:
    """Write a script that holds the first validation scenes and, for each of their patches, what the page shows of it.

    Those are the patch's unit feature and unit head output (int8, `CHANNELS` each), its concept among those in use, its
    cluster, and the cosines of all pairs of concepts in use (int8). All in base 64, less than 1 MB.
    """
    config, split = recipe("scenes", "mlp", seed=0), load_split("scenes", "val")
    segmenter, images = fitted_segmenter(config), np.asarray(split.images[:SCENES])
    features = cached_features(backbone_of(config), split.images, "Features")[:SCENES].to(segmenter.codebook.dtype)
    with torch.no_grad():
        outputs = segmenter.head(features)
        clusters = (F.normalize(outputs, dim=-1) @ F.normalize(segmenter.cluster_probe.centres, dim=-1).T).argmax(-1)
    used, concepts = torch.unique(quantize(features, segmenter.codebook)[1], return_inverse=True)
    codes = F.normalize(segmenter.codebook[used], dim=-1)
    content = {
        "side": round(features.shape[1] ** 0.5),
        "channels": CHANNELS,
        "thresholds": (config.head.positive_threshold, config.head.negative_threshold),
        "images": [_picture(image) for image in images],
        "before": _packed(_projected(features)),
        "after": _packed(_projected(outputs)),
        "concepts": _packed(concepts.numpy().astype("<u2")),
        "clusters": _packed(clusters.numpy().astype(np.uint8)),
        "cosines": _packed(_bytes(codes @ codes.T)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f"window.PATCHES = {json.dumps(content)};\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def _projected(vectors: Tensor) -> np.ndarray:
    """Return unit vectors (N, P, CHANNELS) as int8: the leading right singular vectors of (N, P, D), scaled anew."""
    flat = F.normalize(vectors.double(), dim=-1).flatten(0, 1)
    axes = torch.linalg.svd(flat, full_matrices=False).Vh[:CHANNELS]
    return _bytes(F.normalize(flat @ axes.T, dim=-1))


def _bytes(values: Tensor) -> np.ndarray:
    return (127 * values.clamp(-1, 1)).round().numpy().astype(np.int8)


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _picture(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
