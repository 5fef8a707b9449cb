"""Cut a list of pictures into train, validation and test, once, so that nothing of one is in another.

The classic leaks: `take` and `skip` on a dataset that reshuffles, two loaders with different seeds, the same patient
on both sides, the same photograph saved twice. Here the list is cut before any pipeline exists, and whatever belongs
together (a group, look-alikes, equal bytes) is dealt as one piece.
"""

from __future__ import annotations

import csv
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.arguments import real_number
from tlkeras.duplicates import encode, join, near_duplicates, sets
from tlkeras.scan import Picture, composed
from tlkeras.stratification import deal

logger = logging.getLogger("tlkeras")

SPLITS = ("train", "validation", "test")
COLUMNS = ("path", "class", "split", "sha256")  # of a manifest


@dataclass(frozen=True)
class Split:
    """How to cut: what share goes where, and what must stay together.

    Attributes:
        validation: share of the training pictures to validate on, in (0, 1).
        test: share to keep for the very end, in [0, 1).
        groups: what must not be divided (a patient, a camera, a location): a function from the relative path to a
            key, or a regular expression whose first group is the key; for arrays, one key a picture.
        near_duplicates: keep look-alikes on one side. Files with equal bytes always are.
    """

    validation: float = 0.2
    test: float = 0.0
    groups: Callable[[str], Any] | str | Sequence | None = None
    near_duplicates: bool = True

    def __post_init__(self):
        """Refuse shares that leave a side without pictures."""
        real_number("validation", self.validation, "(0, 1)")
        real_number("test", self.test, "[0, 1)")
        if self.validation + self.test >= 1:
            raise ValueError(f"validation={self.validation} and test={self.test} leave nothing to train on.")


@dataclass(frozen=True)
class Manifest:
    """A split that was written down: (path, class, split, sha256) a picture."""

    rows: tuple[tuple[str, str, str, str], ...]
    source: str = "manifest"


def split_files(
    pictures: Sequence[Picture], split: Split | Manifest, *, seed: int = 0
) -> tuple[list[str], tuple[tuple[str, ...], ...], np.ndarray]:
    """Get the split of every picture, the sets of duplicates found, and what belongs together.

    The same files give the same split on every machine and in every release of numpy: pictures are dealt in the order
    of a hash of their relative path and the seed. A split that the folders give (train/, val/, test/) is respected;
    what they do not give is cut from train/.

    Args:
        pictures: as `scan_folder` found them.
        split: shares, groups and the treatment of near-duplicates; or a Manifest to follow exactly.
        seed: another seed, another split.

    Returns:
        One of "train", "validation", "test" for every picture, tuples of paths that show the same picture, and
        an integer a picture that pictures of one group or one look share.

    Raises:
        ValueError: when a class cannot be on every side, when `groups` does not fit a path, or when the pictures are
            not those of the manifest.
    """
    paths = [picture.path for picture in pictures]
    followed = isinstance(split, Manifest)
    alike = encode([picture.sha256 for picture in pictures])
    if pictures and pictures[0].thumbnail and (followed or split.near_duplicates):
        looks = near_duplicates([picture.hash for picture in pictures], [picture.thumbnail for picture in pictures])
        alike = join(alike, looks)
    groups = None if followed else group_keys(paths, split.groups)
    pieces = alike if groups is None else join(alike, groups)
    given = _follow(pictures, split) if followed else [picture.split for picture in pictures]
    if any(given):
        report_leaks(paths, given, alike, "look the same")
        if groups is not None:
            report_leaks(paths, given, groups, "belong to one group")
    if followed:
        return given, sets(paths, alike), pieces
    labels, names = [picture.class_name for picture in pictures], [composed(path) for path in paths]
    return deal(labels, pieces, names, split=split, seed=seed, given=given), sets(paths, alike), pieces


def group_keys(paths: Sequence[str], groups: Callable[[str], Any] | str | Sequence | None) -> np.ndarray | None:
    """Get an integer for each picture, the same for all of one group; None without groups.

    Raises:
        ValueError: when the expression has no group, a path has no key, or the keys are not one a picture.
    """
    if groups is None:
        return None
    if isinstance(groups, str):
        try:
            pattern = re.compile(groups)
        except re.error as error:
            raise ValueError(f"groups={groups!r} is no regular expression: {error}.") from error
        if not pattern.groups:
            raise ValueError(f"groups={groups!r} needs a group in parentheses around the key, as in '(person[0-9]+)'.")
        matches = [pattern.search(path) for path in paths]
        keys = [match and match[1] for match in matches]
    else:
        keys = [groups(path) for path in paths] if callable(groups) else list(groups)
    if len(keys) != len(paths):
        raise ValueError(f"groups needs one key a picture: expected {len(paths)}, got {len(keys)}.")
    if missed := [path for path, key in zip(paths, keys, strict=True) if key is None]:
        what = f"={groups!r}" if isinstance(groups, str) else ""
        raise ValueError(f"groups{what} finds no key in {len(missed)} paths, {missed[0]!r} among them.")
    return encode([str(key) for key in keys])


