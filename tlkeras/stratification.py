"""Stratification: deal pictures to the sides of a split, each class by its shares; what belongs together stays so."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tlkeras.splits import Split

ATTEMPTS = 20


def deal(
    labels: Sequence[Any] | None,
    pieces: np.ndarray,
    names: Sequence[str],
    *,
    split: Split,
    seed: int = 0,
    given: Sequence[str | None] | None = None,
) -> list[str]:
    """Deal pieces to the sides so that each class gets its share on each side.

    scikit-learn's StratifiedGroupKFold was tried first: it cuts in whole k-ths only and may leave a small class with
    no validation picture. Here large pieces go first, each to the side that lacks it most.

    Args:
        labels: the class of each picture, or None to deal without regard to classes.
        pieces: (picture,) integers; pictures with the same one stay together.
        names: a stable name of each picture; with the seed it decides the order of dealing.
        split: the shares.
        seed: another seed, another order.
        given: the side of each picture where it is fixed already, else None.

    Returns:
        "train", "validation" or "test" for every picture.

    Raises:
        ValueError: when a class cannot be on every side.
    """
    classes, codes = np.unique(["all"] * len(names) if labels is None else np.asarray(labels), return_inverse=True)
    sides = [side or "train" for side in given or [None] * len(names)]
    wanted = {"validation": split.validation, "test": split.test}
    shares = {side: share for side, share in wanted.items() if share and side not in sides}
    if not shares:
        return sides
    free = np.array([side == "train" for side in sides])
    order = ["train", *shares]
    for attempt in range(2 * ATTEMPTS):
        salt = f"{seed}.{attempt % ATTEMPTS}"
        dealt = _deal_once(codes[free], pieces[free], np.asarray(names)[free], shares, salt)
        if attempt >= ATTEMPTS:
            _repair(codes[free], pieces[free], dealt, len(order))
        held = np.zeros((len(order), len(classes)), int)
        np.add.at(held, (dealt, codes[free]), 1)
        short = (held == 0).any(axis=0) & (np.bincount(codes[free], minlength=len(classes)) > 0)
        if not short.any():
            break
    else:
        name = classes[np.flatnonzero(short)[0]]
        mine = free & (classes[codes] == name)
        raise ValueError(
            f"Class {str(name)!r} cannot be on every side ({', '.join(order)}): its {mine.sum()} pictures form "
            f"{len(np.unique(pieces[mine]))} pieces that stay together (groups, duplicates). Add pictures, leave the "
            "class out, ask for fewer sides, or check Split(groups=…, near_duplicates=False)."
        )
    for index, side in zip(np.flatnonzero(free), dealt, strict=True):
        sides[index] = order[side]
    return sides


def _deal_once(codes: np.ndarray, pieces: np.ndarray, names: Sequence[str], shares: dict, salt: str) -> np.ndarray:
    num_classes = codes.max() + 1
    sizes = np.bincount(codes, minlength=num_classes)
    quota = np.zeros((len(shares) + 1, num_classes))
    for row, share in enumerate(shares.values(), 1):  # at least one of each class, though the share be less
        quota[row] = np.minimum(np.maximum(np.round(share * sizes), 1), sizes)
    quota[0] = np.maximum(sizes - quota[1:].sum(axis=0), 1)
    draw = [hashlib.sha256(f"{salt}/{name}".encode("utf-8", "surrogateescape")).digest() for name in names]
    members: dict[int, list[int]] = defaultdict(list)
    for index, piece in enumerate(pieces):
        members[piece].append(index)
    queue = sorted(members.values(), key=lambda piece: (-len(piece), min(draw[index] for index in piece)))
    dealt = np.zeros(len(codes), int)
    need = quota.copy()
    for piece in queue:
        touched, counts = np.unique(codes[piece], return_counts=True)
        # Squared distance from the quotas, relative to them, if the piece went to this side rather than to none.
        left = need[:, touched]
        cost = (((left - counts) ** 2 - left**2) / quota[:, touched].clip(1)).sum(axis=1)
        side = int(np.argmin(cost))
        dealt[piece] = side
        need[side, touched] -= counts
    return dealt


def _repair(codes: np.ndarray, pieces: np.ndarray, dealt: np.ndarray, num_sides: int) -> None:
    """Give each side that lacks a class the smallest piece of it whose side holds all its classes in other pieces too.

    Where few large pieces hold a class, all of them may be nearer to the quota of one side.
    """
    names, place = np.unique(pieces, return_inverse=True)
    holds = np.zeros((len(names), codes.max() + 1), int)  # (piece, class) pictures
    np.add.at(holds, (place, codes), 1)
    side = np.zeros(len(names), int)
    side[place] = dealt
    count = np.stack([(holds[side == k] > 0).sum(axis=0) for k in range(num_sides)])  # (side, class) pieces
    for lacking, code in np.argwhere(count == 0):
        mine = np.flatnonzero(holds[:, code])
        spare = [piece for piece in mine if (count[side[piece], holds[piece] > 0] > 1).all()]
        if spare and not count[lacking, code]:  # a piece of another class may have brought it
            piece = min(spare, key=lambda piece: holds[piece].sum())
            count[side[piece], holds[piece] > 0] -= 1
            side[piece] = lacking
            count[lacking, holds[piece] > 0] += 1
    dealt[:] = side[place]
