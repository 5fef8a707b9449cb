"""What the commands do: a run folder made whole or not at all, predictions, what is measured of a folder."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np

MODEL_FOLDER = "model"


def fit_folder(arguments: dict, out: Path, *, overwrite: bool = False) -> dict:
    """Train on a folder and leave a run folder: report.html, model, metrics.json, history.csv, split.csv, figures.

    Work goes on in `OUT.partial`; the last step renames it. After a kill the same arguments continue from there.

    Args:
        arguments: folder, backbone, weights, alpha, strategy, image_size, batch_size, augment, seed, groups.
        out: The run folder.
        overwrite: Whether a finished run may be replaced.

    Returns:
        What `metrics.json` holds.

    Raises:
        ValueError: If `out` exists and may not be replaced, or `OUT.partial` was started with other arguments.
    """
    from tlkeras.artifact import NUM_GOLDEN, replace_folder, save_artifact
    from tlkeras.evaluation import evaluate
    from tlkeras.predictions import open_test, predict
    from tlkeras.recipes import transfer
    from tlkeras.report import draw_figures, write_report
    from tlkeras.settings import Settings
    from tlkeras.splits import write_manifest

    started = time.perf_counter()
    if out.exists() and not (overwrite and (out / "metrics.json").exists()):
        what = "is not a run" if not (out / "metrics.json").exists() else "is a finished run: --overwrite replaces it"
        raise ValueError(f"{out} exists and {what}. Choose another --out.")
    pictures, place = Path(arguments["folder"]).resolve(), out.resolve()
    if place.is_relative_to(pictures):
        raise ValueError(f"{out} lies among the pictures, where its figures would be read: choose another --out.")
    if pictures.is_relative_to(place):
        raise ValueError(f"The pictures lie in {out}, which would be replaced: choose another --out.")
    partial = _unfinished(out, arguments)
    noted = partial / "backbone.json"  # "auto" may mean another network once the internet is there
    data, backbone = _load(arguments | (json.loads(noted.read_text()) if noted.exists() else {}))
    _begin_or_resume(partial, arguments, data)
    if arguments["weights"] == "auto" and backbone.weights != "preset":
        _note(noted, json.dumps({"backbone": backbone.name, "weights": backbone.weights, "alpha": backbone.alpha}))
    loaded = time.perf_counter() - started
    settings = Settings(run_folder=partial / "checkpoints")
    try:
        result = transfer(
            data,
            backbone,
            strategy=_strategy(partial, arguments, data, backbone),
            augment="light" if arguments["augment"] else None,
            seed=arguments["seed"],
            settings=settings,
        )
    except Exception:  # the command that asks for something else, or for less, must not meet an unfinished run
        if not any(partial.glob("checkpoints/*/*.npz")):
            shutil.rmtree(partial)
        raise
    held_out = predict(result.model, data)
    test = None if data.test is None else evaluate(open_test(result.model, data)).to_dict()
    found = evaluate(held_out)
    metrics = {
        "validation": found.to_dict(),
        "test": test,
        "seconds": {"load": loaded, **result.history.seconds},
        "counts": data.counts,
        "audit": {phase: report.to_dict() for phase, report in result.history.audits.items()},
        "set_aside": [dataclasses.asdict(item) for item in data.set_aside],
        "notes": list(data.notes),
        "duplicates": [list(paths) for paths in data.duplicates],
        "leaks": _leaks(data),
        "kept_epoch": result.history.kept,
        "kept_share": result.history.shares,
        "backbone": {"weights": str(backbone.weights)}
        | {key: getattr(backbone, key) for key in ("name", "alpha", "image_size")},
        "strategy": result.strategy,
        "advice": result.advice and result.advice.to_dict(),
        "arguments": arguments,
    }
    result.history.to_csv(partial / "history.csv")
    write_manifest(data, partial / "split.csv")
    draw_figures(partial, data, result, held_out, found)
    shown = data.index["validation"]
    if len(shown) < NUM_GOLDEN:
        shown = np.concatenate([shown, data.index["train"]])
    save_artifact(
        partial / MODEL_FOLDER,
        result.model,
        class_names=data.class_names,
        examples=data.pixels.read(shown[:: max(1, len(shown) // NUM_GOLDEN)]),  # validation is sorted by class
        manifest=partial / "split.csv",
        extra={"validation": metrics["validation"]},
    )
    # A run that went on counts the epochs of before, and not what its earlier starts took.
    metrics["seconds"]["total"] = max(time.perf_counter() - started, sum(metrics["seconds"].values()))
    (partial / "metrics.json").write_text(json.dumps(metrics, indent=2))
    write_report(partial)
    shutil.rmtree(partial / "checkpoints", ignore_errors=True)
    for note in ("data.sha256", "arguments.json", "advice.json", "backbone.json"):
        (partial / note).unlink(missing_ok=True)
    replace_folder(partial, out)
    return metrics


def load_run(folder: Path):
    """Get the artefact of a run folder, or of the model folder in it."""
    from tlkeras.artifact import load_artifact

    folder = folder.expanduser()
    return load_artifact(folder / MODEL_FOLDER if (folder / MODEL_FOLDER).is_dir() else folder)


def predict_files(run: Path, pictures: list[Path], heat: Path | None = None) -> tuple[list[dict], list[str]]:
    """Get a row for each picture that can be used, with its "heat" file if a folder for those is named, and why not.

    Args:
        run: A run folder, or the model folder in it.
        pictures: Picture files, or folders of such, at any depth.
        heat: A folder to make.

    Returns:
        The rows of `Predictions.to_rows`, and a sentence for each file that cannot be used.

    Raises:
        ValueError: If `heat` exists, or a folder holds no file.
    """
    from tlkeras.artifact import BATCH_SIZE
    from tlkeras.explain import write_heat
    from tlkeras.pictures import PictureError, decode_picture
    from tlkeras.progress import show_progress
    from tlkeras.scan import list_files

    if heat and heat.exists():
        raise ValueError(f"{heat} exists: --heat makes a new folder, so that nothing is overwritten.")
    files, artifact = list_files(pictures), load_run(run)
    rows, broken = [], []

    def decoded() -> Iterator[tuple[str, np.ndarray]]:
        for path in show_progress(files, len(files), "Predicting"):
            try:
                yield str(path), decode_picture(path, artifact.image_size)
            except PictureError as error:
                broken.append(f"{path}: {error.reason}")

    usable = decoded()
    while batch := list(itertools.islice(usable, BATCH_SIZE)):  # so that a folder of any size fits into memory
        paths, images = zip(*batch, strict=True)
        found = dataclasses.replace(artifact.predict(images), paths=paths)
        named = found.to_rows()
        if heat:
            for row, file in zip(named, write_heat(heat, artifact.model, images, found, len(rows)), strict=True):
                row["heat"] = str(file)
        rows += named
    return rows, broken


def probe_folder(arguments: dict):
    """Get the accuracy of a simple classifier on each stage's features, judged on the folder's validation pictures.

    Args:
        arguments: folder, backbone, weights, alpha, kind, image_size, seed, groups.

    Returns:
        A `ProbeTable`.
    """
    from tlkeras.depth import probe
    from tlkeras.features import extract_features

    data, backbone = _load(arguments, build=False)
    train, held_out = (
        extract_features(backbone, data.pictures(split), stages="all", cache=True) for split in ("train", "validation")
    )
    return probe(train, held_out, kind=arguments["kind"], seed=arguments["seed"])


def advise_folder(arguments: dict, budget: float):
    """Get the `Advice` for a folder; arguments: folder, backbone, weights, alpha, image_size, seed, groups."""
    from tlkeras.advisor import advise

    data, backbone = _load(arguments)
    return advise(data, backbone, budget=budget, seed=arguments["seed"])


def _leaks(data) -> list[list[str]]:
    """A file of each side for what looks the same or belongs to one group and lies on several."""
    from tlkeras.splits import find_leaks

    rows = [row for split in data.index for row in zip(data.paths[split], data.pieces[split], strict=True)]
    sides = [split for split in data.index for _ in data.paths[split]]
    paths, pieces = zip(*rows, strict=True)
    return [list(found.values()) for found in find_leaks(paths, sides, pieces)]


def _load(arguments: dict, **options) -> tuple:
    """The data and the backbone that the arguments of a command name."""
    from tlkeras.backbones import load_backbone
    from tlkeras.loaders import load_folder
    from tlkeras.scan import find_folder
    from tlkeras.splits import Split

    folder = find_folder(arguments["folder"])  # a wrong path is said before the seconds that a network takes
    weights = None if arguments["weights"] == "random" else arguments["weights"]
    options |= {"image_size": arguments["image_size"], "alpha": arguments["alpha"]}
    keras.utils.set_random_seed(arguments["seed"])  # random weights too are those that the run was begun with
    backbone = load_backbone(arguments["backbone"], weights=weights, channels=3, **options)  # files are RGB
    options = {"batch_size": arguments["batch_size"]} if "batch_size" in arguments else {}
    options |= {"image_size": backbone.image_size, "seed": arguments["seed"]}
    return load_folder(folder, split=Split(groups=arguments["groups"]), **options), backbone


def _unfinished(out: Path, arguments: dict) -> Path:
    """The folder of an unfinished run, there or not yet; refuses one that was begun with other arguments."""
    partial = out.with_name(out.name + ".partial")
    noted = partial / "arguments.json"
    if noted.exists():
        try:
            before = json.loads(noted.read_text())
        except ValueError as error:
            raise ValueError(f"{noted} is damaged ({error}): delete {partial} to begin anew.") from error
        if before != arguments:
            changed = ", ".join(key for key in arguments if before.get(key) != arguments[key])
            raise ValueError(
                f"{partial} holds an unfinished run with another {changed}: delete it, or repeat its command to go on."
            )
    elif (partial / "metrics.json").exists():
        raise ValueError(f"{partial} holds a finished run that was stopped at its last step: rename it to {out}.")
    elif partial.exists():
        raise ValueError(f"{partial} exists and is not an unfinished run. Choose another --out.")
    return partial


def _begin_or_resume(partial: Path, arguments: dict, data) -> None:
    """Note what this run is, once its data could be read; refuse pictures or a split that changed since it began."""
    files = [(split, *pair) for split in data.index for pair in zip(data.paths[split], data.hashes[split], strict=True)]
    digest, noted = hashlib.sha256(repr(sorted(files)).encode()).hexdigest(), partial / "data.sha256"
    if noted.exists() and noted.read_text() != digest:
        raise ValueError(f"The pictures have changed since {partial} was begun: delete it to start anew.")
    begins = not partial.exists()
    partial.mkdir(parents=True, exist_ok=True)
    try:
        _note(partial / "arguments.json", json.dumps(arguments, indent=2))
        _note(noted, digest)
    except OSError:
        if begins:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _note(path: Path, text: str) -> None:
    """Write a file whole or not at all, if it is not there: on a full disk half of it would stop every later call."""
    if not path.exists():
        draft = path.with_suffix(".draft")
        draft.write_text(text)
        os.replace(draft, path)


def _strategy(partial: Path, arguments: dict, data, backbone):
    """The strategy asked for; for "auto" the advice, measured once, so that a run that goes on follows the same."""
    from tlkeras.advisor import Advice, advise

    if arguments["strategy"] != "auto":
        return arguments["strategy"]
    noted = partial / "advice.json"
    if noted.exists():
        return Advice.from_dict(json.loads(noted.read_text()))
    advice = advise(data, backbone, seed=arguments["seed"])
    _note(noted, json.dumps(advice.to_dict(), indent=2))
    return advice