def write_manifest(data: Any, path: str | Path) -> None:
    """Write which picture is in which split, as CSV: path, class, split, sha256.

    Keep it beside the results: with it, anybody can check that no test picture was trained on, and `read_manifest`
    gives the same split again.

    Args:
        data: what `load_folder` returned.
        path: the file to write; paths in it are relative to the folder, with forward slashes.

    Raises:
        ValueError: when the data came from arrays and has no files.
    """
    rows = []
    for side, paths in data.paths.items():
        if paths is None:
            raise ValueError("A manifest lists files, and this data has none: it was loaded from arrays.")
        names = [data.class_names[label] for label in data.labels[side]]
        rows += zip(paths, names, [side] * len(names), data.hashes[side], strict=True)
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(sorted(rows))


def read_manifest(path: str | Path) -> Manifest:
    """Get a written split back, to pass as `split=` to `load_folder`.

    Args:
        path: a CSV file with the columns path, class, split, sha256.

    Returns:
        A Manifest.

    Raises:
        ValueError: when a column is missing, a split has an unknown name, or a picture is listed twice.
        FileNotFoundError: when there is no such file.
    """
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:  # spreadsheets add a mark
        reader = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or [])]:
            raise ValueError(f"{str(path)!r} is no manifest: expected {', '.join(COLUMNS)}; without {missing}.")
        rows = tuple(tuple(row[name] for name in COLUMNS) for row in reader)
    if wrong := sorted({row[2] for row in rows} - set(SPLITS)):
        raise ValueError(f"{str(path)!r} names the splits {wrong}; known are {list(SPLITS)}.")
    names = sorted(composed(row[0]) for row in rows)
    if twice := [name for name, other in zip(names, names[1:], strict=False) if name == other]:
        raise ValueError(f"{str(path)!r} lists {twice[0]!r} twice: keep one row a picture.")
    return Manifest(rows, str(path))


def _follow(pictures: Sequence[Picture], manifest: Manifest) -> list[str]:
    """Get the split of each picture by the manifest, or "" for pictures that it does not list."""
    listed = {composed(path): (name, side, sha256) for path, name, side, sha256 in manifest.rows}
    found = {composed(picture.path): picture for picture in pictures}
    both = [path for path in listed if path in found]
    wrong = {
        "missing or unusable": sorted(set(listed) - set(found)),
        "with other content": [path for path in both if listed[path][2] != found[path].sha256],
        "of another class": [path for path in both if composed(listed[path][0]) != found[path].class_name],
    }
    problems = [
        f"{len(paths)} {what}: {', '.join(paths[:5])}{', …' if len(paths) > 5 else ''}"
        for what, paths in wrong.items()
        if paths
    ]
    if problems:
        raise ValueError(
            f"The folder does not hold the {len(listed)} pictures of {manifest.source!r}; {'; '.join(problems)}. "
            "Restore them, or split anew with split=Split(…)."
        )
    return [listed.get(composed(picture.path), ("", "", ""))[1] for picture in pictures]


def report_leaks(names: Sequence[str], given: Sequence[str | None], codes: np.ndarray, what: str) -> None:
    """Warn of pictures that belong together and lie on different sides of a split that was given."""
    if leaks := [" = ".join(sides.values()) for sides in find_leaks(names, given, codes)]:
        logger.warning(
            "LEAK in the given split, kept as it is: %d sets of pictures %s on different sides: %s%s",
            *(len(leaks), what, "; ".join(leaks[:5]), "; …" if len(leaks) > 5 else ""),
        )


def find_leaks(names: Sequence[str], given: Sequence[str | None], codes: np.ndarray) -> list[dict[str | None, str]]:
    """Get, for each code that lies on more than one side, the first name on each; a side of "" counts for nothing."""
    found: dict[int, dict[str | None, str]] = defaultdict(dict)
    for name, side, code in zip(names, given, codes, strict=True):
        if side != "":  # not in the manifest
            found[code].setdefault(side, name)
    return [sides for sides in found.values() if len(sides) > 1]
