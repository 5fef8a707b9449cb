"""Which strategy is best where, and does the advisor choose it? Every way to transfer by set, network and size.

    python benchmarks/strategies.py DATA/hymenoptera DATA/flowers DATA/chest_xray_pneumonia [--sizes 5 20 100]

For each folder, backbone (MobileNetV2 alpha 0.35, MobileNet alpha 0.25; ImageNet weights in KERAS_HOME, 224 px),
number of training pictures a class and seed: all pictures but test/ are dealt anew, patients kept together, 40 % to
train on (of which so many a class are kept), 20 % to choose the epoch by and 40 % to judge by. The
strategies are a probe of the last stage, fine-tuning, and fine-tuning from the probe (LP-FT); `--variants` adds the
head alone and what LP-FT could do otherwise: two stages, the first one only, layer-wise decay, half of the way
(WiSE-FT), the best epoch, a faster head. Regret is the accuracy of the best strategy of a cell less that of the one in
question, in points. A line a run is added to `--log`, and what stands there is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from _sets import BACKBONES, groups_together, pixels_together

import tlkeras as tl

MAIN = {"probe": {}, "fine-tune": {}, "probe+fine-tune": {}}
VARIANTS = {
    "head": {"strategy": "head"},
    "two stages": {"stages": 2},
    "the first stage": {"stages": "first"},
    "decay 0.3": {"settings": {"stage_decay": 0.3}},
    "half way": {"settings": {"interpolate": 0.5}},
    "the best epoch": {"settings": {"interpolate": 1.0}},
    "head at ten times the rate": {"settings": {"head_factor": 10.0}},
}


def read(folder: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pictures, labels and what belongs together of everything but test/."""
    data = tl.load_folder(folder, image_size=224, split=tl.Split(near_duplicates=False))
    return *pixels_together(data), groups_together(data)


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
    how = {"strategy": "probe+fine-tune", **how, "settings": tl.Settings(verbose=0, **how.get("settings", {}))}
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
                    chosen, seconds = advice.chosen.strategy, advice.seconds
                    if advice.cell.endswith("near"):  # as it was run above: the last stage, four unfrozen
                        accuracy = known[(*key[:-1], chosen)]["accuracy"]
                    else:
                        accuracy, _ = run(data, backbone, seed, {"strategy": "auto"})
                        chosen = f"{chosen}, as for far data"
                else:
                    chosen, (accuracy, seconds) = key[-1], run(data, backbone, seed, strategies[key[-1]])
                row = dict(zip(("data", "backbone", "size", "seed", "strategy"), key, strict=True))
                known[key] = {**row, "chosen": chosen, "accuracy": accuracy, "seconds": seconds}
                with arguments.log.open("a") as log:
                    log.write(json.dumps(known[key]) + "\n")
    report([known[key] for key in wanted], list(strategies), arguments.json)


def report(rows: list[dict], strategies: list[str], as_json: bool) -> None:
    """Print accuracy by cell, by set and by number of pictures, regret over all cells, and the claims."""
    runs = {}
    for row in rows:
        runs.setdefault((row["data"], row["backbone"], row["size"]), {}).setdefault(row["strategy"], []).append(row)
    means = {key: {name: 100 * np.mean([row["accuracy"] for row in found]) for name, found in by.items()}
             for key, by in runs.items()}  # fmt: skip
    columns = (*strategies, "advice")
    regret = {name: np.array([max(by[s] for s in strategies) - by[name] for by in means.values()]) for name in columns}
    ahead = {
        (one, other): np.array([by[one] - by[other] for by in means.values()])
        for one, other in (("fine-tune", "probe"), ("probe+fine-tune", "probe"), ("probe+fine-tune", "fine-tune"))
    }
    advised = [row for row in rows if row["strategy"] == "advice"]
    if not as_json:
        print(f"{'accuracy (%)':44}" + "  ".join(f"{name[:24]:>24}" for name in columns))
        for key, by in means.items():
            print_row(f"{key[0]}, {key[1]}, {key[2]} a class", [by], columns)
        for name, size in dict.fromkeys((key[0], key[2]) for key in means):
            found = [by for key, by in means.items() if (key[0], key[2]) == (name, size)]
            print_row(f"{name}, {size} a class, all networks", found, columns)
        print_row("mean", list(means.values()), columns)
        print("mean regret (points): " + ", ".join(f"{name} {values.mean():.2f}" for name, values in regret.items()))
        for (one, other), gains in ahead.items():
            print(f"{one} less {other}: {gains.mean():+.2f} points, ahead in {(gains > 0).sum()} of {len(gains)} cells")
            for size in (None, *dict.fromkeys(key[2] for key in runs)):
                chosen = [by for key, by in runs.items() if size in (None, key[2])]
                each = np.array([100 * (a["accuracy"] - b["accuracy"]) for by in chosen
                                 for a, b in zip(by[one], by[other], strict=True)])  # fmt: skip
                found = tl.mean_interval(each)  # as if the runs were independent: they share pictures
                print(f"    {'all' if size is None else f'{size} a class'}: {found.value:+.2f} ({found.low:+.2f} to "
                      f"{found.high:+.2f}) in {len(each)} runs, {each.min():+.1f} to {each.max():+.1f}, "
                      f"{(each == 0).sum()} alike, {(each > 0).sum()} ahead")  # fmt: skip
        choices = Counter((row["size"], row["chosen"]) for row in advised)
        print("advice: " + "; ".join(f"{size} a class: {name}, {n} times" for (size, name), n in choices.items()))
        seconds = [row["seconds"] for row in advised]
        print(f"advice took {min(seconds):.0f} to {max(seconds):.0f} s")
        return
    advice = float(regret["advice"].mean())
    fixed = min(float(regret[name].mean()) for name in strategies)
    print(json.dumps({"claim": "regret of the advice, points", "ours": round(advice, 2), "peer": round(fixed, 2),
                      "ratio": round(fixed / max(advice, 1e-9), 2), "goal": 1.0, "holds": advice <= 1.0}))  # fmt: skip
    for (one, other), gains in ahead.items():
        print(json.dumps({"claim": f"{one} less {other}, points", "ours": round(float(gains.mean()), 2), "peer": 0.0,
                          "ratio": None, "goal": 1.0, "holds": bool(gains.mean() >= 1.0)}))  # fmt: skip


def print_row(title: str, cells: list[dict], columns: tuple[str, ...]) -> None:
    print(title.ljust(44) + "  ".join(f"{np.mean([by[name] for by in cells]):24.1f}" for name in columns))


if __name__ == "__main__":
    main()
