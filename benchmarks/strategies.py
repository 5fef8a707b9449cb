"""Which strategy is best where, and does the advisor choose it? Every way to transfer by set, network and size.

    python benchmarks/strategies.py DATA/hymenoptera DATA/flowers DATA/chest_xray_pneumonia [--sizes 5 20 100]

For each folder, backbone (MobileNetV2 alpha 0.35, MobileNet alpha 0.25; ImageNet weights in KERAS_HOME, 224 px),
number of training pictures a class and seed: all pictures but test/ are dealt anew, patients kept together, 40 % to
train on (of which so many a class are kept), 20 % to choose the epoch by and 40 % to judge by. `--variants` adds
LP-FT, training of the first stage only, layer-wise decay and WiSE-FT to probe, head and fine-tuning. Regret is the
accuracy of the best strategy of a cell less that of the one in question, in points. A line a run is added to `--log`,
and what stands there is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import tlkeras as tl

BACKBONES = {"MobileNetV2": 0.35, "MobileNet": 0.25}
PATIENT = re.compile(r"person\d+|(?:NORMAL2-)?IM-\d+")
MAIN = {"probe": {}, "head": {}, "fine-tune": {}}
VARIANTS = {
    "fine-tune from the probe": {"strategy": "probe+fine-tune"},
    "fine-tune the first stage": {"strategy": "fine-tune", "stages": "first"},
    "fine-tune with decay 0.3": {"strategy": "fine-tune", "settings": {"stage_decay": 0.3}},
    "fine-tune half way": {"strategy": "fine-tune", "settings": {"interpolate": 0.5}},
    "fine-tune four stages": {"strategy": "fine-tune", "stages": 4},
}


def read(folder: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pictures, labels and what belongs together of everything but test/."""
    data = tl.load_folder(folder, image_size=224, split=tl.Split(near_duplicates=False))
    parts = [split for split in ("train", "validation")]
    images = np.concatenate([data.pixels.read(data.index[split]) for split in parts])
    labels = np.concatenate([data.labels[split] for split in parts])
    names = [Path(path).name for split in parts for path in data.paths[split]]
    patients = [PATIENT.match(name) for name in names]
    return images, labels, [match.group() if match else name for match, name in zip(patients, names, strict=True)]


def deal(pictures, size: int, seed: int) -> tl.Data:
    """So many training pictures a class, pictures to choose by, and pictures to judge by."""
    images, labels, groups = pictures
    split = tl.Split(validation=0.2, test=0.4, groups=groups, near_duplicates=False)
    data = tl.load_arrays(images, labels, seed=seed, split=split)
    order = np.random.default_rng(seed).permutation(len(data.labels["train"]))
    truth = data.labels["train"][order]
    return data.subset(np.concatenate([order[truth == k][:size] for k in range(data.num_classes)]))


