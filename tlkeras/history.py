"""The record of a training."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

from tlkeras.audit import AuditReport


@dataclass(frozen=True)
class History:
    """What happened, epoch by epoch; add two to get both phases in one.

    Attributes:
        rows: A dictionary an epoch: phase, epoch (counted over both phases), loss, accuracy, val_loss, val_accuracy,
            learning_rate, seconds.
        audits: The freeze audit of each phase.
        kept: For each phase its epoch, counted from 1, whose weights it left (0 is the state before it).
        seconds: Wall time of each phase, features included.
        shares: How much of the way from the weights before it to those of that epoch each phase went, 0 to 1.

    A phase that is there already, such as a second `fine_tune`, is called "fine-tune again" in the sum.
    """

    rows: list[dict] = field(default_factory=list)
    audits: dict[str, AuditReport] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)

    def __add__(self, other: History) -> History:
        shift, names, taken = len(self.rows), {}, set(self.kept)
        for phase in other.kept:
            name = phase
            while name in taken:
                name += " again"
            names[phase] = name
            taken.add(name)
        rows = [
            {**row, "phase": names.get(row["phase"], row["phase"]), "epoch": row["epoch"] + shift} for row in other.rows
        ]
        sums = [self.rows + rows]
        for column in ("audits", "kept", "seconds", "shares"):
            later = {names.get(phase, phase): value for phase, value in getattr(other, column).items()}
            sums.append(getattr(self, column) | later)
        return History(*sums)

    def to_csv(self, path: str | Path) -> None:
        """Write a row an epoch."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
