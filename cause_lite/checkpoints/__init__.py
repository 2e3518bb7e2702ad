"""Fitted segmenters as files: ours, the published implementation's, and model folders for others.

Begin with `load`, which reads a segmenter by name or folder. `export` writes a model folder with its card and
`hub` shares it on the Hugging Face Hub.
"""

from cause_lite.checkpoints.ours import load, save
from cause_lite.checkpoints.released import load_released

__all__ = ["load", "load_released", "save"]
