"""Export: a classifier for machines without Keras, in a form that was run and gave the same answers."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from tlkeras.artifact import Artifact, replace_folder
from tlkeras.card import GOLDEN, ArtifactError
from tlkeras.conversion import convert, import_openvino
from tlkeras.predictions import answer_gaps


def export_artifact(artifact: Artifact, path: str | os.PathLike) -> float:
    """Write a classifier for another runtime, run it there, and get by how much its answers differ.

    The exported graph takes RGB pictures, float32, (batch, size, size, 3), in [0, 255], and gives probabilities in the
    order of the class names, a detector scores and distances; preprocessing is inside, augmentation is not. What a user
    of it has to know, above all the names and how to resize, lies beside it as `classifier.json` (in a folder) or as
    `NAME.tflite.json` and so on.

    Args:
        artifact: From `load_artifact`.
        path: Where to; the ending says for whom: `.tflite` for LiteRT on phones, `.onnx` for ONNX Runtime, `.xml` for
            OpenVINO (its weights go beside it as `.bin`), none for a TensorFlow SavedModel, which is a folder.

    Returns:
        The largest difference of an answer on the golden pictures of the artefact.

    Raises:
        ValueError: If it is no `Artifact`, or the ending is unknown.
        RuntimeError: If Keras runs on another backend than TensorFlow.
        FileExistsError: If something is there already.
        ImportError: If a library that the format needs is missing.
        ArtifactError: If the exported classifier answers differently; nothing is left behind.
    """
    if not isinstance(artifact, Artifact):
        raise ValueError(f"artifact is what load_artifact(folder) gave, got {type(artifact).__name__}.")
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "Exports are made by the TensorFlow backend, which loads this artefact too: set KERAS_BACKEND=tensorflow."
        )
    path = Path(path).expanduser()
    ending = path.suffix
    if ending not in FORMATS:
        raise ValueError(f"{path.name}: a name ends in {', '.join(filter(None, FORMATS))}, or has no dot (a folder).")
    form = FORMATS[ending]
    described = path / "classifier.json" if ending == "" else path.with_name(f"{path.name}.json")
    parts = [path, described, *([path.with_suffix(".bin")] if ending == ".xml" else [])]
    if there := [part for part in parts if part.exists()]:
        raise FileExistsError(f"{there[0]} exists: choose another name, or move it away.")
    if missing := [name for name in form.needs if importlib.util.find_spec(name) is None]:
        raise ImportError(f"{form.name} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    with np.load(artifact.folder / GOLDEN, allow_pickle=False) as golden:
        pictures, probabilities = golden["pictures"].astype(np.float32), golden["probabilities"]
    nearest = next(folder for folder in path.absolute().parents if folder.exists())  # of the same disk
    with tempfile.TemporaryDirectory(dir=nearest, prefix=".export") as draft:
        file = Path(draft) / path.name
        model = _with_answers(artifact)
        model(pictures)  # or Keras's ONNX exporter refuses: "has never called"
        with _silence():
            form.write(model, file)
        answers = form.run(file, pictures)
        same = answers.shape == probabilities.shape
        gap = float(answer_gaps(answers, probabilities, artifact.card["task"]).max()) if same else np.inf
        if not gap <= artifact.card["tolerance"]:
            raise ArtifactError(
                f"The {form.name} export answers differently, by {gap:.2g}; "
                f"{artifact.card['tolerance']:g} is allowed. Nothing was written."
            )
        text = json.dumps(_description(artifact, gap), indent=1, ensure_ascii=False)
        (Path(draft) / described.relative_to(path.parent)).write_text(text, encoding="utf-8")
        path.parent.mkdir(parents=True, exist_ok=True)
        for part in sorted(Path(draft).iterdir()):
            replace_folder(part, path.parent / part.name)
    return gap


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporters print on both streams whatever `verbose` says, and warn of what lies in them, not here."""
    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with quiet[0], quiet[1], warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _with_answers(artifact: Artifact) -> keras.Model:
    """The model with what turns logits into answers on top."""
    logits, task = artifact.model.outputs[0], artifact.card["task"]
    if task == "detection":
        scores = keras.layers.Activation("sigmoid")(logits[..., :-4])
        logits = keras.layers.Concatenate()([scores, keras.layers.Activation("softplus")(logits[..., -4:])])
    elif task == "classification":
        logits = keras.layers.Softmax()(logits)
    elif task != "regression":
        logits = keras.layers.Activation("sigmoid")(logits)
    if task == "binary":  # a column for each of the two classes
        logits = keras.layers.Concatenate()([keras.layers.Rescaling(-1.0, offset=1.0)(logits), logits])
    return keras.Model(artifact.model.inputs[0], logits, name="classifier")


