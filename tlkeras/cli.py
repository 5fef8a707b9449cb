"""The command line: demo, fit, predict, export, probe, advise, cache, doctor."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    name="tlkeras",
    help="Image transfer learning with Keras: a folder of pictures in, an honest classifier out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Strategy = Literal["probe", "head", "fine-tune", "probe+fine-tune", "auto"]
BACKBONE = "A name from keras.applications, or hub:PRESET of KerasHub. By default MobileNetV2, or what --weights holds."
WEIGHTS = "auto, imagenet, embedded, random, a file, or the folder or address of a saved backbone."
IMAGE_SIZE = "Height and width in pixels; by default the network's own, mostly 224."
ProbeKind = Literal["softmax", "svm", "knn", "centroid"]


def main() -> None:
    """Run the command line; exit status 0, 1 for the user's error in one line, 2 for usage, 130 for Ctrl-C."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files that are no text
    try:
        app()
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != 130:  # typer's own for Ctrl-C in a command
            raise
        goes_on = "; the same command goes on from the last finished epoch" if sys.argv[1:2] == ["fit"] else ""
        print(f"stopped{goes_on}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        # A batch too large for a device is an error class of TensorFlow's own.
        memory = isinstance(error, MemoryError) or "ResourceExhausted" in type(error).__name__
        if not memory and not isinstance(error, ValueError | OSError | RuntimeError | ImportError):
            raise
        if os.environ.get("TLKERAS_DEBUG"):
            raise
        less = "not enough memory; a smaller --image-size or --batch-size needs less. " if memory else ""
        print(f"error: {less}{' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


@app.command()
def fit(
    folder: Annotated[
        Path, typer.Argument(help="Class folders, or train/ with val/ and perhaps test/ of class folders.")
    ],
    out: Annotated[Path, typer.Option(help="The run: model, metrics, figures. Made whole or not at all.")],
    backbone: Annotated[str | None, typer.Option(help=BACKBONE)] = None,
    weights: Annotated[str, typer.Option(help=WEIGHTS)] = "auto",
    alpha: Annotated[float | None, typer.Option(help="Width of a MobileNet.")] = None,
    strategy: Annotated[Strategy, typer.Option(help="What to train.")] = "probe+fine-tune",
    image_size: Annotated[int | None, typer.Option(help=IMAGE_SIZE)] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures a step.")] = 32,
    augment: Annotated[
        bool, typer.Option(help="Mirror and crop while training; not for text, or left and right.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of the split, the head and the augmentation.")] = 0,
    groups: Annotated[
        str | None,
        typer.Option(help=r"Regular expression on the path; pictures of one group stay together: '(person\d+)'."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is there.")] = False,
) -> None:
    """Train a classifier on a folder of pictures. After a kill the same command goes on where it was."""
    _talk()
    from tlkeras.intervals import Interval
    from tlkeras.runs import fit_folder

    arguments = {
        "folder": str(folder.expanduser().resolve()), "backbone": backbone, "weights": weights, "alpha": alpha,
        "strategy": strategy, "image_size": image_size, "batch_size": batch_size, "augment": augment, "seed": seed,
        "groups": groups,
    }  # fmt: skip
    metrics = fit_folder(arguments, out := out.expanduser(), overwrite=overwrite)
    for split in ("validation", "test"):
        if metrics[split]:
            accuracy, balanced = (Interval(**metrics[split][key]) for key in ("accuracy", "balanced_accuracy"))
            print(f"{split:>10}: accuracy {accuracy.in_percent()}, balanced accuracy {balanced.in_percent()}")
    print(f"{out}: report.html, model, metrics.json and more, after {metrics['seconds']['total']:.0f} s")


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="What fit --out made.")],
    pictures: Annotated[list[Path], typer.Argument(help="Picture files, or folders of them.")],
    heat: Annotated[
        Path | None,
        typer.Option(help="A new folder for pictures of what spoke for the most probable class (Grad-CAM)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects instead of a table.")] = False,
) -> None:
    """Predict the class of pictures."""
    _talk()
    from tlkeras.runs import predict_files

    rows, broken = predict_files(run, pictures, heat)
    if as_json:
        print(json.dumps(rows, indent=2))
    elif rows:
        from rich.console import Console
        from rich.table import Table

        regression = "values" in rows[0]
        table = Table("picture", *(rows[0]["values"] if regression else ("class", "probability", "next")))
        for row in rows:
            if regression:
                cells = [f"{value:.4g}" for value in row["values"].values()]
            else:
                ranked = sorted(row["probabilities"].items(), key=lambda item: -item[1])
                runner_up = f"{ranked[1][0]} {ranked[1][1]:.1%}" if len(ranked) > 1 else ""
                cells = [ranked[0][0], f"{ranked[0][1]:.1%}", runner_up]
            table.add_row(row["path"], *cells)
        Console(markup=False, emoji=False).print(table)  # names are no markup
        if heat:
            print(f"{heat}: where the network looked, {len(rows)} pictures")
    if broken:
        raise ValueError(f"{len(broken)} of {len(broken) + len(rows)} pictures cannot be used: {'; '.join(broken)}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="What fit --out made.")],
    file: Annotated[
        Path, typer.Argument(help="NAME.tflite, NAME.onnx, NAME.xml (OpenVINO), or a folder (SavedModel).")
    ],
) -> None:
    """Write the classifier for a machine without Keras, and run it once to see that it answers as before."""
    _talk()
    from tlkeras.export import export_artifact
    from tlkeras.runs import load_run
    from tlkeras.startup import captured_stderr

    artifact = load_run(run)
    with captured_stderr():  # the runtimes greet
        gap = export_artifact(artifact, file)
    print(f"{file}: gives the model's probabilities to {gap:.0e}; its .json says what to feed it and names the classes")


@app.command()
def probe(
    folder: Annotated[Path, typer.Argument(help="As for fit.")],
    backbone: Annotated[str | None, typer.Option(help=BACKBONE)] = None,
    weights: Annotated[str, typer.Option(help=WEIGHTS)] = "auto",
    alpha: Annotated[float | None, typer.Option(help="Width of a MobileNet.")] = None,
    kind: Annotated[ProbeKind, typer.Option(help="The classifier on the features.")] = "softmax",
    image_size: Annotated[int | None, typer.Option(help=IMAGE_SIZE)] = None,
    seed: Annotated[int, typer.Option(help="Of the split and the folds.")] = 0,
    groups: Annotated[str | None, typer.Option(help="As for fit.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print an object instead of a table.")] = False,
) -> None:
    """Show how well a simple classifier does on the features of each stage of a network. Trains no network."""
    _talk()
    from tlkeras.runs import probe_folder

    arguments = {
        "folder": folder, "backbone": backbone, "weights": weights, "alpha": alpha, "kind": kind,
        "image_size": image_size, "seed": seed, "groups": groups,
    }  # fmt: skip
    table = probe_folder(arguments)
    if as_json:
        print(json.dumps(table.to_dict(), indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table("stage", "accuracy", "95 % interval")
    for name, accuracy in table.intervals.items():
        style = "bold" if name == table.best else None
        shown.add_row(name, f"{accuracy.value:.1%}", f"{accuracy.low:.1%} to {accuracy.high:.1%}", style=style)
    Console().print(shown)
    print(str(table).splitlines()[-1])


@app.command()
def advise(
    folder: Annotated[Path, typer.Argument(help="As for fit.")],
    backbone: Annotated[str | None, typer.Option(help=BACKBONE)] = None,
    weights: Annotated[str, typer.Option(help=WEIGHTS)] = "auto",
    alpha: Annotated[float | None, typer.Option(help="Width of a MobileNet.")] = None,
    image_size: Annotated[int | None, typer.Option(help=IMAGE_SIZE)] = None,
    budget: Annotated[float, typer.Option(help="Seconds that the measuring may take, roughly.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Of the split and the resamples.")] = 0,
    groups: Annotated[str | None, typer.Option(help="As for fit.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print an object instead of a table.")] = False,
) -> None:
    """Say which way to transfer fits a folder and a network, and which measurements speak for it."""
    _talk()
    from tlkeras.runs import advise_folder

    arguments = {
        "folder": folder, "backbone": backbone, "weights": weights, "alpha": alpha, "image_size": image_size,
        "seed": seed, "groups": groups,
    }  # fmt: skip
    advice = advise_folder(arguments, budget)
    print(json.dumps(advice.to_dict(), indent=2) if as_json else advice)


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Delete all stored features and compiled engines.")] = False,
) -> None:
    """Show what is kept on disk to save time: features by network, and compiled engines."""
    _talk()
    from tlkeras.cache import cache_root, clear_engines, list_engines
    from tlkeras.store import FeatureStore, delete_store, list_store

    folder = cache_root()
    if folder is None:
        print("The cache is switched off by TLKERAS_CACHE=off.")
        return
    if clear:  # before anything is opened, for which a full disk has no room
        size = sum(file.stat().st_size for file in [*list_engines(), *list_store(folder)])
        delete_store(folder)
        clear_engines()
        print(f"{size / 1e6:.1f} MB in {folder}: deleted")
        return
    store = FeatureStore(folder)
    try:
        for entry in store.entries():
            print(f"{entry['pictures']:>9,} pictures  {entry['bytes'] / 1e6:9.1f} MB  {entry['title']}")
    except sqlite3.DatabaseError as error:
        print(f"{store.path} is damaged ({error}): --clear makes it anew")
    if (aside := store.path.with_suffix(".damaged")).exists():
        print(f"{'':9} set aside  {aside.stat().st_size / 1e6:8.1f} MB  {aside.name}")
    files = list_engines()
    count, size = sum(file.suffix == ".xml" for file in files), sum(file.stat().st_size for file in files)
    print(f"{count:>9,} {'engine' if count == 1 else 'engines':8}  {size / 1e6:9.1f} MB")
    print(f"in {folder}")


@app.command()
def demo(seed: Annotated[int, typer.Option(help="Of the heads and of the network from scratch.")] = 0) -> None:
    """Compare transfer with training from scratch: one to one and a half minutes, offline."""
    _talk()
    from tlkeras.demo import run_demo

    run_demo(seed)


@app.command()
def doctor() -> None:
    """Say what is installed, which devices and weights are in reach, and what to do about the rest."""
    _talk()
    from tlkeras.doctor import examine

    problems = 0
    for name, finding, advice in examine():
        print(f"{name:<22} {finding}")
        if advice:
            problems += 1
            print(f"{'':<22} -> {advice}")
    print("ready" if not problems else f"ready, with {problems} things to know")


def _talk() -> None:
    """Print what the library logs; what TensorFlow and other third parties say stays out of the way."""
    from tlkeras.startup import import_keras

    import_keras()  # seconds pass here, so a command begins with it, and what is wrong in its arguments is said before
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("tlkeras")
    log.handlers, log.propagate = [handler], False
    log.setLevel("INFO")
    logging.getLogger("tensorflow").setLevel("ERROR")
    warnings.filterwarnings("ignore")
