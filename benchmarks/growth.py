"""How time and memory grow with the number of pictures: features of 1,000 to 20,000 JPEG files.

    python benchmarks/growth.py DATA/flowers [--counts 1000 5000 20000] [--repeats 3] [--json]

MobileNetV2 alpha 0.35 at 224 px, ImageNet weights from KERAS_HOME, float32. The folder's pictures are linked under as
many names as it takes. Each measurement is a process of its own: network and engine are there, the time is that from
files to features, and memory is what the process holds at its peak beyond what it held before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPT = """
import json, os, resource, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np, psutil
import tlkeras as tl
backbone = tl.load_backbone("MobileNetV2", weights="imagenet", alpha=0.35, image_size=224)
warm = np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3), np.uint8)
tl.extract_features(backbone, tl.load_arrays(warm, np.arange(64) % 2).pictures("train"))
before, started = psutil.Process().memory_info().rss, time.perf_counter()
data = tl.load_folder(sys.argv[1], image_size=224, split=tl.Split(near_duplicates=False))
pictures = sum(len(tl.extract_features(backbone, data.pictures(side)).labels) for side in ("train", "validation"))
seconds = time.perf_counter() - started
peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"pictures": pictures, "seconds": seconds, "megabytes": (peak - before) / 1e6, "cache": data.cache}))
"""


def link(folder: Path, target: Path, count: int) -> None:
    """As many names for the folder's JPEG files, in class folders, all classes alike."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    for number in range(count):
        source = files[number * 7919 % len(files)]  # a prime: neighbours come from different classes
        name = target / source.parent.name / f"{number:06}{source.suffix}"
        name.parent.mkdir(parents=True, exist_ok=True)
        name.symlink_to(source.resolve())


def measure(folder: Path, count: int, repeats: int) -> dict:
    """Medians over the repeats."""
    with tempfile.TemporaryDirectory() as scratch:
        link(folder, Path(scratch), count)
        runs = []
        for _ in range(repeats):
            command = [sys.executable, "-c", SCRIPT, scratch]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
            runs.append(json.loads(done.stdout.strip().splitlines()[-1]))
    found = {figure: statistics.median(run[figure] for run in runs) for figure in ("pictures", "seconds", "megabytes")}
    return {**found, "cache": runs[0]["cache"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 5_000, 20_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the smallest two counts, once")
    parser.add_argument("--json", action="store_true", help="one object a line")
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    counts = sorted(arguments.counts)[:2] if arguments.quick else sorted(arguments.counts)
    rows = [measure(arguments.folder, count, 1 if arguments.quick else arguments.repeats) for count in counts]
    for row in rows:
        each = 1000 * row["seconds"] / row["pictures"]
        print(f"{row['pictures']:8,.0f} pictures: {row['seconds']:7.1f} s, {each:.2f} ms each, "
              f"{row['megabytes']:6.0f} MB at the peak beyond the framework, pictures in: {row['cache']}")  # fmt: skip
    if arguments.json:
        least, most = rows[0], rows[-1]
        each = [row["seconds"] / row["pictures"] for row in (most, least)]
        claim = f"time a picture with {most['pictures']:,.0f} pictures against {least['pictures']:,.0f}, ms"
        print(json.dumps({"claim": claim, "ours": 1000 * each[0], "peer": 1000 * each[1], "ratio": each[0] / each[1],
                          "goal": 1.1, "holds": each[0] <= 1.1 * each[1]}))  # fmt: skip
        claim = f"memory beyond the framework with {most['pictures']:,.0f} pictures, MB"
        print(json.dumps({"claim": claim, "ours": most["megabytes"], "peer": least["megabytes"],
                          "ratio": most["megabytes"] / least["megabytes"], "goal": 1500,
                          "holds": most["megabytes"] <= 1500}))  # fmt: skip


if __name__ == "__main__":
    main()
