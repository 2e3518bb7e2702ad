"""Sliders that work on the published page without a kernel: every state is a picture of the page's build."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Hashable, Mapping

import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import HTML, display
from matplotlib.figure import Figure


def png(figure: Figure, dpi: int = 100) -> bytes:
    """Return a figure as PNG bytes, and close it so that no cell shows it a second time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", transparent=True)
    plt.close(figure)
    return buffer.getvalue()


def embedded(picture: bytes, alt: str) -> str:
    """Return PNG bytes as an HTML image that needs no file, with its alternative text."""
    data = base64.b64encode(picture).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt, quote=True)}">'


def slider(states: Mapping[Hashable, Figure], label: str, alt: str, start: int = 0) -> None:
    """Show a slider over pictures, linked in the page itself, so that it needs no kernel; arrow keys move it.

    Parameters
    ----------
    states
        The picture of each value.
    label
        What the value is, shown beside the slider.
    alt
        The alternative text of a picture, with `{}` for its value.
    start
        The number of the state shown first. Its picture is also put on the page as it is, for print and for readers
        without scripts.
    """
    pictures = [embedded(png(figure), alt.format(value)) for value, figure in states.items()]
    handle = ipywidgets.IntSlider(
        value=start, min=0, max=len(pictures) - 1, readout=False, layout={"width": "60%"}, description_allow_html=False
    )
    texts = [ipywidgets.Label(f"{label}: {value}") for value in states]
    frames = [ipywidgets.HTML(picture) for picture in pictures]
    shown = [ipywidgets.Stack(parts, selected_index=start) for parts in (texts, frames)]
    for stack in shown:
        ipywidgets.jslink((handle, "value"), (stack, "selected_index"))
    display(ipywidgets.VBox([ipywidgets.HBox([handle, shown[0]]), shown[1]]))
    without_scripts = "<noscript><style>figure.still { display: block !important; }</style></noscript>"
    display(HTML(f'<figure class="still">{pictures[start]}</figure>{without_scripts}'))
