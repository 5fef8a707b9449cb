import contextlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import make_tiny_backbone
from test_features import Pictures

from tlkeras.backbones import load_backbone
from tlkeras.cache import cache_root
from tlkeras.conversion import without_telemetry
from tlkeras.engines import KerasEngine, OpenVINOEngine, compute_precision, load_engine, network_key
from tlkeras.features import extract_features, feature_model
from tlkeras.heads import build_classifier
from tlkeras.pipelines import make_batches

NETS = [("MobileNetV2", 0.35), ("MobileNet", 0.25), ("EfficientNetB0", None), ("DenseNet121", None)]


def batches(images, size=7):
    return [images[start : start + size] for start in range(0, len(images), size)]


@pytest.mark.parametrize(("name", "alpha"), NETS)
def test_openvino_gives_kerass_numbers_in_float32_at_every_stage(name, alpha):
    backbone = load_backbone(name, weights=None, alpha=alpha, image_size=64)
    images = np.random.default_rng(0).uniform(0, 255, (9, 64, 64, 3)).astype("float32")
    data = Pictures(images, np.zeros(9, int))
    ours, theirs = (extract_features(backbone, data, stages="all", engine=engine) for engine in ("openvino", "keras"))
    assert (ours.engine, theirs.engine) == ("openvino float32", "keras float32")
    for stage, values in theirs.stages.items():
        # Random weights blow some features up: the error counts against their size.
        np.testing.assert_allclose(ours.stages[stage], values, rtol=1e-3, atol=1e-4 * np.abs(values).max())


@pytest.mark.parametrize("engine", [KerasEngine, OpenVINOEngine])
def test_batches_of_any_size_come_back_in_order(engine, tiny_backbone):
    images = np.random.default_rng(0).uniform(0, 255, (50, 32, 32, 3)).astype("float32")
    found = [outputs[0] for outputs in engine(tiny_backbone.model).run(iter(batches(images)))]
    assert [len(values) for values in found] == [7] * 7 + [1]
    np.testing.assert_allclose(np.concatenate(found), tiny_backbone.model.predict(images, verbose=0), atol=1e-4)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="OpenVINO converts TensorFlow's graphs")
def test_openvino_reports_nothing_to_its_maker(tmp_path):
    code = (
        "from conftest import make_tiny_backbone; from tlkeras.conversion import convert; "
        "convert(make_tiny_backbone().model); import os, openvino_telemetry; "
        "print(openvino_telemetry.Telemetry().consent, os.environ.get('CI'))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, env=environment, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.stdout.split() == ["False", "None"], done.stderr[-2000:]
    assert not (tmp_path / "intel").exists()


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's warning")
def test_many_networks_one_after_the_other_bring_no_warning(caplog, monkeypatch):
    from tensorflow.python.eager.polymorphic_function import polymorphic_function

    fresh = polymorphic_function._FrequentTracingDetectorManager()  # it warns twice a process
    monkeypatch.setattr(polymorphic_function, "_frequent_tracing_detector_manager", fresh)
    monkeypatch.setattr(logging.getLogger("tensorflow"), "propagate", True)
    images = np.zeros((2, 32, 32, 3), "float32")
    for _ in range(7):
        image = keras.Input((32, 32, 3))
        runner = KerasEngine(keras.Model(image, keras.layers.Conv2D(2, 3)(image)))
        assert next(runner.run([images]))[0].shape == (2, 30, 30, 2)
    assert caplog.records == []


@pytest.mark.parametrize("slices", [1, 2, 3, 7, 100])
def test_slices_that_fit_the_processors_cache_are_put_together_again(slices, tiny_backbone, monkeypatch):
    monkeypatch.setattr("tlkeras.engines.SLICE_BYTES", slices * 32 * 32 * 3 * 4)  # the input is the largest map
    images = np.random.default_rng(0).uniform(0, 255, (50, 32, 32, 3)).astype("float32")
    network = keras.Model(tiny_backbone.model.inputs[0], tiny_backbone.model.get_layer("drop_1").output)
    runner = OpenVINOEngine(network)
    assert runner._slice == slices
    assert OpenVINOEngine(network, "bfloat16")._slice == 2 * slices  # its maps are half as large
    found = [outputs[0] for outputs in runner.run(iter(batches(images)))]
    assert [len(values) for values in found] == [7] * 7 + [1]
    np.testing.assert_allclose(np.concatenate(found), network.predict(images, verbose=0), atol=1e-4)


def test_whole_numbers_and_floats_give_the_same_features():
    backbone = load_backbone("MobileNetV2", weights="embedded", image_size=64)
    images = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3)).astype("uint8")
    labels = np.zeros(9, int)
    whole = extract_features(backbone, Pictures(images, labels), engine="openvino").last
    np.testing.assert_allclose(
        whole, extract_features(backbone, Pictures(images.astype("float32"), labels), engine="openvino").last, atol=1e-5
    )
    keras_ = extract_features(backbone, Pictures(images, labels), engine="keras").last
    np.testing.assert_allclose(whole, keras_, rtol=1e-3, atol=1e-4)


