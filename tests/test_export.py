import dataclasses
import importlib.util
import json

import keras
import numpy as np
import pytest
from test_artifact import SIZE, classifier, pictures

from tlkeras import export
from tlkeras.artifact import load_artifact, save_artifact
from tlkeras.card import ArtifactError
from tlkeras.export import export_artifact

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras exports from TensorFlow")
NAMES = ["small.tflite", "small.xml", "small", "small.onnx"]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "artefact"
    return load_artifact(save_artifact(folder, classifier(), class_names=["dark", "bright"], examples=pictures()))


def run(path, batch):
    return export.FORMATS[path.suffix].run(path, batch.astype(np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_an_exported_classifier_gives_the_same_probabilities_on_other_pictures(artifact, tmp_path, name):
    needed = export.FORMATS[(tmp_path / name).suffix].needs
    if any(importlib.util.find_spec(package) is None for package in needed):
        pytest.skip(f"needs {', '.join(needed)}, which requirements.txt does not install")
    gap = export_artifact(artifact, tmp_path / name)
    assert gap < 1e-4
    others = np.random.default_rng(5).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)  # another number than eight
    assert np.allclose(run(tmp_path / name, others), artifact.predict(others).probabilities, atol=1e-4)
    beside = tmp_path / name / "classifier.json" if name == "small" else tmp_path / f"{name}.json"
    about = json.loads(beside.read_text(encoding="utf-8"))
    assert about["class_names"] == ["dark", "bright"]
    assert f"{SIZE}, {SIZE}, 3), in [0, 255]" in about["input"]
    assert not list(tmp_path.glob(".export*"))


@pytest.mark.parametrize(
    ("task", "names"), [("binary", ["no", "yes"]), ("multi-label", ["a", "b"]), ("regression", "x")]
)
def test_each_task_gives_what_the_artefact_gives(tmp_path, task, names):
    model = classifier(num_outputs=2 if task == "multi-label" else 1)
    model.transfer = dataclasses.replace(model.transfer, task=task)
    folder = save_artifact(tmp_path / "artefact", model, class_names=names, examples=pictures())
    artifact = load_artifact(folder)
    export_artifact(artifact, tmp_path / "out.tflite")
    assert np.allclose(run(tmp_path / "out.tflite", pictures()), artifact.predict(pictures()).probabilities, atol=1e-4)


@pytest.mark.parametrize("name", ["small.xml", "small"])
def test_an_export_that_answers_differently_is_refused_and_leaves_nothing(artifact, tmp_path, monkeypatch, name):
    suffix = (tmp_path / name).suffix
    form = export.FORMATS[suffix]
    swapped = form._replace(run=lambda path, batch: form.run(path, batch[..., ::-1].copy()))  # BGR
    monkeypatch.setitem(export.FORMATS, suffix, swapped)
    with pytest.raises(ArtifactError, match="answers differently, by .*; .* is allowed"):
        export_artifact(artifact, tmp_path / "new" / "folder" / name)
    assert not list(tmp_path.iterdir())


def test_another_backend_is_told_which_one_exports(artifact, tmp_path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match="KERAS_BACKEND=tensorflow"):
        export_artifact(artifact, tmp_path / "new" / "small.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", ["small.xml.json", "small.bin", "small.xml"])
def test_nothing_is_overwritten(artifact, tmp_path, there):
    (tmp_path / there).write_text("mine")
    with pytest.raises(FileExistsError, match=there):
        export_artifact(artifact, tmp_path / "small.xml")
    assert (tmp_path / there).read_text() == "mine"


def test_an_unknown_ending_is_told_which_there_are(artifact, tmp_path):
    with pytest.raises(ValueError, match=r"small.h5: a name ends in .tflite, .onnx, .xml, or has no dot"):
        export_artifact(artifact, tmp_path / "small.h5")


def test_a_missing_library_is_named_with_its_installation(artifact, tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install openvino"):
        export_artifact(artifact, tmp_path / "small.xml")
