"""A classifier in one folder: weights, labels, preprocessing, proof that it still answers as it did."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tlkeras.evaluation import Predictions, to_probabilities
from tlkeras.heads import AUGMENTATION, Transfer
from tlkeras.scan import decode_picture

CARD, MODEL, GOLDEN, MANIFEST = "card.json", "model.keras", "golden.npz", "split.csv"
FORMAT = "tlkeras artifact 1"
NUM_GOLDEN = 8
BATCH_SIZE = 32

# Measured on MobileNetV2 (alpha 0.35, 160 px): another engine (XLA, no oneDNN) moves a probability by 7e-6, rounding to
# float16, hence also to the TF32 of GPUs, by 2e-3, to bfloat16 by 3e-2; all weights of the first layer 1 % too large by
# 1.5e-2, swapped colours by 0.99. So the replay lets a model move between CPU and GPU; a changed byte is for the hash.
TOLERANCE = 1e-2
TOLERANCE_HALF_PRECISION = 5e-2


class ArtifactError(ValueError):
    """A folder that is no artefact, was changed, or no longer answers as it did when it was saved."""


@dataclass(frozen=True)
class Artifact:
    """A classifier that was loaded and has proved itself; from `load_artifact`.

    Attributes:
        model: From pictures (batch, height, width, 3) in [0, 255] to logits, with `model.transfer` where it had one.
        class_names: In the order of the probabilities.
        image_size: Height and width in pixels.
        card: All that `card.json` says: preprocessing, versions, files, extra.
        folder: Where it lies.
    """

    model: keras.Model = field(repr=False)
    class_names: tuple[str, ...]
    image_size: int
    card: dict[str, Any] = field(repr=False)
    folder: Path

    def predict(self, pictures: Sequence[Any] | np.ndarray) -> Predictions:
        """Get the probabilities of pictures, decoded exactly as in training.

        Args:
            pictures: Paths or the bytes of files; or arrays (height, width, 3) in [0, 255] of the artefact's size.

        Returns:
            One row a picture, in the order given; `truth` is None.

        Raises:
            ValueError: If a picture cannot be decoded (the file is named) or an array has another shape or range.
        """
        pictures = [pictures] if isinstance(pictures, str | bytes | os.PathLike) else list(pictures)
        if not pictures:
            raise ValueError("There is no picture to predict.")
        logits = []
        for start in range(0, len(pictures), BATCH_SIZE):
            batch = [self._pixels(picture) for picture in pictures[start : start + BATCH_SIZE]]
            logits.append(_logits(self.model, np.stack(batch)))
        files = [p for p in pictures if isinstance(p, str | os.PathLike)]
        return Predictions(
            truth=None,
            probabilities=to_probabilities(np.concatenate(logits), self.card["task"]),
            paths=tuple(map(os.fspath, files)) if len(files) == len(pictures) else None,
            class_names=self.class_names,
            task=self.card["task"],
        )

    def _pixels(self, picture: Any) -> np.ndarray:
        if isinstance(picture, str | bytes | os.PathLike):
            return decode_picture(picture, self.image_size)
        return _checked(picture, (self.image_size, self.image_size, 3))


def save_artifact(
    folder: str | os.PathLike,
    model: keras.Model,
    *,
    class_names: Sequence[str],
    examples: np.ndarray,
    manifest: str | os.PathLike | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Get a folder that holds a classifier and all it takes to use and to trust it.

    Saved is the graph for prediction, without augmentation and optimizer; the model in hand stays as it is. With
    the weights go eight pictures and the answers to them, which `load_artifact` asks for again. The folder appears
    whole, after it was loaded once for a check, or not at all; an artefact that was there is replaced.

    Args:
        folder: Where to; its parents are made.
        model: From pictures (batch, height, width, 3) in [0, 255] to logits; functional or sequential.
        class_names: In the order of the outputs; for one logit the two classes 0 and 1.
        examples: Pictures (n, height, width, 3) in [0, 255], such as a validation batch; eight spread over them are
            kept, and lie readable in the folder: choose some that may be shown.
        manifest: A CSV file that tells which picture was in which split; copied.
        extra: JSON-able things to remember, such as metrics; come back in `card["extra"]`.

    Returns:
        The folder.

    Raises:
        ValueError: If the parts do not fit together or `extra` is no JSON.
        FileExistsError: If `folder` is anything but an artefact or empty.
        ArtifactError: If the model, once saved, cannot be loaded safely or answers differently.
    """
    folder = Path(folder)
    _refuse_foreign(folder)
    examples = np.asarray(examples)
    shape = tuple(model.input_shape)
    if len(shape) != 4 or shape[-1] != 3 or shape[1] != shape[2]:
        raise ValueError(f"An artefact takes square RGB pictures (batch, size, size, 3); this model takes {shape}.")
    if examples.ndim != 4 or not len(examples):
        raise ValueError(f"examples must be pictures (n, height, width, 3), got an array of shape {examples.shape}.")
    image_size = shape[1] or examples.shape[1]
    chosen = np.unique(np.linspace(0, len(examples) - 1, NUM_GOLDEN).round().astype(int))
    pictures = np.stack([_checked(picture, (image_size, image_size, 3)) for picture in examples[chosen]])

    transfer = getattr(model, "transfer", None)
    task = transfer.task if transfer else "classification"
    probabilities = to_probabilities(_logits(model, pictures), task)
    if len(class_names) != probabilities.shape[1]:
        raise ValueError(f"{len(class_names)} class names for a model of {probabilities.shape[1]} outputs.")
    half = any("float16" in layer.compute_dtype for layer in model.layers)
    card = {
        "format": FORMAT,
        "class_names": list(map(str, class_names)),
        "task": task,
        "preprocessing": {
            "channels": "RGB",
            "range": [0, 255],
            "image_size": image_size,
            "resize": "stretched to a square, bilinear, antialiased",
            "decoder": "tlkeras.scan.decode_picture",
        },
        "transfer": transfer.to_dict() if transfer else None,
        "tolerance": TOLERANCE_HALF_PRECISION if half else TOLERANCE,
        "versions": _versions(),
        "extra": dict(extra or {}),
    }
    try:
        json.dumps(card, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"extra must hold plain numbers, texts, lists and dictionaries: {error}.") from error

    # A folder beside the final one lies on the same disk, so the last step is one rename.
    draft = folder.absolute().with_name(f".{folder.absolute().name}.{uuid.uuid4().hex[:8]}")
    try:
        draft.mkdir(parents=True)
        _inference_graph(model).save(draft / MODEL)
        np.savez_compressed(draft / GOLDEN, pictures=pictures, probabilities=probabilities)
        if manifest is not None:
            shutil.copyfile(manifest, draft / MANIFEST)
        card["files"] = {file.name: _sha256(file) for file in sorted(draft.iterdir())}
        (draft / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        load_artifact(draft)
        _swap(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def load_artifact(folder: str | os.PathLike) -> Artifact:
    """Get a classifier from its folder, after it has proved that it is the one that was saved.

    Every file is checked against its hash, nothing is unpickled, no Python code from the file is run, and the eight
    golden pictures are predicted again: a model that a new version, machine or edit has changed is refused here,
    not noticed in its results. The hashes show damage; they are no signature, so load only what you trust.

    Args:
        folder: Written by `save_artifact`.

    Returns:
        The artefact; frozen layers are frozen as they were.

    Raises:
        ArtifactError: If the folder is no artefact, a file is missing, changed or unsafe, or an answer differs.
    """
    folder = Path(folder)
    card = _read_card(folder)
    for name, wanted in card["files"].items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing: the folder was not copied whole.")
        if _sha256(path) != wanted:
            raise ArtifactError(f"{path} is not the file that was saved (its SHA-256 differs): copy it again.")
    model = _load_model(folder / MODEL, card["versions"])
    if card["transfer"] is not None:
        try:
            model.transfer = Transfer.from_dict(card["transfer"])
        except (TypeError, AttributeError) as error:
            raise ArtifactError(f"{folder / CARD}: 'transfer' is not understood ({error}).") from error
    _replay(model, folder / GOLDEN, card)
    return Artifact(model, tuple(card["class_names"]), card["preprocessing"]["image_size"], card, folder)


def _read_card(folder: Path) -> dict[str, Any]:
    path = folder / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder} is no artefact: it holds no {CARD}. save_artifact() writes one.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}.") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ArtifactError(f"{path} is not of the format {FORMAT!r} that this version of tlkeras reads.")
    kinds = {"class_names": list, "task": str, "preprocessing": dict, "versions": dict, "files": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(card.get(name), kind)]
    if not isinstance(card.get("tolerance"), float) or not 0 < card["tolerance"] <= TOLERANCE_HALF_PRECISION:
        wrong.append("tolerance")  # a wide tolerance would let any model through
    if wrong or "transfer" not in card or not isinstance(card["preprocessing"].get("image_size"), int):
        raise ArtifactError(
            f"{path} is incomplete or was edited: look at {', '.join(wrong) or 'transfer, image_size'}."
        )
    # Known names only: a card must not make us open "../../elsewhere".
    foreign = sorted(set(card["files"]) - {MODEL, GOLDEN, MANIFEST})
    if foreign:
        raise ArtifactError(f"{path} lists {foreign[0]!r}, a file that no artefact has.")
    if not {MODEL, GOLDEN} <= set(card["files"]):
        raise ArtifactError(f"{path} must list {MODEL} and {GOLDEN}.")
    return card


