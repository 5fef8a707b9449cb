"""The one style of every figure: palette, frame, labels, and titles that fit."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito, 2008, https://jfly.uni-koeln.de/color/: told apart with every kind of colour vision.
BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
INK, GREY, PALE = "#222222", "#767676", "#D9D9D9"
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # behind a text that crosses a line

STYLE = {
    "font.size": 10,
    "text.color": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "white",
    "figure.facecolor": "white",
    "figure.dpi": 100,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.handlelength": 2.8,  # long enough to see a dashed line as dashed
}


@contextmanager
def house() -> Iterator[None]:
    """Draw in the style of the house, and leave the caller's alone."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield
        interactive = matplotlib.is_interactive()
    # In a notebook the first figure turns interaction on, without which no later one is shown; the context forgets it.
    matplotlib.interactive(interactive)


def new_figure(size: tuple[float, float]) -> Any:
    """Get a figure of a size in inches."""
    from matplotlib import pyplot

    # From pyplot, so that a notebook shows it without being asked.
    figure = pyplot.figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    return figure


def axes_of(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Get the Axes given, or those of a new figure of this size in inches."""
    return ax if ax is not None else new_figure(size).add_subplot()


def show_percent(axis: Any) -> None:
    """Write shares in [0, 1] along an axis as per cent."""
    axis.set_major_formatter(lambda share, _: f"{100 * share:g}")


def note_above(ax: Axes, text: str, x: float, *, shift: float = 0, **options: Any) -> None:
    """Write above the frame, where no curve can run through it, at x and `shift` points beside."""
    place = {"xycoords": ax.get_xaxis_transform(), "textcoords": "offset points"}
    ax.annotate(text, (x, 1), (shift, 3), color=GREY, fontsize=9, **place, **options)


def shortened(name: str, longest: int = 22) -> str:
    """Get a name with its middle left out: the beginnings and ends of class names tell them apart."""
    if len(name) > longest:
        half = (longest - 1) // 2
        name = f"{name[: longest - 1 - half]}…{name[-half:]}"
    return name.replace("$", r"\$")  # or matplotlib reads a formula


def wrapped(title: str, inches: float) -> str:
    """Get the title in lines that fit: 11 point bold takes about 0.093 inches a character."""
    return textwrap.fill(title, max(int(inches / 0.093), 16))


def finish(
    ax: Axes, title: str | None, xlabel: str | None, ylabel: str | None, *, grid: str | None = "y", pad: float = 12
) -> None:
    """Give Axes that came from elsewhere the same frame, labels and grid as our own."""
    if xlabel:
        ax.set_xlabel(xlabel)
    if ylabel:
        ax.set_ylabel(ylabel)
    if grid:
        ax.grid(axis=grid, color=PALE, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set(color=GREY, linewidth=0.8)
    ax.tick_params(color=GREY, labelcolor=INK)
    if title:
        figure = ax.get_figure(root=True)
        figure.draw_without_rendering()  # only now is it known where the labels leave the Axes
        place, alone = ax.get_position(), len(figure.axes) <= 2  # perhaps with its colour bar
        inches = figure.get_figwidth() * (1 - place.x0 if alone else place.width)
        ax.set_title(wrapped(title, inches), loc="left", pad=pad)
