"""What scripts about speed share: two ways of one job in turns, and the row that says which is faster."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable


def in_turns(ours: Callable[[], object], peer: Callable[[], object], repeats: int, count: int) -> tuple[float, float]:
    """Milliseconds for each of `count` things: medians over the repeats, without a first one, which compiles."""
    times = {peer: [], ours: []}
    for repeat in range(repeats + 1):
        for way, taken in times.items():
            started = time.perf_counter()
            way()
            if repeat:
                taken.append(1000 * (time.perf_counter() - started) / count)
    return statistics.median(times[ours]), statistics.median(times[peer])


def claim_row(claim: str, ours: float, peer: float, goal: float) -> dict:
    """One line of the results; times, so the ratio is how many times as fast ours is."""
    ratio = peer / ours
    numbers = {"ours": round(ours, 2), "peer": round(peer, 2), "ratio": round(ratio, 2)}
    return {"claim": claim, **numbers, "goal": goal, "holds": ratio >= goal}


def parse_arguments(description: str, repeats: int, quick: str) -> argparse.Namespace:
    """--repeats, --quick and --json."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", action="store_true", help="one object a line")
    return parser.parse_args()


def show(row: dict, as_json: bool) -> None:
    """Print a row."""
    print(json.dumps(row) if as_json else f"{row['ratio']:6.2f} times as fast: {row}", flush=True)