def _load_model(path: Path, versions: dict[str, Any]) -> keras.Model:
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
        # Keras looks too, but `keras.config.enable_unsafe_deserialization()` anywhere in the process overrules
        # `safe_mode=True`.
        _refuse_code(config, str(path))
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except ArtifactError:
        raise
    except Exception as error:  # what a damaged or hostile archive raises is not documented
        saved, here = versions.get("keras"), keras.version()
        raise ArtifactError(f"{path} cannot be loaded (saved with Keras {saved}, here {here}): {error}") from error


def _refuse_code(config: Any, where: str) -> None:
    if {"Lambda", "__lambda__"} & set(_class_names(config)):
        raise ArtifactError(
            f"{where} holds a Lambda layer: Python code that loading would run. Write it as a layer class and register "
            "that with keras.saving.register_keras_serializable."
        )


def _class_names(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        yield str(config.get("class_name"))
    for part in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        yield from _class_names(part)


def _replay(model: keras.Model, path: Path, card: dict[str, Any]) -> None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            pictures, golden = arrays["pictures"], arrays["probabilities"]
        size = card["preprocessing"]["image_size"]
        if pictures.shape[1:] != (size, size, 3) or pictures.dtype != np.uint8:
            raise ValueError(f"pictures are {pictures.dtype} {pictures.shape}, the card says {size} pixels")
        answers = to_probabilities(_logits(model, pictures), card["task"])
    except Exception as error:  # likewise
        raise ArtifactError(f"{path}: the golden predictions cannot be replayed: {error}") from error
    if not len(golden) or golden.shape != answers.shape or golden.shape[1] != len(card["class_names"]):
        raise ArtifactError(f"{path} holds answers {golden.shape}; model and labels give {answers.shape}.")
    gaps = np.abs(answers - golden).max(axis=1)
    failed = np.flatnonzero(~(gaps <= card["tolerance"]))  # so that NaN fails
    if len(failed):
        raise ArtifactError(
            f"{path.parent}: the model no longer answers as when it was saved. Golden picture"
            f" {', '.join(str(index) for index in failed)} of {len(gaps)} (from 0) is off by up to"
            f" {gaps[failed].max():.2g} in probability; {card['tolerance']:g} is allowed."
            f" Saved with {card['versions']}; here {_versions()}."
        )


def _inference_graph(model: keras.Model) -> keras.Model:
    """Get a copy without the layers that only act in training, so that every exporter can take it."""
    _refuse_code(json.loads(model.to_json()), f"The model {model.name!r}")
    # Cloning with a `call_function` is for functional models; a Sequential holds the same graph.
    graph = keras.Model(model.inputs[0], model.outputs[0]) if isinstance(model, keras.Sequential) else model

    def call(layer: Any, *inputs: Any, **options: Any) -> Any:
        return inputs[0] if _is_augmentation(layer) else layer(*inputs, **options)

    clone = keras.models.clone_model(graph, call_function=call)
    clone = keras.Model(clone.inputs[0], clone.outputs[0], name=model.name)  # clone_model wraps the input in a list
    for layer in clone.layers:
        if layer.weights:
            layer.set_weights(graph.get_layer(layer.name).get_weights())
    if not model.trainable:
        clone.trainable = False
    return clone


def _is_augmentation(layer: Any) -> bool:
    if isinstance(layer, keras.Sequential):
        return bool(layer.layers) and all(map(_is_augmentation, layer.layers))
    # RandomCrop also crops and scales when predicting, so it has to stay.
    random = type(layer).__name__.startswith(("Random", "RandAugment")) and not isinstance(
        layer, keras.layers.RandomCrop
    )
    return getattr(layer, "name", None) == AUGMENTATION or (random and type(layer).__module__.startswith("keras."))


def _checked(picture: Any, shape: tuple[int, ...]) -> np.ndarray:
    picture = np.asarray(picture)
    if picture.shape != shape:
        raise ValueError(f"A picture must have the shape {shape}, got {picture.shape}. A path is resized for you.")
    if picture.dtype != np.uint8:
        if not (np.isfinite(picture).all() and picture.min() >= 0 and picture.max() <= 255):
            raise ValueError(f"Pixels must lie in [0, 255], got {picture.min():g} to {picture.max():g}.")
        picture = np.rint(picture).astype(np.uint8)
    return picture


def _logits(model: keras.Model, pictures: np.ndarray) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(model.predict_on_batch(pictures.astype(np.float32))))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "keras": keras.version(), "backend": keras.backend.backend()}
    for name in ("tlkeras", "numpy", "pillow", versions["backend"]):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a checkout, or a build under another name
            versions[name] = "unknown"
    return versions


def _refuse_foreign(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise FileExistsError(f"{folder} is a file or a link. An artefact is a folder: choose another name.")
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()}
    foreign = sorted(names - {CARD, MODEL, GOLDEN, MANIFEST})
    if names and (foreign or CARD not in names):
        raise FileExistsError(
            f"{folder} is not empty and holds {(foreign or sorted(names))[0]!r}: choose another name."
        )


def _swap(draft: Path, folder: Path) -> None:
    if not folder.exists():
        os.replace(draft, folder)
        return
    # A folder cannot be renamed over a full one: set the old one aside, and back if the new one fails.
    old = draft.with_name(draft.name + ".old")
    os.replace(folder, old)
    try:
        os.replace(draft, folder)
    except OSError:
        os.replace(old, folder)
        raise
    shutil.rmtree(old)
