"""Progress on long work, in a terminal and in a notebook."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import keras


class EpochLines(keras.callbacks.Callback):
    """A bar over the epochs of a phase with the latest figures beside it, or a printed line an epoch."""

    def __init__(self, phase: str, epochs: int, verbose: int):
        """Take the phase's name, the most epochs it can have, and 0 (silent), 1 (bar) or 2 (lines)."""
        super().__init__()
        self.phase, self.epochs, self.verbose = phase, epochs, verbose
        self._bar = None

    def on_train_begin(self, logs=None):
        """Open the bar."""
        if self.verbose == 1:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = TextColumn("{task.description:<9}"), BarColumn(24), TextColumn("{task.fields[figures]}")
            self._bar = Progress(*columns, TimeElapsedColumn())
            self._bar.start()
            self._task = self._bar.add_task(self.phase, total=self.epochs, figures="")

    def on_epoch_end(self, epoch, logs=None):
        """Show the epoch's figures."""
        figures = "  ".join(f"{key} {float(value):.3f}" for key, value in (logs or {}).items())
        if self._bar:
            self._bar.update(self._task, completed=epoch + 1, figures=f"{epoch + 1}/{self.epochs}  {figures}")
        elif self.verbose == 2:
            print(f"{self.phase} {epoch + 1}/{self.epochs}  {figures}", flush=True)

    def close(self) -> None:
        """Close the bar; safe to call twice."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    @staticmethod
    def spinner(message: str, verbose: int):
        """Get a context manager that shows a message while something of unknown length runs."""
        if verbose != 1:
            return contextlib.nullcontext()
        from rich.console import Console

        return Console().status(message)


def show_progress(items: Iterable, total: int, text: str) -> Iterator:
    """Get the items, with a bar where somebody looks and there are many."""
    from importlib.util import find_spec

    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    visible = console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)
    return track(items, text, total=total, console=console, transient=True, disable=total < 200 or not visible)