def run(data: tl.Data, backbone: tl.Backbone, seed: int, how: dict) -> tuple[float, float]:
    """Accuracy on the pictures to judge by, and seconds."""
    started = time.perf_counter()
    how = {"strategy": "fine-tune", **how, "settings": tl.Settings(verbose=0, **how.get("settings", {}))}
    if how.get("stages") == "first":
        how["stages"] = backbone.stages[:1]
    model = tl.transfer(data, backbone, seed=seed, **how).model
    seconds = time.perf_counter() - started
    return tl.evaluate(tl.open_test(model, data)).accuracy.value, seconds


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    parser.add_argument("--sizes", nargs="+", type=int, default=[5, 20, 100])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one seed, two sizes, one network")
    parser.add_argument("--log", type=Path, default=Path("strategies.jsonl"))
    parser.add_argument("--json", action="store_true", help="one object a claim")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.sizes, arguments.backbones = 1, [5, 20], arguments.backbones[:1]
    done = [json.loads(line) for line in arguments.log.read_text().splitlines()] if arguments.log.exists() else []
    known = {(row["data"], row["backbone"], row["size"], row["seed"], row["strategy"]): row for row in done}
    strategies = {name: {"strategy": name, **how} for name, how in MAIN.items()}
    strategies |= VARIANTS if arguments.variants else {}
    wanted = []
    for folder in arguments.folders:
        pictures = read(folder)
        for seed, name, size in ((s, b, n) for s in range(arguments.seeds) for b in arguments.backbones
                                 for n in arguments.sizes):  # fmt: skip
            keys = [(folder.name, name, size, seed, strategy) for strategy in (*strategies, "advice")]
            wanted += keys
            if all(key in known for key in keys):
                continue
            data = deal(pictures, size, seed)
            backbone = tl.load_backbone(name, weights="imagenet", alpha=BACKBONES[name], image_size=224)
            for key in keys:
                if key in known:
                    continue
                if key[-1] == "advice":
                    advice = tl.advise(data, backbone, seed=seed)
                    chosen = {"probe": "probe", "head": "head"}.get(advice.chosen.strategy, "fine-tune")
                    if advice.chosen.stages == 4 and "fine-tune four stages" in strategies:
                        chosen = "fine-tune four stages"
                    accuracy, seconds = known[(*key[:-1], chosen)]["accuracy"], advice.seconds
                    if chosen == "probe" and advice.chosen.stage != backbone.stages[-1]:
                        accuracy, _ = run(data, backbone, seed, {"strategy": "auto"})
                else:
                    chosen, (accuracy, seconds) = key[-1], run(data, backbone, seed, strategies[key[-1]])
                row = dict(zip(("data", "backbone", "size", "seed", "strategy"), key, strict=True))
                known[key] = {**row, "chosen": chosen, "accuracy": accuracy, "seconds": seconds}
                with arguments.log.open("a") as log:
                    log.write(json.dumps(known[key]) + "\n")
    report([known[key] for key in wanted], list(strategies), arguments.json)


def report(rows: list[dict], strategies: list[str], as_json: bool) -> None:
    """Print accuracy by cell, regret over all cells, and the two claims."""
    runs = {}
    for row in rows:
        runs.setdefault((row["data"], row["backbone"], row["size"]), {}).setdefault(row["strategy"], []).append(row)
    means = {key: {name: 100 * np.mean([row["accuracy"] for row in found]) for name, found in by.items()}
             for key, by in runs.items()}  # fmt: skip
    regret = {
        name: np.array([max(by[s] for s in strategies) - by[name] for by in means.values()])
        for name in (*strategies, "advice")
    }
    ahead = np.array([by["fine-tune"] - by["probe"] for by in means.values()])
    seconds = max(row["seconds"] for row in rows if row["strategy"] == "advice")
    if not as_json:
        print(f"{'accuracy (%)':34}" + "".join(f"{name[:24]:>27}" for name in (*strategies, "advice")))
        for key, by in means.items():
            print(
                f"{key[0]}, {key[1]}, {key[2]} a class".ljust(44)
                + "  ".join(f"{by[n]:6.1f}" for n in (*strategies, "advice"))
            )
        print("mean regret (points): " + ", ".join(f"{name} {values.mean():.2f}" for name, values in regret.items()))
        print(f"fine-tuning less the probe: {ahead.mean():+.2f} points; the longest advice took {seconds:.0f} s")
        return
    advice = float(regret["advice"].mean())
    fixed = min(float(regret[name].mean()) for name in strategies)
    print(json.dumps({"claim": "regret of the advice, points", "ours": round(advice, 2), "peer": round(fixed, 2),
                      "ratio": round(fixed / max(advice, 1e-9), 2), "goal": 1.0, "holds": advice <= 1.0}))  # fmt: skip
    print(json.dumps({"claim": "fine-tuning less the probe, points", "ours": round(float(ahead.mean()), 2), "peer": 0.0,
                      "ratio": None, "goal": 1.0, "holds": bool(ahead.mean() >= 1.0)}))  # fmt: skip


if __name__ == "__main__":
    main()
