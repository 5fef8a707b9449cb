import copy
import dataclasses
import json
import pickle
import random
import threading

import keras
import numpy as np
import pytest
from test_features import Pictures

from tlkeras.backbones import load_backbone
from tlkeras.catalogue import CATALOGUE
from tlkeras.engines import load_kept_engine
from tlkeras.features import extract_features
from tlkeras.weights import EMBEDDED_FILE

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="OpenVINO converts TensorFlow's graphs")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own, and no engine in memory."""
    monkeypatch.setenv("TLKERAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tlkeras.engines._LOADED", {})
    return tmp_path / "cache"


@pytest.fixture
def data():
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype("uint8")
    return Pictures(images, np.zeros(6, int))


def load(**options):
    return load_backbone(**{"weights": "embedded", "image_size": 32, "build": False} | options)


def is_built(backbone) -> bool:
    return "model" in vars(backbone)


@pytest.mark.parametrize("engine", ["auto", "openvino-bfloat16"])
def test_features_of_the_second_time_are_those_of_the_built_network_and_need_none(data, engine, monkeypatch):
    expected = extract_features(load(build=True), data, stages="all", engine=engine)
    first = load()
    extract_features(first, data, stages="all", engine=engine)
    assert is_built(first)
    monkeypatch.setattr("tlkeras.engines._LOADED", {})
    second = load()
    found = extract_features(second, data, stages="all", engine=engine)
    assert not is_built(second)
    assert found.engine == expected.engine
    for stage, values in expected.stages.items():
        np.testing.assert_array_equal(found.stages[stage], values)


def test_stored_features_are_found_by_either(data):
    extract_features(load(build=True), data, cache=True)
    assert extract_features(load(), data, cache=True).computed == 0
    unbuilt = load()
    assert extract_features(unbuilt, data, cache=True).computed == 0
    assert not is_built(unbuilt)


def test_it_is_the_same_backbone_once_it_is_built():
    unbuilt, built = load(), load(build=True)
    assert (unbuilt.name, unbuilt.weights, unbuilt.image_size, unbuilt.stages, unbuilt.alpha) == (
        built.name, built.weights, built.image_size, built.stages, built.alpha
    )  # fmt: skip
    assert not is_built(unbuilt)
    assert unbuilt.num_features == built.num_features == 1280
    assert unbuilt.model is unbuilt.model
    for one, other in zip(unbuilt.model.get_weights(), built.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_that_were_changed_are_never_taken_for_those_of_the_file(data):
    before = [extract_features(load(), data).last for _ in range(2)][-1]
    backbone = load()
    for layer in backbone.model.layers:
        layer.set_weights([1.1 * weights for weights in layer.get_weights()])
    assert not np.allclose(extract_features(backbone, data).last, before)
    np.testing.assert_array_equal(extract_features(load(), data).last, before)


def test_another_content_of_the_file_size_or_channels_is_another_backbone(data, tmp_path):
    file = tmp_path / "mine.npz"
    file.write_bytes(EMBEDDED_FILE.read_bytes())
    mine = {"weights": file, "alpha": 0.35}
    keys = [load(**mine).blueprint.key, load(**mine, image_size=64).blueprint.key]
    keys += [load(**mine, channels=1).blueprint.key, load().blueprint.key]
    for _ in range(2):
        before = extract_features(load(**mine), data).last
    with np.load(file) as arrays:
        np.savez(file, **{name: values * np.float16(1.5) for name, values in arrays.items()})
    keys.append(load(**mine).blueprint.key)
    assert len(set(keys)) == 4  # the embedded file and its copy are one
    assert keys[0] == keys[3]
    assert not np.allclose(extract_features(load(**mine), data).last, before)


def test_a_note_that_cannot_be_used_costs_time_only(cache, data):
    expected, stage = extract_features(load(), data).last, load().stages[-1:]
    (note,) = (cache / "engines").glob("*.json")
    assert load().blueprint.recall(stage, True).widths == (1280,)
    (noted,) = json.loads(note.read_text()).values()
    for content in ("", "[]", "[" * 100_000, json.dumps({stage[0]: 3})):
        note.write_text(content)
        assert load().blueprint.recall(stage, True) is None
    for part, wrong in [("key", None), ("input_shape", 3), ("widths", ["x"])]:
        note.write_text(json.dumps({stage[0]: {**noted, part: wrong}}))
        assert load().blueprint.recall(stage, True) is None
    np.testing.assert_array_equal(extract_features(load(), data).last, expected)
    assert json.loads(note.read_text()) == {stage[0]: noted}


def test_an_engine_that_is_gone_or_a_cache_that_is_off_costs_time_only(cache, data, monkeypatch):
    expected = extract_features(load(), data).last
    for file in (cache / "engines").glob("*.xml"):
        file.unlink()
    monkeypatch.setattr("tlkeras.engines._LOADED", {})
    backbone = load()
    np.testing.assert_array_equal(extract_features(backbone, data).last, expected)
    assert is_built(backbone)
    monkeypatch.setenv("TLKERAS_CACHE", "off")
    np.testing.assert_array_equal(extract_features(load(), data).last, expected)


def test_layers_that_are_no_stages_and_keras_itself_want_the_network(data):
    for _ in range(2):
        backbone = load()
        assert extract_features(backbone, data, stages=["block_3_expand"]).last.shape == (6, 48)
        assert is_built(backbone)
    backbone = load()
    with pytest.raises(ValueError, match=r"no layer \['block_99'\]; stages are 'last', 'all' or of"):
        extract_features(backbone, data, stages=["block_99"])
    for _ in range(2):
        backbone = load()
        assert extract_features(backbone, data, engine="keras").engine == "keras float32"
        assert is_built(backbone)


def test_pictures_of_another_size_are_refused_without_the_network(data):
    extract_features(load(), data)
    large = Pictures(np.zeros((2, 48, 48, 3), "uint8"), np.zeros(2, int))
    with pytest.raises(ValueError, match=r"takes pictures of shape \(None, 32, 32, 3\), got \(2, 48, 48, 3\)"):
        extract_features(load(), large)


@pytest.mark.parametrize("policy", ["mixed_float16", keras.dtype_policies.DTypePolicyMap()])
def test_the_precision_is_that_of_the_time_of_loading(data, policy):
    unbuilt = load()
    keras.config.set_dtype_policy(policy)
    try:
        assert unbuilt.model.get_layer("Conv1").compute_dtype == "float32"
        assert keras.config.dtype_policy().name == keras.dtype_policies.get(policy).name  # put back
        assert is_built(load())
    finally:
        keras.config.set_dtype_policy("float32")


def test_a_network_built_while_a_graph_is_traced_has_the_weights_of_its_file(data):
    import tensorflow as tf

    x = tf.constant(data.images.astype("float32"))
    expected = load(build=True).model(x, training=False)
    backbone, other = load(), load()
    np.testing.assert_allclose(
        tf.function(lambda images: backbone.model(images, training=False))(x), expected, atol=1e-4
    )
    batches = tf.data.Dataset.from_tensors(x).map(lambda images: other.model(images, training=False))
    np.testing.assert_allclose(next(iter(batches)), expected, atol=1e-4)
    np.testing.assert_allclose(backbone.model(x, training=False), expected, atol=1e-4)


def test_under_a_distribution_strategy_the_network_is_built_at_once():
    import tensorflow as tf

    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        assert is_built(load())


@pytest.mark.parametrize("change", [lambda file: file.unlink(), lambda file: file.write_bytes(b"other weights")])
def test_a_file_that_changed_before_the_network_was_built_is_not_noted(cache, data, tmp_path, change):
    file = tmp_path / "mine.npz"
    file.write_bytes(EMBEDDED_FILE.read_bytes())
    backbone = load(weights=file, alpha=0.35)
    change(file)
    with pytest.raises(ValueError, match=r"mine\.npz is gone, or has changed since the backbone was loaded"):
        extract_features(backbone, data)
    assert not list((cache / "engines").glob("*.json"))


def test_a_relative_path_stays_the_file_that_it_was(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.npz").write_bytes(EMBEDDED_FILE.read_bytes())
    backbone = load(weights="mine.npz", alpha=0.35)
    monkeypatch.chdir(tmp_path.parent)
    assert backbone.model.count_params() == 410_208


def test_building_draws_no_random_number_that_others_would_have_drawn(data):
    drawn = []
    for _ in range(2):  # built, then known
        keras.utils.set_random_seed(0)
        extract_features(load(), data)
        drawn.append(random.random())
    assert drawn[0] == drawn[1]


def test_a_changed_catalogue_is_another_backbone(monkeypatch):
    before = load().blueprint.key
    changed = dataclasses.replace(CATALOGUE["MobileNetV2"], preprocessing="torch")
    monkeypatch.setitem(CATALOGUE, "MobileNetV2", changed)
    assert load().blueprint.key != before


def test_it_can_be_replaced_in_part_copied_and_shown():
    backbone = load()
    assert repr(backbone).startswith("Backbone(name='MobileNetV2', weights='embedded', image_size=32")
    copies = [copy.copy(backbone), copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))]
    assert not any(map(is_built, [backbone, *copies]))
    assert [one.num_features for one in copies] == [1280, 1280, 1280]
    other = dataclasses.replace(backbone, weights="mine")
    assert (other.weights, other.model, other.blueprint) == ("mine", backbone.model, None)


def test_two_threads_get_one_network():
    backbone, found = load(), []
    threads = [threading.Thread(target=lambda: found.append(backbone.model)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len({id(model) for model in found}) == 1


def test_a_file_that_does_not_fit_shows_when_the_network_is_built(data, tmp_path):
    file = tmp_path / "few.npz"
    np.savez(file, np.zeros(3))
    backbone = load(weights=file, alpha=0.35)
    with pytest.raises(ValueError, match=r"few\.npz holds 3; expected 410,208 weights"):
        extract_features(backbone, data)


def test_without_a_file_the_network_is_built_at_once():
    assert is_built(load(weights=None, alpha=0.35))


def test_no_engine_is_kept_under_an_unknown_key():
    assert load_kept_engine("0" * 32) is None
    assert load_kept_engine("0" * 32, "keras") is None
