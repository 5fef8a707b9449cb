"""A run as one page that can be read, mailed and printed: no other file, no network, no script."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np

from tlkeras.card import versions
from tlkeras.evaluation import Evaluation
from tlkeras.explain import grad_cam, overlay_heat
from tlkeras.intervals import Interval
from tlkeras.plots import plot_confusion, plot_history, plot_pictures
from tlkeras.predictions import Predictions

if TYPE_CHECKING:
    from tlkeras.data import Data
    from tlkeras.recipes import Result

REPORT = "report.html"
SCORES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1"}


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder: how good the model is and how sure that is, what it sees, how it learnt.

    Args:
        run: Made by `tlkeras fit`: its metrics.json and figures are read, the figures that are there go into the page.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If the folder holds no metrics.json.
    """
    import jinja2
    from markupsafe import Markup

    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    backbone, accuracy = metrics["backbone"], metrics["validation"]["accuracy"]
    arguments = dict(metrics["arguments"])
    for key in ("folder", "weights"):  # where they lie is nobody's business to whom the page is sent
        arguments[key] = _name_of(arguments[key])
    aside = [(item["path"], item["reason"]) for item in metrics["set_aside"]]
    notes = [(note,) for note in metrics["notes"]]
    alike = [("; ".join(paths),) for paths in metrics["duplicates"]]

    def in_percent(interval: Mapping[str, float]) -> str:
        return Interval(**interval).in_percent()

    def figure(name: str, described: str) -> Markup:
        if not (run / f"{name}.png").exists():
            return Markup("")
        data = base64.b64encode((run / f"{name}.png").read_bytes()).decode()
        return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(described, data)

    # Names of files and classes come from strangers: everything is escaped, and a word that is missing is an error.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tlkeras", "."), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html.jinja").render(
        title=f"{arguments['folder']}: {in_percent(accuracy)} of the validation pictures right",
        backbone=backbone["name"] + ("" if backbone["alpha"] is None else f" (alpha {backbone['alpha']})"),
        weights=_name_of(backbone["weights"]),
        phases=list(metrics["kept_epoch"]),
        metrics=metrics,
        classes=list(metrics["validation"]["per_class"]),
        judged=[split for split in ("validation", "test") if metrics[split]],
        scores=SCORES.items(),
        lists=[
            (aside, "Files set aside", ("file", "why")),
            (notes, "What else was found", ("note",)),
            (alike, "Groups of pictures that look the same", ("pictures",)),
        ],
        arguments=arguments,
        versions=versions(),
        in_percent=in_percent,
        percent=lambda share: f"{100 * share:.1f} %",
        number=lambda count: f"{count:,}",
        figure=figure,
    )
    (run / REPORT).write_text(page, encoding="utf-8", errors="replace")  # a file's name may be no text
    return run / REPORT


def draw_figures(folder: Path, data: Data, result: Result, held_out: Predictions, found: Evaluation) -> None:
    """Write history.png, confusion.png, pictures.png and, where something is wrong, mistakes.png.

    Args:
        folder: Where to.
        data: The pictures.
        result: What `transfer` made of them.
        held_out: Its predictions for the validation split.
        found: `evaluate` of these.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    def keep(axes, name: str) -> None:
        np.ravel(axes)[0].figure.savefig(folder / f"{name}.png", dpi=120)

    def show(rows: np.ndarray, pictures: np.ndarray, title: str):
        sure = held_out.probabilities[rows]
        truth, predicted = held_out.truth[rows], held_out.predicted[rows]
        return plot_pictures(pictures, truth, predicted, data.class_names, probabilities=sure, title=title)

    finding = f"Validation accuracy {found.accuracy.in_percent()}"
    share = next(reversed(result.history.shares.values()), 1.0)  # short of the last weights: no point of the curve
    way = f", {100 * share:.0f} % of the way" if 0 < share < 1 else ""
    keep(plot_history(result.history.rows, title=finding + way), "history")
    keep(plot_confusion(found.confusion, data.class_names, title=finding), "confusion")
    numbers = data.index["validation"]
    spread = np.unique(np.linspace(0, len(held_out) - 1, 12).round().astype(int))
    keep(show(spread, data.pixels.read(numbers[spread]), "Twelve validation pictures"), "pictures")
    wrong = np.flatnonzero(held_out.predicted != held_out.truth)
    surest = wrong[np.argsort(-held_out.probabilities[wrong].max(axis=1), kind="stable")]
    surest = surest[: 3 if len(surest) == 4 else 5]  # four and their heat would not stand above each other
    if len(surest):
        pictures = data.pixels.read(numbers[surest])
        heat = overlay_heat(pictures, grad_cam(result.model, pictures, held_out.predicted[surest]))
        title = "The surest mistakes, and where the network looked"
        keep(show(np.tile(surest, 2), np.concatenate([pictures, heat]), title), "mistakes")
    pyplot.close("all")


def _name_of(place: str) -> str:
    """The last part of a path; an address, or a word such as "imagenet", as it is."""
    return place if "://" in place else PurePath(place).name
