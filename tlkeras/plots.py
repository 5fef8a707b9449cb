"""Every figure in one style: arrays in, Axes out.

The functions draw into the Axes they are given or make a figure of their own; none of them shows or saves. Write one
to a file with `axes.figure.savefig("curve.png")`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tlkeras import style
from tlkeras.evaluation import calibration_error, confidence_bins
from tlkeras.intervals import wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_history(
    rows: Sequence[Any], *, metric: str = "accuracy", title: str | None = None, ax: Axes | None = None
) -> Axes:
    """Get the learning curves of a training: train dashed, validation solid, the phases named at their boundaries.

    Args:
        rows: A `History` or its rows; or a list of those, one a seed: their mean, in a band from lowest to highest.
        metric: "accuracy" or "loss", or any other number in the rows.
        title: The finding, in a sentence.
        ax: Where to draw; a new figure by default.

    Raises:
        ValueError: If there are no rows, the metric is in none, or the seeds went through different phases.
    """
    from matplotlib.transforms import ScaledTranslation

    one = hasattr(rows, "rows") or (rows and isinstance(rows[0], Mapping))
    runs = [getattr(run, "rows", run) for run in ([rows] if one else rows)]
    if not runs or not all(runs):
        raise ValueError("There is no epoch to plot: train first.")
    num_epochs = min(map(len, runs))  # early stopping ends seeds at different epochs; a mean needs them all
    runs = [list(run)[:num_epochs] for run in runs]
    phases = [row.get("phase", "") for row in runs[0]]
    if any([row.get("phase", "") for row in run] != phases for run in runs):
        raise ValueError("The seeds changed phase at different epochs: plot them one by one.")
    rows = [row for run in runs for row in run]
    if metric not in (held := {key for row in rows for key, value in row.items() if isinstance(value, int | float)}):
        raise ValueError(f"The rows hold no {metric!r}; they hold {', '.join(sorted(held))}.")
    epochs = np.array([row["epoch"] for row in runs[0]])
    with style.house():
        ax = style.axes_of(ax, (6.4, 4.0))
        curves = {metric: ("train", "--", style.ORANGE), f"val_{metric}": ("validation", "-", style.BLUE)}
        for key, (name, dashes, colour) in curves.items():
            if not any(key in row for row in rows):
                continue
            values = np.array([[row.get(key, np.nan) for row in run] for run in runs])  # a probe's row has no loss
            dots = {"marker": "o" if num_epochs <= 15 else "", "markerfacecolor": "white" if key == metric else colour}
            ax.plot(epochs, values.mean(axis=0), dashes, color=colour, label=name, **dots)
            if len(runs) > 1:
                ax.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.18, linewidth=0)
        starts = [0, *(k for k in range(1, num_epochs) if phases[k] != phases[k - 1])]
        ax.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        ax.margins(y=0.08)
        for start in starts:
            if start:
                ax.axvline((epochs[start - 1] + epochs[start]) / 2, color=style.GREY, linewidth=0.8, label="_boundary")
            style.note_above(ax, phases[start], epochs[start] - 0.5, shift=3)
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        unit = "accuracy (%)" if metric.endswith("accuracy") else f"{metric} (nats)" if metric == "loss" else metric
        if metric.endswith("accuracy"):
            style.show_percent(ax.yaxis)
        ax.set_xlabel("epoch", loc="left")
        # Under the frame beside the label, where it hides no curve: 23 points below, whatever the size.
        below = ax.transAxes + ScaledTranslation(0, -23 / 72, ax.get_figure(root=True).dpi_scale_trans)
        place = {"loc": "upper right", "bbox_to_anchor": (1, 0), "bbox_transform": below}
        ax.legend(ncols=2, borderaxespad=0, borderpad=0, **place)
        style.finish(ax, title, None, unit, pad=18)
    return ax


def plot_confusion(
    matrix: np.ndarray, class_names: Sequence[str], *, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """Get the confusion matrix: counts as text, and as shade the share of the true class.

    Args:
        matrix: Counts (k, k), truth down, prediction across; `Evaluation.confusion`.
        class_names: The k classes. Above 20 the counts are left out, above 40 some names.
        title: The finding, in a sentence.
        ax: Where to draw; a new figure by default.

    Raises:
        ValueError: If the matrix is not square or the names are not as many.
    """
    matrix = np.asarray(matrix)
    k = len(class_names)
    if matrix.shape != (k, k):
        raise ValueError(f"{k} class names want a matrix of shape {(k, k)}, got {matrix.shape}.")
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    names = [style.shortened(name) for name in class_names]
    if len(set(names)) < k:  # "species … (left)" twice: numbers keep them apart
        names = [f"{index}: {name}" for index, name in enumerate(names)]
    with style.house():
        step = math.ceil(k / 40)
        size = 10 if k <= 10 else 8 if k <= 25 else 7
        upright = max(map(len, names)) * k > 40
        cells = min(max(0.36 * k, min(1.1 * k, 5)), 12)
        room = max(map(len, names)) * size * 0.0085  # inches that the names take beside the cells
        ax = style.axes_of(ax, (cells + room + 2.2, cells + 1.1 + (room * 0.75 if upright else 0)))
        image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(matrix.shape) if k <= 20 else ():
            count, colour = matrix[row, column], "white" if share[row, column] > 0.55 else style.INK
            if k <= 6:
                text = f"{count:,}\n{share[row, column]:.0%}"
            else:
                text = f"{count:,}" if count else ""  # zeros would hide the mistakes
            ax.text(column, row, text, ha="center", va="center", color=colour if count else style.GREY, fontsize=size)
        ax.set_xticks(range(0, k, step), names[::step], fontsize=size)
        ax.set_yticks(range(0, k, step), names[::step], fontsize=size)
        if upright:
            ax.tick_params(axis="x", rotation=90 if k > 12 else 40)
            for label in ax.get_xticklabels():
                label.set(ha="center" if k > 12 else "right", rotation_mode="anchor" if k <= 12 else "default")
        bar = ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.03)
        bar.outline.set_visible(False)
        style.show_percent(bar.ax.yaxis)
        bar.set_label("share of the true class (%)")
        style.finish(ax, title, "predicted class", "true class", grid=None)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
    return ax


def plot_pictures(
    images: np.ndarray,
    truth: Sequence[int],
    predicted: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    *,
    probabilities: np.ndarray | None = None,
    title: str | None = None,
) -> np.ndarray:
    """Get a grid of pictures, each under its class; a wrong one says so with a cross, a frame and both names.

    Args:
        images: (n, height, width, 3), or 1 for grey, in [0, 255]; 25 or fewer stay readable.
        truth: Class indices (n,).
        predicted: Class indices (n,); without them only the truth is written.
        class_names: Names of the classes; the indices by default.
        probabilities: (n, k), or (n,) of the predicted class: written beside the prediction.
        title: The finding, in a sentence.

    Returns:
        The Axes that hold a picture, (n,), in order.

    Raises:
        ValueError: If there is no picture, its channels are neither 3 nor 1, or the parts are not as many.
    """
    images = np.asarray(images)
    parts = {"truth": truth, "predicted": predicted, "probabilities": probabilities}
    for name, part in parts.items():
        if part is not None and len(part) != len(images):
            raise ValueError(f"{len(images)} pictures, but {len(part)} in {name}.")
    if images.ndim != 4 or not len(images) or images.shape[-1] not in (1, 3):
        raise ValueError(f"images must be (n, height, width, 3 or 1) with one picture at least, got {images.shape}.")
    columns = min(len(images), 5 if len(images) != 6 and len(images) != 9 else 3)
    grid_rows = math.ceil(len(images) / columns)

    def name_of(index: int) -> str:
        return style.shortened(class_names[index]) if class_names is not None else str(index)

    with style.house():
        lines = 1 if predicted is None else 2
        figure = style.new_figure((1.9 * columns, (1.9 + 0.2 * lines) * grid_rows + (0.5 if title else 0.1)))
        grid = figure.subplots(grid_rows, columns, squeeze=False).ravel()
        for ax in grid[len(images) :]:
            ax.set_visible(False)
        for index, ax in enumerate(grid[: len(images)]):
            picture = np.clip(images[index], 0, 255).astype(np.uint8).repeat(3 // images.shape[-1], axis=-1)
            ax.imshow(picture, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            wrong = predicted is not None and predicted[index] != truth[index]
            caption = name_of(truth[index])
            if predicted is not None:
                sure = ""
                if probabilities is not None:
                    row = np.atleast_1d(probabilities[index])
                    sure = f" {row[predicted[index]] if len(row) > 1 else row[0]:.0%}"
                caption = f"✗ {name_of(predicted[index])}{sure}\nis {caption}" if wrong else f"✓ {caption}{sure}"
            small = max(map(len, caption.split("\n"))) > 20
            text = {"color": style.VERMILLION, "weight": "bold"} if wrong else {"weight": "normal"}
            frame = {"color": style.VERMILLION, "linewidth": 3} if wrong else {"color": style.PALE, "linewidth": 0.8}
            ax.set_title(caption, fontsize=7.5 if small else 9, loc="left", pad=4, **text)
            ax.spines[:].set(visible=True, **frame)
        if title:
            figure.suptitle(style.wrapped(title, figure.get_figwidth()), size=11, weight="bold", x=0.02, ha="left")
    return grid[: len(images)]


def plot_intervals(
    intervals: Mapping[str, Any],
    *,
    baseline: float | None = None,
    baseline_name: str = "baseline",
    label: str = "accuracy (%)",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Get named values with their intervals, one a line, against a baseline: for comparing strategies.

    Args:
        intervals: Name to `Interval`, or to (value, low, high); drawn from top to bottom in this order.
        baseline: A value to beat, such as chance; a thin grey line.
        baseline_name: What that is.
        label: Quantity and unit; with "(%)" in it values are shares in [0, 1], shown as per cent; "points" get a sign.
        title: The finding, in a sentence.
        ax: Where to draw; a new figure by default.

    Raises:
        ValueError: If there is nothing to draw or an interval does not hold its value.
    """
    if not intervals:
        raise ValueError("There is no interval to plot.")
    triples = [(i.value, i.low, i.high) if hasattr(i, "low") else tuple(i) for i in intervals.values()]
    for name, (value, low, high) in zip(intervals, triples, strict=True):
        if not low <= value <= high:
            raise ValueError(f"{name!r}: expected low <= value <= high, got {low}, {value}, {high}.")
    value, low, high = np.array(triples, dtype=float).T
    percent = "(%)" in label
    with style.house():
        ax = style.axes_of(ax, (6.4, 1.3 + 0.45 * len(intervals)))
        places = np.arange(len(intervals))
        error = np.abs(np.stack([value - low, high - value]))
        ax.errorbar(value, places, xerr=error, fmt="o", color=style.BLUE, markersize=7, elinewidth=2, capsize=4)
        for place, middle in zip(places, value, strict=True):
            text = f"{100 * middle:.1f}" if percent else f"{middle:+.1f}" if "points" in label else f"{middle:.3g}"
            ax.annotate(text, (middle, place), (0, 6), "data", "offset points", ha="center", size=9, bbox=style.PAPER)
        ax.set_yticks(places, [style.shortened(name, 34) for name in intervals])
        ax.set_ylim(len(intervals) - 0.5, -0.7)
        ax.margins(x=0.08)
        if baseline is not None:
            ax.axvline(baseline, color=style.GREY, linewidth=0.8)
            style.note_above(ax, baseline_name, baseline, ha="center")
        if percent:
            style.show_percent(ax.xaxis)
        style.finish(ax, title, label, None, grid="x", pad=18 if baseline is not None else 12)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
    return ax


