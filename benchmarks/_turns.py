"""What scripts about speed share: two ways of one job in turns, and the row that says which is faster."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable


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


def measure_all(
    description: str, names: Iterable[str], measure: Callable[[str, int], dict], repeats: int, *, quick: int = 1
) -> None:
    """Measure each of the names and print its row, as --repeats, --quick (the first, `quick` times) and --json say."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--quick", action="store_true", help=f"the first only, repeats: {quick}")
    parser.add_argument("--json", action="store_true", help="one object a line")
    arguments = parser.parse_args()
    for name in list(names)[: 1 if arguments.quick else None]:
        row = measure(name, quick if arguments.quick else arguments.repeats)
        print(json.dumps(row) if arguments.json else f"{row['ratio']:6.2f} times as fast: {row}", flush=True)