def test_the_second_start_reads_the_converted_network_and_gives_the_same(tiny_backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("TLKERAS_CACHE", str(tmp_path))
    images = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    first = next(OpenVINOEngine(tiny_backbone.model).run([images]))[0]
    assert list((tmp_path / "engines").glob("*.xml"))

    def refuse(network):
        raise AssertionError("converted again")

    monkeypatch.setattr("tlkeras.engines.convert", refuse)
    np.testing.assert_array_equal(next(OpenVINOEngine(tiny_backbone.model).run([images]))[0], first)


def test_a_network_with_the_same_weights_finds_its_engine_in_memory(monkeypatch):
    monkeypatch.setattr("tlkeras.engines._LOADED", {})
    model = make_tiny_backbone().model
    first = load_engine(model, "openvino")
    assert load_engine(model, "openvino") is first
    model.get_layer("conv_2").kernel.assign_add(keras.ops.full((3, 3, 12, 16), 1e-6))
    assert load_engine(model, "openvino") is not first


def test_other_weights_are_another_network_and_frozen_ones_the_same():
    one, two = make_tiny_backbone().model, make_tiny_backbone().model
    two.set_weights(one.get_weights())
    one.trainable = False
    assert network_key(one) == network_key(two)
    two.get_layer("conv_2").kernel.assign_add(keras.ops.full((3, 3, 12, 16), 1e-6))
    assert network_key(one) != network_key(two)


def test_a_damaged_engine_is_found_by_its_checksum_and_made_anew(tiny_backbone, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TLKERAS_CACHE", str(tmp_path))
    images = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    first = next(OpenVINOEngine(tiny_backbone.model).run([images]))[0]
    (stored,) = (tmp_path / "engines").glob("*.bin")
    content = bytearray(stored.read_bytes())
    content[1000:2000] = bytes(1000)
    stored.write_bytes(content)
    for _ in range(2):
        np.testing.assert_array_equal(next(OpenVINOEngine(tiny_backbone.model).run([images]))[0], first)
    assert caplog.text.count("is damaged") == 1


def test_the_same_features_of_one_model_share_an_engine(tiny_backbone):
    model = build_classifier(tiny_backbone, 3)
    assert network_key(feature_model(model)) == network_key(feature_model(model))


def test_an_unwritable_cache_costs_time_only(tiny_backbone, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TLKERAS_CACHE", str(tmp_path / "file" / "cache"))
    next(OpenVINOEngine(tiny_backbone.model).run([np.zeros((1, 32, 32, 3))]))
    assert "cannot be written" in caplog.text


def test_the_cache_can_be_moved_and_switched_off(monkeypatch, tmp_path):
    monkeypatch.setenv("TLKERAS_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.setenv("TLKERAS_CACHE", "off")
    assert cache_root() is None


def test_an_unknown_engine_is_answered_with_those_there_are(tiny_backbone):
    with pytest.raises(ValueError, match="'keras', 'openvino'.*got 'onnx'"):
        load_engine(tiny_backbone.model, "onnx")


@pytest.mark.parametrize("kind", [RuntimeError, NameError])
def test_auto_falls_back_to_keras_and_says_why(tiny_backbone, monkeypatch, caplog, kind):
    def refuse(network):
        raise kind("no such operation")

    monkeypatch.setattr("tlkeras.engines.convert", refuse)
    monkeypatch.setattr("tlkeras.engines._LOADED", {})
    monkeypatch.setenv("TLKERAS_CACHE", "off")
    monkeypatch.setattr("tlkeras.engines._suits_openvino", lambda network: True)
    assert load_engine(tiny_backbone.model).name == "keras"
    assert "no such operation" in caplog.text
    with pytest.raises(ValueError, match="no such operation.*engine='keras'"):
        load_engine(tiny_backbone.model, "openvino")


def test_floats_after_whole_numbers_are_refused_rather_than_cut(tiny_backbone):
    images = np.full((4, 32, 32, 3), 7.9, "float32")
    with pytest.raises(ValueError, match="the first held uint8, a later one float32"):
        list(OpenVINOEngine(tiny_backbone.model).run([images.astype("uint8"), images]))


class Pool(keras.layers.GlobalAveragePooling2D):
    """A layer of somebody's own."""

    how = staticmethod(keras.ops.mean)

    def call(self, inputs):
        return self.how(inputs, axis=(1, 2))


def test_a_layer_whose_code_may_change_has_no_key_and_its_features_are_new_each_time(colour_pictures, monkeypatch):
    head = keras.Sequential([Pool(name="own"), keras.layers.Dense(2, name="logits")])
    model = build_classifier(make_tiny_backbone(), 2, head=head)
    assert network_key(feature_model(model, "own")) is None and network_key(feature_model(model, "drop_2"))
    images = colour_pictures[0].astype("float32")
    batches = make_batches(images, np.zeros(60, int))
    before = extract_features(model, batches, stages="own", cache=True)
    monkeypatch.setattr(Pool, "how", staticmethod(keras.ops.max))
    after = extract_features(model, batches, stages="own", cache=True)
    maps = extract_features(model, batches, stages="drop_2", pooled=False, engine="keras").last
    np.testing.assert_allclose(before.last, maps.mean(axis=(1, 2)), atol=1e-4)
    np.testing.assert_allclose(after.last, maps.max(axis=(1, 2)), atol=1e-4)
    assert after.computed == 60


def test_a_layer_of_a_notebook_has_no_key(monkeypatch):
    monkeypatch.setattr(Pool, "__module__", "__main__")
    image = keras.Input((4, 4, 2))
    assert network_key(keras.Model(image, Pool()(image))) is None


def relu(x):
    return x * x


@pytest.mark.parametrize("activation", [lambda x: x, relu, "relu"])
def test_functions_of_the_user_are_code_that_may_change(activation):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, activation=activation)])
    assert (network_key(model) is None) == callable(activation)


def test_threads_in_openvino_leave_the_environment_as_it_was(monkeypatch):
    monkeypatch.setenv("CI", "of the user")
    one, two = without_telemetry(), without_telemetry()  # as in two threads, the first of which is done first
    with contextlib.ExitStack() as second:
        with one:
            second.enter_context(two)
        assert os.environ["CI"] == "true"
    assert os.environ["CI"] == "of the user"


def test_the_precision_is_that_of_the_layers_whatever_the_models_own_policy_says():
    model = load_backbone(weights=None, alpha=0.35, image_size=32).model
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert compute_precision(keras.Model(model.inputs, model.outputs)) == "float32"
    finally:
        keras.config.set_dtype_policy(before)
