"""The demo: transfer against training from scratch, in a minute and without a network."""

from __future__ import annotations

import time

import keras


def run_demo(seed: int = 0, *, num_classes: int = 10, per_class: int = 20, epochs: int = 15) -> dict:
    """Print transfer against training from scratch on unseen fractals, with intervals.

    Returns:
        Strategy -> `Interval` of accuracy on 300 held-out pictures.
    """
    from rich.console import Console
    from rich.table import Table

    from tlkeras.backbones import load_backbone
    from tlkeras.evaluation import compare, evaluate
    from tlkeras.fractals import make_fractals
    from tlkeras.heads import build_classifier
    from tlkeras.loaders import load_arrays
    from tlkeras.predictions import predict
    from tlkeras.probes import probe_head
    from tlkeras.settings import Settings
    from tlkeras.splits import Split
    from tlkeras.training import train_from_scratch

    console, size = Console(), 96
    keras.utils.set_random_seed(seed)
    console.print(
        f"{num_classes} fractal systems that the embedded backbone has never seen: {per_class} pictures of each to "
        f"learn from, 30 held out, {size} px."
    )
    with console.status("making pictures"):
        images, labels = make_fractals(num_classes, per_class + 30, image_size=size, family=1)
    data = load_arrays(images, labels, seed=seed, split=Split(validation=30 / (per_class + 30), near_duplicates=False))
    chance = 1 / num_classes
    table = Table("strategy", "accuracy", "95 % interval", "seconds")
    found, intervals = {}, {}
    for name, weights in [
        ("transfer: embedded backbone, new head", "embedded"),
        ("the same head on random weights", None),
    ]:
        started = time.perf_counter()
        model = build_classifier(
            load_backbone("MobileNetV2", weights=weights, alpha=0.35, image_size=size), num_classes
        )
        with console.status(name):
            probe_head(model, data, seed=seed)
        found[name] = predict(model, data), time.perf_counter() - started
    name, started = f"from scratch: all layers, {epochs} epochs", time.perf_counter()
    model = build_classifier(load_backbone("MobileNetV2", weights=None, alpha=0.35, image_size=size), num_classes)
    # Its last epoch counts: the lowest validation loss is that of an early one, which has learnt nothing yet.
    train_from_scratch(model, data.train, epochs=epochs, settings=Settings(patience=None))
    found[name] = predict(model, data), time.perf_counter() - started
    for name, (predictions, seconds) in found.items():
        accuracy = intervals[name] = evaluate(predictions).accuracy
        table.add_row(name, f"{accuracy.value:.1%}", f"{accuracy.low:.1%} to {accuracy.high:.1%}", f"{seconds:.1f}")
    console.print(table)
    transferred, scratch = (found[name][0] for name in (next(iter(found)), list(found)[-1]))
    result = compare(transferred, scratch)
    console.print(
        f"Chance is {chance:.0%}. On the same {len(scratch)} pictures transfer alone is right {result.only_a} times, "
        f"from scratch alone {result.only_b} times (McNemar p = {result.p_value:.1g})."
    )
    return intervals
