"""What the data set holds: its classes at two levels, its splits, the size of an image, and what views are made of."""

from pathlib import Path

import yaml

VIEWS = yaml.safe_load(Path(__file__).with_name("views.yaml").read_text(encoding="utf-8"))

FINE_CLASSES = (
    "sky",
    "cloud",
    "mountain",
    "grass",
    "sand",
    "water",
    "road",
    "tree",
    "bush",
    "house",
    "tower",
    "car",
    "bus",
    "boat",
    "person",
    "animal",
)
COARSE_CLASSES = ("air", "land", "water", "road", "plant", "building", "vehicle", "being")
FINE_TO_COARSE = (0, 0, 1, 1, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 7, 7)
SPLITS = {"train": 1000, "val": 200, "pretrain": 4000, "test": 200}  # nothing was chosen by looking at test
IMAGE_SIZE = 128

CLASS = {name: index for index, name in enumerate(FINE_CLASSES)}
