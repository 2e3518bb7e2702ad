"""The embedded data set `scenes`: rendered outdoor views, determined by a seed; nothing is downloaded.

Begin with `layout.render`, which paints a view back to front: sky, relief, ground and roads (`surfaces`), then objects
in order of depth with cast shadows (`sprites`), and at last haze, light and sensor noise. Classes share tints (a blue
car, a blue sky, blue water) and vary in tint (green, autumn and dead trees), so that colour alone names no class;
texture, shape and context do. `taxonomy` holds the classes, `storage` keeps what was rendered.
"""

from cause_lite.datasets.scenes.layout import Scene, render
from cause_lite.datasets.scenes.taxonomy import COARSE_CLASSES, FINE_CLASSES, FINE_TO_COARSE, IMAGE_SIZE, SPLITS

__all__ = ["COARSE_CLASSES", "FINE_CLASSES", "FINE_TO_COARSE", "IMAGE_SIZE", "SPLITS", "Scene", "render"]
