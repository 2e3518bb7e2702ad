"""Figures and tables of the book, a file a subject.

`axes` holds what every figure shares, `causal` the graph and its effects, `heads` diagrams of the heads, `features`,
`results` and `studies` what was measured of the method, `bench` its speed. Begin with `axes.style`.
"""

from cause_lite.pages.plots.axes import curves, legend, style
from cause_lite.pages.plots.bench import bench_table, growth, ratio_bars, stage_bars
from cause_lite.pages.plots.causal import causal_graph, draw_graph, effects, mutilated_graphs
from cause_lite.pages.plots.features import pca_colours
from cause_lite.pages.plots.heads import head_diagrams
from cause_lite.pages.plots.photographs import segmented_photographs
from cause_lite.pages.plots.results import class_heatmap, confusion, matching_step, results_table, seed_dots
from cause_lite.pages.plots.studies import by_backbone, by_epochs, differences

__all__ = [
    "bench_table",
    "by_backbone",
    "by_epochs",
    "causal_graph",
    "class_heatmap",
    "confusion",
    "curves",
    "differences",
    "draw_graph",
    "effects",
    "growth",
    "head_diagrams",
    "legend",
    "matching_step",
    "mutilated_graphs",
    "pca_colours",
    "ratio_bars",
    "results_table",
    "seed_dots",
    "segmented_photographs",
    "stage_bars",
    "style",
]
