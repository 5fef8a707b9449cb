import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tlkeras

CORE = ["backbones", "heads", "freezing", "features", "checkpoints", "optimizers", "progress", "training", "probes"]


@pytest.mark.parametrize("name", [*CORE, "explain"])
def test_the_core_imports_nothing_of_tensorflow_at_its_top(name):
    tree = ast.parse((Path(tlkeras.__file__).parent / f"{name}.py").read_text())
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    roots = {
        (alias.name if isinstance(node, ast.Import) else node.module).split(".")[0]
        for node in top
        for alias in node.names
    }
    assert "keras" in roots
    assert roots <= {*sys.stdlib_module_names, "keras", "numpy", "tlkeras"}


BOTH_PHASES = """
import json, sys
from importlib.machinery import PathFinder

class WithoutTensorFlow(PathFinder):  # where it is installed, Keras imports it whatever the backend
    def find_spec(name, path=None, target=None):
        return None if name == "tensorflow" else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTensorFlow
import numpy as np
from conftest import make_tiny_backbone
from test_features import Pictures
from test_training import make_lively_backbone
from tlkeras import Settings, build_classifier, fine_tune, grad_cam, train_head, unfreeze_top

labels = np.arange(60) % 3
images = np.random.default_rng(0).integers(0, 120, (60, 32, 32, 3)).astype("float32")
images[np.arange(60), :, :, labels] += 80
data = Pictures(images, labels)
model = build_classifier(make_lively_backbone(), 3)
settings = Settings(verbose=0, stage_decay=0.1, patience=None)
history = train_head(model, data, data, epochs=30, learning_rate=0.1, settings=settings)
unfreeze_top(model, 2)
history += fine_tune(model, data, data, epochs=2, learning_rate=1e-3, settings=settings)
print(json.dumps({
    "accuracy": model.evaluate(data, verbose=0)[1],
    "audits": {phase: str(report) for phase, report in history.audits.items()},
    "heat": grad_cam(model, images[:4]).shape,
}))
"""


def run_on(backend, script, folder):
    """What a script prints last, in JSON, on another backend of Keras."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"needs the {backend} package, which is not among this project's requirements")
    paths = [str(Path(__file__).parent), str(Path(tlkeras.__file__).parents[1])]
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": os.pathsep.join(paths)}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=folder)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_both_phases_run_without_tensorflow(backend, tmp_path):
    result = run_on(backend, BOTH_PHASES, tmp_path)
    assert result["accuracy"] > 0.8  # chance is 0.33
    assert result["heat"] == [4, 32, 32]
    assert result["audits"]["fine-tune"].startswith(
        "moved 8 of 8 trainable variables, 0 of 15 frozen ones, 0 batch-norm"
    )


EVERY_TASK = """
import json
import keras
import numpy as np
import tlkeras as tl

things = tl.make_struck_objects(40, image_size=32, seed=0)
tasks = [tl.Labels(things.materials), tl.Rotation(), tl.SimCLR(), tl.VICReg(), tl.Autoencoder(), tl.Colorization(),
         tl.Sound(sounds=things.sounds, num_clusters=4)]
losses = {}
for task in tasks:
    keras.utils.set_random_seed(0)
    settings = tl.Pretraining(steps=2, batch_size=16, checks=1, verbose=0)
    done = tl.pretrain(tl.small_backbone(32, width=8, num_stages=2), things.images, task, settings=settings)
    losses[type(task).__name__] = done.rows[-1]["loss"]

images, boxes, labels = tl.make_scenes(24, 2, image_size=32)
detector = tl.build_detector(tl.small_backbone(32, width=8), 2, stage=1)
data = tl.make_batches(images, tl.encode_objects(detector, boxes, labels), batch_size=8, seed=0)
quiet = tl.Settings(verbose=0, patience=None)
history = tl.train_head(detector, data, epochs=2, settings=quiet)
tl.unfreeze_top(detector, stages=1)
history += tl.fine_tune(detector, data, epochs=1, settings=quiet)
found = tl.detect(detector, images[:2], threshold=0.01)
print(json.dumps({"losses": losses, "detector": [row["loss"] for row in history.rows], "found": len(found)}))
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_every_pretext_and_a_detector_learn(backend, tmp_path):
    result = run_on(backend, EVERY_TASK, tmp_path)
    assert len(result["losses"]) == 7 and all(np.isfinite(loss) for loss in result["losses"].values())
    assert result["detector"][-1] < result["detector"][0] and result["found"] == 2


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_doctor_knows_the_devices_of_every_backend(backend, tmp_path):
    report = "{what: found for what, found, _ in examine()}"
    script = f"import json; from tlkeras.doctor import examine; print(json.dumps({report}))"
    found = run_on(backend, script, tmp_path)
    assert f"backend {backend}" in found["keras"] and found["devices"].startswith(("CPU only", "gpu", "tpu"))
