"""Settings of every experiment, as YAML files by data set, backbone, published row and ablation.

Begin with `recipe`, which joins the files that a fit needs into one configuration.
"""

from cause_lite.lab.recipes.reading import (
    FOLDER,
    HEADS,
    TABLES,
    Row,
    data_names,
    evaluation_split,
    read_row,
    recipe,
    row,
    rows,
)

__all__ = [
    "FOLDER",
    "HEADS",
    "TABLES",
    "Row",
    "data_names",
    "evaluation_split",
    "read_row",
    "recipe",
    "row",
    "rows",
]