def _description(artifact: Artifact, gap: float) -> dict:
    preprocessing, size = artifact.card["preprocessing"], artifact.image_size
    output = f"(batch, {len(artifact.class_names)}), in the order of class_names"
    if artifact.card["task"] == "detection":
        output = (
            f"(batch, rows, columns, {len(artifact.class_names)} + 4): for each place a score for each of class_names, "
            "which counts where no neighbour has a higher one; then how far from the middle of the place the object's "
            "left, top, right and bottom side are, as shares of the picture"
        )
    return {
        "class_names": list(artifact.class_names),
        "task": artifact.card["task"],
        "input": f"RGB pictures, float32, (batch, {size}, {size}, 3), in [0, 255]",
        "resize": preprocessing["resize"],
        "output": output,
        "largest_difference": gap,
        "versions": artifact.card["versions"],
    }


def _write_litert(model: keras.Model, file: Path) -> None:
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as saved:  # Keras writes LiteRT itself since 3.13 only
        _write_saved_model(model, Path(saved))
        file.write_bytes(tf.lite.TFLiteConverter.from_saved_model(saved).convert())


def _run_litert(file: Path, pictures: np.ndarray) -> np.ndarray:
    if importlib.util.find_spec("ai_edge_litert"):
        from ai_edge_litert.interpreter import Interpreter
    else:
        import tensorflow as tf

        Interpreter = tf.lite.Interpreter  # noqa: N806
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's own says at each use that it will go
        interpreter = Interpreter(str(file))
    (given,), (wanted,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(given["index"], pictures.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], pictures)
    interpreter.invoke()
    return interpreter.get_tensor(wanted["index"])


def _write_onnx(model: keras.Model, file: Path) -> None:
    model.export(str(file), format="onnx", verbose=False)


def _run_onnx(file: Path, pictures: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: pictures})[0]


def _write_openvino(model: keras.Model, file: Path) -> None:
    import_openvino().save_model(convert(model), str(file), compress_to_fp16=False)


def _run_openvino(file: Path, pictures: np.ndarray) -> np.ndarray:
    return import_openvino().Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(pictures)[0]


def _write_saved_model(model: keras.Model, folder: Path) -> None:
    model.export(str(folder), format="tf_saved_model", verbose=False)


def _run_saved_model(folder: Path, pictures: np.ndarray) -> np.ndarray:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder))  # the function does not keep its variables alive
    return loaded.serve(tf.constant(pictures)).numpy()


class _Format(NamedTuple):
    name: str
    write: Callable[[keras.Model, Path], None]
    run: Callable[[Path, np.ndarray], np.ndarray]
    needs: tuple[str, ...] = ()


FORMATS = {  # by the ending of the name
    ".tflite": _Format("LiteRT", _write_litert, _run_litert),
    ".onnx": _Format("ONNX", _write_onnx, _run_onnx, ("onnx", "tf2onnx", "onnxruntime")),
    ".xml": _Format("OpenVINO", _write_openvino, _run_openvino, ("openvino",)),
    "": _Format("SavedModel", _write_saved_model, _run_saved_model),
}
