import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import make_tiny_backbone
from test_features import Pictures

import tlkeras
from tlkeras.freezing import trainable_layers, unfreeze_top
from tlkeras.heads import build_classifier
from tlkeras.settings import Settings
from tlkeras.training import fine_tune, train_head

RNG = np.random.default_rng(0)
PICTURES = Pictures(RNG.integers(0, 256, (60, 32, 32, 3)).astype("float32"), np.arange(60) % 3)
HEAD_EPOCHS = 60


@pytest.fixture(autouse=True)
def ctrl_c_interrupts():
    """What a shell starts in the background ignores Ctrl-C, and so would these tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupted(Pictures):
    """The same pictures; Ctrl-C comes in the middle of an epoch, when the model has made a step or two in it."""

    def __init__(self, epoch, model):
        super().__init__(PICTURES.images, PICTURES.labels)
        self.left, self.model, self.steps = epoch, model, (epoch - 1) * len(PICTURES)

    def on_epoch_begin(self):
        self.left -= 1

    def __getitem__(self, index):
        if self.left == 0 and index == 2:
            while int(self.model.optimizer.iterations) <= self.steps:
                time.sleep(0.01)
            signal.raise_signal(signal.SIGINT)
        return super().__getitem__(index)


@contextlib.contextmanager
def interrupted():
    """Ctrl-C comes. What the broken pass leaves behind goes at once: the autotuner of a PyDataset naps ever longer."""
    with pytest.raises(KeyboardInterrupt):
        yield
    gc.collect()


def settings_for(folder, **options):
    return Settings(verbose=0, run_folder=folder, **{"patience": None, **options})


def train_long(folder):
    """A head phase that a child process has no time to finish."""
    keras.utils.set_random_seed(0)
    model = build_classifier(make_tiny_backbone(), 3)
    return model, train_head(model, PICTURES, PICTURES, epochs=HEAD_EPOCHS, settings=settings_for(folder))


def make_unfrozen():
    model = build_classifier(make_tiny_backbone(), 3)
    unfreeze_top(model, 1)
    return model


def tune(model, folder, train=PICTURES, epochs=4, learning_rate=1e-3, **options):
    return fine_tune(
        model, train, PICTURES, epochs=epochs, learning_rate=learning_rate, settings=settings_for(folder, **options)
    )


def stored(path):
    with np.load(path) as arrays:
        return json.loads(str(arrays["state"])), {key: arrays[key] for key in arrays.files}


def assert_weights_are(model, arrays, name):
    for k, weight in enumerate(model.get_weights()):
        np.testing.assert_array_equal(weight, arrays[f"{name}_{k}"])


def test_a_head_phase_killed_in_another_process_goes_on_from_where_it_was(tmp_path):
    paths = [str(Path(__file__).parent), str(Path(tlkeras.__file__).parents[1])]
    code = f"import test_checkpoints; test_checkpoints.train_long({str(tmp_path)!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    child = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE)
    path, patience = tmp_path / "head.npz", time.monotonic() + 240
    while not path.exists() and child.poll() is None and time.monotonic() < patience:
        time.sleep(0.01)
    child.kill()
    _, errors = child.communicate()
    assert child.returncode == -9, errors.decode()[-2000:]
    before, _ = stored(path)
    assert 1 <= len(before["rows"]) < HEAD_EPOCHS and not before["done"]

    model, history = train_long(tmp_path)
    assert len(history.rows) == HEAD_EPOCHS
    assert history.rows[: len(before["rows"])] == before["rows"]
    assert int(model.optimizer.iterations) == HEAD_EPOCHS * 2  # 60 features are two batches of 32
    assert history.audits["head"].problem is None


def test_fine_tuning_goes_on_with_its_rows_best_weights_steps_and_flags(tmp_path):
    first = make_unfrozen()
    with interrupted():
        tune(first, tmp_path, Interrupted(3, first))
    before, arrays = stored(tmp_path / "fine-tune.npz")
    assert [row["epoch"] for row in before["rows"]] == [1, 2]
    assert int(first.optimizer.iterations) > 2 * len(PICTURES)
    assert_weights_are(first, arrays, "best")  # not those in which the interrupt found it

    model = build_classifier(make_tiny_backbone(), 3)  # frozen: the flags come from the file
    history = tune(model, tmp_path)
    assert [row["epoch"] for row in history.rows] == [1, 2, 3, 4]
    assert history.rows[:2] == before["rows"]
    assert int(model.optimizer.iterations) == 4 * len(PICTURES)
    rates = [row["learning_rate"] for row in history.rows]
    assert rates == sorted(rates, reverse=True) and rates[-1] == pytest.approx(0, abs=1e-9)
    assert trainable_layers(model) == trainable_layers(first) == ("conv_2", "depthwise_2")
    losses = [row["val_loss"] for row in history.rows]
    assert model.evaluate(PICTURES, verbose=0)[0] == pytest.approx(min(losses), rel=1e-5)

    modified = (tmp_path / "fine-tune.npz").stat().st_mtime_ns
    again = make_unfrozen()
    assert tune(again, tmp_path).rows == history.rows  # finished: not trained again
    assert (tmp_path / "fine-tune.npz").stat().st_mtime_ns == modified
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.evaluate(PICTURES, verbose=0)[0] == pytest.approx(min(losses), rel=1e-5)


def test_fine_tuning_that_goes_on_from_another_head_says_so(tmp_path, caplog):
    first = make_unfrozen()
    with interrupted():
        tune(first, tmp_path, Interrupted(3, first))
    tune(first, tmp_path)  # the same model, as Ctrl-C left it
    assert "another head" not in caplog.text

    (tmp_path / "fine-tune.npz").unlink()
    started = first.get_weights()
    with interrupted():
        tune(first, tmp_path, Interrupted(3, first))
    same = make_unfrozen()
    same.set_weights(started)
    with interrupted():
        tune(same, tmp_path, Interrupted(1, same))
    assert "another head" not in caplog.text
    tune(make_unfrozen(), tmp_path)
    assert f"goes on from {tmp_path / 'fine-tune.npz'}, which began with another head" in caplog.text


def test_a_head_is_saved_without_the_network_below_it_which_is_known_again(tmp_path):
    keras.utils.set_random_seed(0)
    model = build_classifier(make_tiny_backbone(), 3)
    history = train_head(model, PICTURES, PICTURES, epochs=3, settings=settings_for(tmp_path))
    _, arrays = stored(tmp_path / "head.npz")
    last = len(model.weights)
    assert [arrays[f"best_{k}"].shape for k in (last - 2, last - 1)] == [(16, 3), (3,)]
    assert len([name for name in arrays if name.startswith(("weight_", "best_"))]) == 4

    keras.utils.set_random_seed(0)
    again = build_classifier(make_tiny_backbone(), 3)
    again.get_layer("logits").set_weights([np.zeros((16, 3)), np.zeros(3)])
    assert train_head(again, PICTURES, PICTURES, epochs=3, settings=settings_for(tmp_path)).rows == history.rows
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    other = build_classifier(make_tiny_backbone(), 3)  # other random weights
    with pytest.raises(ValueError, match="head.npz was saved with other pretrained weights. Choose another run folder"):
        train_head(other, PICTURES, PICTURES, epochs=3, settings=settings_for(tmp_path))


def test_a_head_interrupted_on_pictures_goes_on_from_stored_features(tmp_path, monkeypatch):
    call = {"epochs": 4, "learning_rate": 1e3}  # only hurts, so the best weights stay those of the first start
    model = build_classifier(make_tiny_backbone(), 3)
    with monkeypatch.context() as patch, interrupted():
        patch.setattr("tlkeras.features.CACHE_LIMIT", 0)  # no room for features
        train_head(model, Interrupted(2, model), PICTURES, **call, settings=settings_for(tmp_path))
    history = train_head(model, PICTURES, PICTURES, **call, settings=settings_for(tmp_path))
    assert len(history.rows) == 4 and history.kept == {"head": 0}
    assert train_head(model, PICTURES, PICTURES, **call, settings=settings_for(tmp_path)).rows == history.rows


def test_early_stopping_does_not_start_to_count_anew(tmp_path):
    harmful = {"learning_rate": 1.0, "patience": 2}
    model = make_unfrozen()
    start = model.get_weights()
    with interrupted():
        tune(model, tmp_path, Interrupted(2, model), **harmful)
    history = tune(make_unfrozen(), tmp_path, **harmful)
    assert len(history.rows) == 2 and history.kept == {"fine-tune": 0}
    _, arrays = stored(tmp_path / "fine-tune.npz")
    for k, weight in enumerate(start):
        np.testing.assert_array_equal(weight, arrays[f"best_{k}"])


def test_ctrl_c_without_a_run_folder_leaves_the_weights_from_before_the_broken_epoch():
    model = make_unfrozen()
    before = model.get_weights()
    with interrupted():
        fine_tune(model, Interrupted(1, model), epochs=4, settings=Settings(verbose=0, warmup=0.0))
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tune(make_unfrozen(), folder, epochs=1)
    return folder / "fine-tune.npz"


def cut(content):
    return content[: len(content) // 2]


@pytest.mark.parametrize("damage", [cut, lambda content: b"", lambda content: b"not an archive"])
def test_a_damaged_state_is_named_and_what_to_do_about_it(finished, tmp_path, damage):
    (tmp_path / "fine-tune.npz").write_bytes(damage(finished.read_bytes()))
    with pytest.raises(ValueError, match="fine-tune.npz is damaged .*delete it to start this phase anew"):
        tune(make_unfrozen(), tmp_path, epochs=1)


def test_the_state_of_another_model_is_refused(finished):
    model = build_classifier(make_tiny_backbone(), 4)
    unfreeze_top(model, 1)
    with pytest.raises(ValueError, match="fine-tune.npz was saved with another model. Choose another run folder"):
        tune(model, finished.parent, epochs=1)


def test_numbers_of_numpy_are_numbers(tmp_path):
    tune(make_unfrozen(), tmp_path, epochs=np.int64(1), learning_rate=np.float32(1e-3), patience=np.int64(3))
    assert (tmp_path / "fine-tune.npz").exists()


def test_the_state_of_another_call_is_refused(finished):
    with pytest.raises(ValueError, match="saved with epochs = 1, now it is 2"):
        tune(make_unfrozen(), finished.parent, epochs=2)
    with pytest.raises(ValueError, match="saved with learning_rate = 0.001, now it is 0.01"):
        tune(make_unfrozen(), finished.parent, epochs=1, learning_rate=1e-2)
    for other, told in [
        ({"label_smoothing": 0.1}, "label_smoothing = 0.0, now it is 0.1"),
        ({"class_weight": {1: 2.0}}, r"class_weight = None, now it is \[1.0, 2.0, 1.0\]"),
        ({"train": Pictures(PICTURES.images[:30], PICTURES.labels[:30])}, r"batches = \[.*\], now it is \["),
    ]:
        with pytest.raises(ValueError, match=f"saved with {told}"):
            tune(make_unfrozen(), finished.parent, epochs=1, **other)
    model = make_unfrozen()
    unfreeze_top(model, 2)
    with pytest.raises(ValueError, match=r"saved with trainable = \['conv_2', 'depthwise_2'\], now it is \['conv_1', "):
        tune(model, finished.parent, epochs=1)


def test_a_cell_that_makes_its_head_anew_goes_on(tmp_path):
    """Keras counts layers without a name over the whole process: dense_1, then dense_3."""

    def cell():
        keras.utils.set_random_seed(0)  # the same backbone
        layers = [
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dense(3),
        ]
        model = build_classifier(make_tiny_backbone(), 3, head=keras.Sequential(layers))
        return train_head(model, PICTURES, PICTURES, epochs=2, settings=settings_for(tmp_path))

    assert cell().rows == cell().rows


def test_a_tilde_in_the_run_folder_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    train_head(build_classifier(make_tiny_backbone(), 3), PICTURES, epochs=1, settings=settings_for("~/runs"))
    assert (tmp_path / "runs" / "head.npz").exists()
