"""A classifier in one folder: weights, labels, preprocessing, proof that it still answers as it did."""

from __future__ import annotations

import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tlkeras.card import (
    CARD,
    GOLDEN,
    MANIFEST,
    MODEL,
    ArtifactError,
    make_card,
    read_card,
    refuse_foreign,
    versions,
    write_card,
)
from tlkeras.engines import compute_precision
from tlkeras.freezing import transfer_of
from tlkeras.heads import AUGMENTATION, Transfer
from tlkeras.pictures import decode_picture
from tlkeras.pipelines import check_range
from tlkeras.predictions import Predictions, answer_gaps, to_answers, to_probabilities

NUM_GOLDEN = 8
CODE = {"Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper"}  # what Keras would run or unpickle
BATCH_SIZE = 32


@dataclass(frozen=True)
class Artifact:
    """A classifier that was loaded and has proved itself; from `load_artifact`.

    Attributes:
        model: From pictures (batch, height, width, 3) in [0, 255] to logits; frozen as it was, with `model.transfer`.
            A detector is for `detect(artifact.model, pictures)`.
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
            logits.append(_logits(self.model, _checked(batch, (self.image_size, self.image_size, 3))))
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
        return np.asarray(picture)


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

    Saved is the graph without augmentation and optimizer, which Keras opens without this package too; the model in
    hand stays as it is. With the weights go eight pictures and the answers to them, which `load_artifact` asks for
    again. The folder appears whole, after it was loaded once for a check, or not at all; an artefact that was there is
    replaced.

    Args:
        folder: Where to; its parents are made.
        model: Of `build_classifier` or `build_detector`.
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
    folder = Path(folder).expanduser()
    refuse_foreign(folder)
    examples = np.asarray(examples)
    transfer = transfer_of(model)
    image_size, shape = transfer.image_size, model.input_shape[1:]
    if shape != (image_size, image_size, 3):
        raise ValueError(f"An artefact takes RGB pictures ({image_size}, {image_size}, 3); this model takes {shape}.")
    if examples.ndim != 4 or not len(examples):
        raise ValueError(f"examples must be pictures (n, height, width, 3), got an array of shape {examples.shape}.")
    chosen = np.unique(np.linspace(0, len(examples) - 1, NUM_GOLDEN).round().astype(int))
    pictures = _checked(examples[chosen], shape)
    answers = to_answers(_logits(model, pictures), transfer.task)
    if len(class_names) != (count := _count_classes(answers)):
        raise ValueError(f"{len(class_names)} class names for a model of {count} outputs.")
    card = make_card(transfer, class_names, half_precision=compute_precision(model) != "float32", extra=extra)

    # A folder beside the final one lies on the same disk, so the last step is one rename.
    draft = folder.absolute().with_name(f".{folder.absolute().name}.{uuid.uuid4().hex[:8]}")
    try:
        draft.mkdir(parents=True)
        _without_augmentation(model).save(draft / MODEL)
        np.savez_compressed(draft / GOLDEN, pictures=pictures, probabilities=answers, class_names=card["class_names"])
        if manifest is not None:
            shutil.copyfile(manifest, draft / MANIFEST)
        write_card(draft, card)
        load_artifact(draft)
        replace_folder(draft, folder)
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
    folder = Path(folder).expanduser()
    card = read_card(folder)
    model = _load_model(folder / MODEL, card["versions"])
    try:
        model.transfer = Transfer.from_dict(card["transfer"])
    except (TypeError, AttributeError) as error:
        raise ArtifactError(f"{folder / CARD}: 'transfer' is not understood ({error}).") from error
    for layer in model.layers:
        if layer.name == AUGMENTATION:
            layer.steps = ()  # what training asks an `Augmentation` for; in the file it is Keras's own Identity
    _replay(model, folder / GOLDEN, card)
    return Artifact(model, tuple(card["class_names"]), card["preprocessing"]["image_size"], card, folder)


def _load_model(path: Path, saved_with: dict[str, Any]) -> keras.Model:
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
        # Keras looks too, unless `keras.config.enable_unsafe_deserialization()` was called in this process.
        _refuse_code(config, str(path))
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except ArtifactError:
        raise
    except Exception as error:  # what a damaged or hostile archive raises is not documented
        raise ArtifactError(
            f"{path} cannot be loaded (saved with Keras {saved_with.get('keras')}, here {keras.version()}): {error}"
        ) from error


def _refuse_code(config: Any, where: str) -> None:
    if found := CODE & {name.split(".")[-1] for name in _class_names(config)}:
        kind = min(found).replace("__lambda__", "Lambda")
        raise ArtifactError(
            f"{where} holds a {kind} layer: code that loading would run. Write it as a layer class and register "
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
            pictures, golden, names = arrays["pictures"], arrays["probabilities"], arrays["class_names"]
        size = card["preprocessing"]["image_size"]
        if pictures.shape[1:] != (size, size, 3) or pictures.dtype != np.uint8:
            raise ValueError(f"pictures are {pictures.dtype} {pictures.shape}, the card says {size} pixels")
        if names.tolist() != card["class_names"]:
            raise ValueError(f"they were {names.tolist()}, the card says {card['class_names']}")
        answers = to_answers(_logits(model, pictures), card["task"])
    except Exception as error:  # likewise
        raise ArtifactError(f"{path}: the golden predictions cannot be replayed: {error}") from error
    if not len(golden) or golden.shape != answers.shape or _count_classes(golden) != len(card["class_names"]):
        raise ArtifactError(f"{path} holds answers {golden.shape}; model and labels give {answers.shape}.")
    gaps = answer_gaps(answers, golden, card["task"])
    failed = np.flatnonzero(~(gaps <= card["tolerance"]))  # so that NaN fails
    unit = "of the largest answer" if card["task"] == "regression" else "in probability"
    if len(failed):
        raise ArtifactError(
            f"{path.parent}: the model no longer answers as when it was saved. Golden picture"
            f" {', '.join(str(index) for index in failed)} of {len(gaps)} (from 0) is off by up to"
            f" {gaps[failed].max():.2g} {unit}; {card['tolerance']:g} is allowed."
            f" Saved with {card['versions']}; here {versions()}."
        )


def _count_classes(answers: np.ndarray) -> int:
    return answers.shape[-1] - (4 if answers.ndim == 4 else 0)  # a detector's last four are distances


def _without_augmentation(model: keras.Model) -> keras.Model:
    """Get a copy that exporters and a Keras without this package can take; dtypes and dropout stay as they are."""

    def clone(layer: keras.Layer) -> keras.Layer:
        if layer.name == AUGMENTATION:
            return keras.layers.Identity(name=AUGMENTATION, dtype="float32")
        config = layer.get_config()
        _refuse_code({"class_name": type(layer).__name__, "config": config}, f"The model {model.name!r}")
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=clone)
    copy = keras.Model(copy.inputs[0], copy.outputs[0], name=model.name)  # clone_model wraps the input in a list
    for layer in copy.layers:
        if layer.weights:
            layer.set_weights(model.get_layer(layer.name).get_weights())
    return copy


def _checked(pictures: Iterable[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Pictures as uint8. The range of all that are not yet is looked at together: a single one may be nearly black."""
    pictures = list(pictures)
    for picture in pictures:
        if picture.shape != shape:
            raise ValueError(f"A picture must have the shape {shape}, got {picture.shape}. A path is resized for you.")
    if others := [picture for picture in pictures if picture.dtype != np.uint8]:
        check_range(np.stack(others))
    return np.stack([p if p.dtype == np.uint8 else np.rint(p).clip(0, 255).astype(np.uint8) for p in pictures])


def _logits(model: keras.Model, pictures: np.ndarray) -> np.ndarray:
    pictures = pictures.astype(np.float32)
    if keras.backend.backend() == "tensorflow":  # which answers a few pictures in less time than it traces a graph
        return np.asarray(model(pictures, training=False))
    return np.asarray(keras.ops.convert_to_numpy(model.predict_on_batch(pictures)))


def replace_folder(draft: Path, folder: Path) -> None:
    """Rename `draft` to `folder`; what was there goes only once the new one stands."""
    if not folder.exists():
        os.replace(draft, folder)
        return
    # A folder cannot be renamed over a full one: set the old one aside, and back if the new one fails.
    old = draft.with_name(f".{draft.name}.{uuid.uuid4().hex[:8]}.old")
    os.replace(folder, old)
    try:
        os.replace(draft, folder)
    except OSError:
        os.replace(old, folder)
        raise
    shutil.rmtree(old)