def plot_reliability(
    probabilities: np.ndarray,
    truth: np.ndarray,
    *,
    num_bins: int = 15,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Get how often the model is right when it is so and so sure; on the diagonal it is calibrated.

    A dot below the diagonal is overconfident. Its size grows with the pictures it stands for, its bar is the 95 %
    interval of its accuracy: with few pictures most wander from the diagonal by chance alone.

    Args:
        probabilities: (n, k).
        truth: Class indices (n,).
        num_bins: Bins of equal width over the confidence, of the dots and of the calibration error.
        title: The finding, in a sentence.
        ax: Where to draw; a new figure by default.

    Raises:
        ValueError: If there is no picture.
    """
    probabilities, truth = np.asarray(probabilities), np.asarray(truth)
    if not len(truth):
        raise ValueError("There is no picture to plot.")
    counts, confidence, right = confidence_bins(probabilities, truth, num_bins=num_bins)
    used = counts > 0
    counts, sure = counts[used], confidence[used] / counts[used]
    shares = [wilson_interval(r, c) for r, c in zip(right[used], counts, strict=True)]
    value, low, high = np.array([(s.value, s.low, s.high) for s in shares]).T
    error = calibration_error(probabilities, truth, num_bins=num_bins)
    with style.house():
        ax = style.axes_of(ax, (4.8, 4.8))
        ax.plot([0, 1], [0, 1], color=style.GREY, linewidth=0.8, label="calibrated")
        ax.vlines(sure, low, high, color=style.BLUE, linewidth=1.5, alpha=0.6)
        sizes = 18 + 200 * counts / counts.max()
        ax.plot(sure, value, color=style.BLUE, label="model", zorder=2)
        ax.scatter(sure, value, s=sizes, color=style.BLUE, edgecolor="white", linewidth=0.8, zorder=3)
        chance = 1 / probabilities.shape[1]  # the surest of k classes is never below 1 / k
        ax.set(xlim=(chance - 0.03, 1.03), ylim=(-0.03, 1.03))
        style.show_percent(ax.xaxis)
        style.show_percent(ax.yaxis)
        note = f"calibration error {100 * error:.1f} points, {len(truth):,} pictures"
        ax.legend(loc="upper left", title=note, alignment="left", title_fontsize=9)
        style.finish(ax, title, "confidence (%)", "right (% of the pictures)")
    return ax
