"""Fitted segmenters as files: ours, the published implementation's, and model folders for others.

Begin with `load`, which reads a segmenter by name or folder. `released_files` reads and writes the published
implementation's, `matching` is what clusters are called, `export` writes a model folder with its card, and `hub` shares
it on the Hugging Face Hub.
"""

from cause_lite.checkpoints.released_files import load_released
from cause_lite.checkpoints.segmenter_folder import load, save

__all__ = ["load", "load_released", "save"]
