"""The catalogue: what has to be known about a net before it is built. Its rows are data, in ``catalogue.json``."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Width:
    """One width of a net: how many weights it has (without top) and the ImageNet file that fills them."""

    num_weights: int
    file: str
    url: str
    hash: str | None


@dataclass(frozen=True)
class Entry:
    """A row of the catalogue.

    Attributes:
        name: its name in ``keras.applications``.
        preprocessing: "tf" (x / 127.5 - 1), "torch" (mean and deviation), "caffe" (BGR minus mean) or "none" (inside).
        image_size: height and width in pixels that the ImageNet weights were trained at.
        min_size: the smallest height and width in pixels that the net accepts.
        top1: ImageNet top-1 accuracy in percent at width 1, as Keras publishes it.
        batch_norm: whether the net has batch-norm layers.
        stages: layer names, first to last; each layer's output cuts the graph in two.
        trained_sizes: image sizes for which separate weights are published; only the MobileNets have several.
        widths: per width multiplier, the weights and their file; most nets have the one width 1.0.
    """

    name: str
    preprocessing: str
    image_size: int
    min_size: int
    top1: float
    batch_norm: bool
    stages: tuple[str, ...]
    trained_sizes: tuple[int, ...]
    widths: dict[float, Width]

    @property
    def num_weights(self) -> int:
        """Number of weights at width 1, without top."""
        return self.widths[1.0].num_weights

    @property
    def alphas(self) -> tuple[float, ...]:
        """The widths with ImageNet weights, or nothing where the net has no width to choose."""
        return tuple(self.widths) if len(self.widths) > 1 else ()

    @property
    def learns_normalization(self) -> bool:
        """Whether its file holds the statistics of its preprocessing as weights: EfficientNet B0 to B7."""
        return self.name.startswith("EfficientNetB")

    def title(self, alpha: float) -> str:
        """Get the name for a sentence, with its width where there is one to choose."""
        return f"{self.name} at alpha {alpha}" if self.alphas else self.name

    def width(self, alpha: float) -> Width:
        """Get the width with this multiplier.

        Raises:
            ValueError: no ImageNet weights are published for it.
        """
        if alpha not in self.widths:
            known = ", ".join(map(str, self.widths))
            raise ValueError(f"{self.name} has ImageNet weights at alpha {known}, not {alpha!r}.")
        return self.widths[alpha]


def find_entry(name: str) -> Entry:
    """Get the row of a net.

    Raises:
        ValueError: no such net; the nearest names are given.
    """
    if not isinstance(name, str) or name not in CATALOGUE:
        lower = {known.lower(): known for known in CATALOGUE}
        near = [lower[match] for match in difflib.get_close_matches(str(name).lower(), lower, n=3, cutoff=0.5)]
        hint = f"did you mean {' or '.join(near)}?" if near else "list_backbones() names them all."
        raise ValueError(f"There is no backbone {name!r}: {hint}")
    return CATALOGUE[name]


def _read_catalogue() -> dict[str, Entry]:
    catalogue = {}
    for name, row in json.loads(Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8"))["nets"].items():
        row["widths"] = {float(alpha): Width(**width) for alpha, width in row["widths"].items()}
        lists = {key: tuple(row[key]) for key in ("stages", "trained_sizes")}
        catalogue[name] = Entry(name=name, **{**row, **lists})
    return catalogue


CATALOGUE = _read_catalogue()
