from __future__ import annotations

import dataclasses
import json
import zipfile

import keras
import numpy as np
import pytest
from conftest import make_tiny_backbone
from PIL import Image

from tlkeras.artifact import _without_augmentation, load_artifact, save_artifact
from tlkeras.card import TOLERANCE, TOLERANCE_HALF_PRECISION, ArtifactError, sha256
from tlkeras.export import export_artifact
from tlkeras.freezing import unfreeze_top
from tlkeras.heads import Augmentation, Transfer, build_classifier
from tlkeras.loaders import load_arrays
from tlkeras.training import train_head

SIZE = 16


def classifier(*, augmentation=True, num_outputs=2, dtype=None):
    """Get a small classifier as `build_classifier` makes them: augmentation in front, a frozen part, a head."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    pictures = x = keras.Input((SIZE, SIZE, 3))
    if augmentation:
        x = Augmentation([layers.RandomFlip(), layers.RandomRotation(0.2)], name="augmentation")(x)
    x = layers.Rescaling(1 / 127.5, offset=-1, name="preprocessing")(x)
    x = layers.Conv2D(8, 3, name="stem", dtype=dtype)(x)
    x = layers.BatchNormalization(name="stem_bn", dtype=dtype)(x)
    x = layers.ReLU(name="stem_relu")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.5, name="dropout")(x)
    model = keras.Model(pictures, layers.Dense(num_outputs, name="logits", dtype="float32")(x), name="small")
    model.get_layer("stem_bn").set_weights(
        [w + 0.5 * (i + 1) for i, w in enumerate(model.get_layer("stem_bn").weights)]
    )
    model.get_layer("logits").kernel.assign(model.get_layer("logits").kernel * 5)
    for name in ("stem", "stem_bn"):
        model.get_layer(name).trainable = False
    model.transfer = Transfer(
        backbone="Small",
        weights="random",
        image_size=SIZE,
        stages=("stem_relu",),
        backbone_layers=("stem", "stem_bn", "stem_relu"),
        head_layers=("pool", "dropout", "logits"),
        task="binary" if num_outputs == 1 else "classification",
    )
    return model


def pictures(num_pictures=12):
    """Get pictures of noise, uint8 (n, 16, 16, 3), some dark and some bright."""
    generator = np.random.default_rng(0)
    top = generator.integers(20, 256, (num_pictures, 1, 1, 3))
    return (generator.random((num_pictures, SIZE, SIZE, 3)) * top).astype(np.uint8)


def save(folder, model=None, **options):
    """Get an artefact of the small classifier in a folder."""
    options = {"class_names": ("ants", "bees"), "examples": pictures()} | options
    return save_artifact(folder, model or classifier(), **options)


def sign(folder, **changes):
    """Write the card anew with right hashes, as somebody would who edits an artefact on purpose."""
    card = json.loads((folder / "card.json").read_text())
    for name in card["files"]:
        card["files"][name] = sha256(folder / name)
    (folder / "card.json").write_text(json.dumps(card | changes))


def swap_model(folder, model):
    """Put another model into an artefact and sign it."""
    (folder / "model.keras").unlink()
    model.save(folder / "model.keras")
    sign(folder)


def test_a_loaded_model_gives_the_same_probabilities_as_the_saved_one(tmp_path):
    model = classifier()
    loaded = load_artifact(save(tmp_path / "run" / "model", model))
    logits = model.predict_on_batch(pictures().astype("float32"))
    wanted = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.ptp(wanted[:, 0]) > 0.05
    np.testing.assert_allclose(loaded.predict(pictures()).probabilities, wanted, atol=1e-5)
    assert loaded.class_names == ("ants", "bees") and loaded.image_size == SIZE
    assert loaded.model.transfer == model.transfer


def test_saving_leaves_the_model_in_hand_as_it_was(tmp_path):
    model = classifier()
    before, weights = model.to_json(), model.get_weights()
    save(tmp_path / "model", model)
    assert model.to_json() == before and len(model.get_layer("stem")._inbound_nodes) == 1
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True))


def test_augmentation_stays_out_of_the_folder(tmp_path):
    loaded = load_artifact(save(tmp_path / "model")).model
    assert isinstance(loaded.get_layer("augmentation"), keras.layers.Identity)
    twice = [np.asarray(loaded(pictures().astype("float32"), training=False)) for _ in range(2)]
    np.testing.assert_array_equal(*twice)


def test_frozen_layers_come_back_frozen(tmp_path):
    model = classifier(augmentation=False)
    loaded = load_artifact(save(tmp_path / "model", model)).model
    flags = {layer.name: layer.trainable for layer in model.layers[1:]}
    assert {layer.name: layer.trainable for layer in loaded.layers[1:]} == flags
    assert not flags["stem_bn"] and flags["logits"]
    assert len(loaded.trainable_weights) == len(model.trainable_weights) == 2


def test_paths_bytes_and_arrays_get_the_same_answer(tmp_path):
    loaded = load_artifact(save(tmp_path / "model"))
    Image.fromarray(pictures()[0]).save(tmp_path / "a.png")
    by_path = loaded.predict([tmp_path / "a.png"])
    by_bytes = loaded.predict([(tmp_path / "a.png").read_bytes()])
    np.testing.assert_array_equal(by_path.probabilities, by_bytes.probabilities)
    np.testing.assert_array_equal(by_path.probabilities, loaded.predict(pictures()[:1]).probabilities)
    assert by_path.paths == (str(tmp_path / "a.png"),) and by_bytes.paths is None
    assert set(by_path.to_rows()[0]["probabilities"]) == {"ants", "bees"}
    assert loaded.predict(tmp_path / "a.png").paths == by_path.paths


def test_more_pictures_than_a_batch_keep_their_order(tmp_path):
    loaded = load_artifact(save(tmp_path / "model"))
    many = pictures(70)
    alone = loaded.predict(many[66:67]).probabilities
    np.testing.assert_allclose(loaded.predict(many).probabilities[66:67], alone, atol=1e-6)


def test_a_broken_picture_is_named(tmp_path):
    loaded = load_artifact(save(tmp_path / "model"))
    (tmp_path / "broken.jpg").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="broken.jpg"):
        loaded.predict([tmp_path / "broken.jpg"])
    with pytest.raises(ValueError, match=r"\(16, 16, 3\), got \(8, 8, 3\)"):
        loaded.predict(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"these lie in \[-1, 0\]"):
        loaded.predict([np.where(np.arange(3) > 0, -1.0, 0.0) + np.zeros((SIZE, SIZE, 3))])


def test_one_logit_keeps_two_classes(tmp_path):
    result = load_artifact(save(tmp_path / "model", classifier(num_outputs=1))).predict(pictures())
    assert result.task == "binary" and result.probabilities.shape == (12, 2)


def test_manifest_versions_and_extra_come_along(tmp_path):
    (tmp_path / "rows.csv").write_text("path,class,split,sha256\n")
    folder = save(tmp_path / "model", manifest=tmp_path / "rows.csv", extra={"accuracy": 0.9})
    card = load_artifact(folder).card
    assert (folder / "split.csv").read_text() == (tmp_path / "rows.csv").read_text()
    assert card["extra"] == {"accuracy": 0.9}
    assert card["versions"]["keras"] == keras.version() and card["versions"]["backend"] == keras.backend.backend()
    assert card["preprocessing"]["image_size"] == SIZE and card["preprocessing"]["range"] == [0, 255]


def test_eight_examples_are_kept_from_all_over_the_set(tmp_path):
    folder = save(tmp_path / "model", examples=pictures(100).astype("float32"))
    with np.load(folder / "golden.npz", allow_pickle=False) as golden:
        assert golden["pictures"].dtype == np.uint8 and golden["pictures"].shape == (8, SIZE, SIZE, 3)
        np.testing.assert_array_equal(golden["pictures"][-1], pictures(100)[-1])


def test_an_artefact_is_replaced_whole_and_anything_else_is_left_alone(tmp_path):
    folder = save(tmp_path / "model")
    save(folder, extra={"second": True})
    assert load_artifact(folder).card["extra"] == {"second": True}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="notes.txt"):
        save(folder)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "card.json.jpg").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        save(tmp_path / "photos")
    with pytest.raises(FileExistsError, match="a file or a link"):
        save(folder / "notes.txt")
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_failed_save_leaves_nothing_and_keeps_the_old_one(tmp_path):
    folder = save(tmp_path / "model", extra={"old": True})
    pictures_in = keras.Input((SIZE, SIZE, 3))
    code = keras.layers.Lambda(lambda x: x[:, 0, 0, :2])(pictures_in)
    coded = keras.Model(pictures_in, code, name="coded")
    coded.transfer = classifier().transfer
    with pytest.raises(ArtifactError, match="The model 'coded' holds a Lambda layer"):
        save(folder, coded)
    with pytest.raises(FileNotFoundError):
        save(folder, manifest=tmp_path / "none.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert load_artifact(folder).card["extra"] == {"old": True}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"class_names": ("a", "b", "c")}, "3 class names for a model of 2 outputs"),
        ({"examples": np.zeros((0, SIZE, SIZE, 3))}, "examples must be pictures"),
        ({"examples": np.zeros((2, 8, 8, 3))}, "must have the shape"),
        ({"examples": np.full((2, SIZE, SIZE, 3), 300.0)}, r"these lie in \[300, 300\]"),
        ({"examples": np.full((2, SIZE, SIZE, 3), 0.9)}, "any division by 255"),
        ({"extra": {"array": np.zeros(2)}}, "extra must hold plain numbers"),
        ({"extra": {"loss": float("nan")}}, "extra must hold plain numbers"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        save(tmp_path / "model", **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_artefact_is_called_so(tmp_path):
    with pytest.raises(ArtifactError, match="holds no card.json"):
        load_artifact(tmp_path)
    (tmp_path / "card.json").write_text('{"a": 1')
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_artifact(tmp_path)
    (tmp_path / "card.json").write_text('["a"]')
    with pytest.raises(ArtifactError, match="not of the format"):
        load_artifact(tmp_path)


def test_a_classifier_of_the_package_can_be_trained_on_after_loading(tmp_path):
    model = build_classifier(make_tiny_backbone(32), 2, augmentation=keras.layers.RandomFlip())
    examples = np.repeat(np.repeat(pictures(), 2, axis=1), 2, axis=2)
    loaded = load_artifact(save(tmp_path / "model", model, examples=examples)).model
    assert loaded.transfer == model.transfer
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    assert len(loaded.trainable_weights) == len(model.trainable_weights)
    train = load_arrays(examples, [0, 1] * 6, batch_size=4).train
    train_head(loaded, train, epochs=1)
    assert not np.array_equal(loaded.get_layer("logits").kernel, model.get_layer("logits").kernel)
    unfreeze_top(loaded, stages=1)
    unfreeze_top(model, stages=1)
    assert len(loaded.trainable_weights) == len(model.trainable_weights) > 2


def test_the_model_file_needs_nothing_of_this_package(tmp_path):
    model = build_classifier(make_tiny_backbone(SIZE), 2, augmentation=keras.layers.RandomFlip())
    with zipfile.ZipFile(save(tmp_path / "model", model) / "model.keras") as archive:
        assert b"tlkeras" not in archive.read("config.json")


@pytest.mark.parametrize("name", ["model.keras", "golden.npz"])
def test_missing_truncated_and_altered_files_are_named(tmp_path, name):
    path = save(tmp_path / "model") / name
    content = path.read_bytes()
    for altered in (content[: len(content) // 2], content[:-1] + bytes([content[-1] ^ 1]), b""):
        path.write_bytes(altered)
        with pytest.raises(ArtifactError, match=rf"{name} is not the file that was saved"):
            load_artifact(path.parent)
        sign(path.parent)
        if altered != content[:-1] + bytes([content[-1] ^ 1]):
            with pytest.raises(ArtifactError, match=name):
                load_artifact(path.parent)
        path.write_bytes(content)
        sign(path.parent)
    path.unlink()
    with pytest.raises(ArtifactError, match=rf"{name} is missing"):
        load_artifact(path.parent)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..\\secret", "other.bin"])
def test_a_card_cannot_point_out_of_its_folder(tmp_path, name):
    folder = save(tmp_path / "model")
    card = json.loads((folder / "card.json").read_text())
    sign(folder, files=card["files"] | {name: "0"})
    with pytest.raises(ArtifactError, match="a file that does not belong here"):
        load_artifact(folder)


@pytest.mark.parametrize(
    "changes", [{"tolerance": 1.0}, {"tolerance": float("nan")}, {"files": {}}, {"class_names": None}, {"transfer": 1}]
)
def test_an_edited_card_is_refused(tmp_path, changes):
    folder = save(tmp_path / "model")
    sign(folder, **changes)
    with pytest.raises(ArtifactError, match="card.json"):
        load_artifact(folder)


def test_edited_weights_are_found_even_when_the_hash_was_renewed(tmp_path):
    folder, edited = save(tmp_path / "model"), classifier(augmentation=False)
    kernel = edited.get_layer("logits").kernel
    kernel.assign(kernel * 1.1)
    swap_model(folder, edited)
    with pytest.raises(ArtifactError, match="Golden picture 0, 1, .* of 8"):
        load_artifact(folder)


def test_weights_that_are_not_numbers_any_more_are_found(tmp_path):
    folder, edited = save(tmp_path / "model"), classifier(augmentation=False)
    edited.get_layer("logits").bias.assign([np.nan, 0])
    swap_model(folder, edited)
    with pytest.raises(ArtifactError, match="NaN or infinity for 8 of 8"):
        load_artifact(folder)


def test_pickled_arrays_are_not_opened(tmp_path):
    folder = save(tmp_path / "model")
    np.savez(folder / "golden.npz", pictures=np.array([{"code": 1}], dtype=object), probabilities=np.ones((1, 2)))
    sign(folder)
    with pytest.raises(ArtifactError, match="allow_pickle=False"):
        load_artifact(folder)


def test_an_edited_image_size_is_found(tmp_path):
    folder = save(tmp_path / "model")
    card = json.loads((folder / "card.json").read_text())
    sign(folder, preprocessing=card["preprocessing"] | {"image_size": 2 * SIZE})
    with pytest.raises(ArtifactError, match="the card says 32 pixels"):
        load_artifact(folder)


@pytest.mark.parametrize("names", [["ants", "bees", "wasps"], ["bees", "ants"]], ids=["one more", "exchanged"])
def test_golden_answers_for_other_labels_are_refused(names, tmp_path):
    folder = save(tmp_path / "model")
    assert load_artifact(folder).class_names == ("ants", "bees")
    sign(folder, class_names=names)
    with pytest.raises(ArtifactError, match=r"were \['ants', 'bees'\], the card says"):
        load_artifact(folder)


@pytest.mark.parametrize("allowed_elsewhere", [False, True])
def test_code_in_the_model_is_refused_even_where_keras_was_told_to_allow_it(tmp_path, allowed_elsewhere):
    folder = save(tmp_path / "model")
    flag = tmp_path / "ran"
    pictures_in = keras.Input((SIZE, SIZE, 3))
    code = keras.layers.Lambda(lambda x, path=str(flag): (open(path, "w").close(), x[:, 0, 0, :2])[1])
    swap_model(folder, keras.Model(pictures_in, code(pictures_in)))
    flag.unlink(missing_ok=True)
    from keras.src.backend.common import (
        global_state,  # only to take the process-wide switch back
    )

    try:
        if allowed_elsewhere:
            keras.config.enable_unsafe_deserialization()
        with pytest.raises(ArtifactError, match="Lambda layer"):
            load_artifact(folder)
    finally:
        global_state.set_global_attribute("safe_mode_saving", None)
    assert not flag.exists()


def test_a_model_file_without_a_graph_is_refused(tmp_path):
    folder = save(tmp_path / "model")
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    sign(folder)
    with pytest.raises(ArtifactError, match=r"model.keras cannot be loaded \(saved with Keras"):
        load_artifact(folder)


def test_half_precision_has_its_own_tolerance(tmp_path):
    full, half = classifier(), classifier(dtype="mixed_float16")
    assert load_artifact(save(tmp_path / "full", full)).card["tolerance"] == TOLERANCE
    assert load_artifact(save(tmp_path / "half", half)).card["tolerance"] == TOLERANCE_HALF_PRECISION


def test_pictures_that_were_divided_by_255_are_refused_and_black_ones_taken(tmp_path):
    loaded = load_artifact(save(tmp_path / "model"))
    with pytest.raises(ValueError, match="any division by 255"):
        loaded.predict(pictures() / 255)
    black = np.zeros((1, SIZE, SIZE, 3))
    np.testing.assert_array_equal(
        loaded.predict(black).probabilities, loaded.predict(black.astype(np.uint8)).probabilities
    )


@pytest.mark.parametrize("scale", [1e-3, 1e5])
def test_numbers_of_any_size_prove_themselves_and_are_exported(tmp_path, scale):
    model = classifier(num_outputs=1)
    model.transfer = dataclasses.replace(model.transfer, task="regression")
    model.get_layer("logits").set_weights([weight * scale for weight in model.get_layer("logits").get_weights()])
    folder = save(tmp_path / "model", model, class_names=["value"])
    if keras.backend.backend() == "tensorflow":
        assert export_artifact(load_artifact(folder), tmp_path / "out.tflite") < 1e-4
    model.get_layer("logits").kernel.assign(model.get_layer("logits").kernel * 1.1)
    swap_model(folder, _without_augmentation(model))
    with pytest.raises(ArtifactError, match="of the largest answer"):
        load_artifact(folder)


def test_a_nearly_black_picture_among_examples_is_no_divided_one(tmp_path):
    shown = pictures().astype("float32")
    shown[[0, 3]] = 0
    shown[[0, 3], 0, 0, 0] = 1
    folder = save(tmp_path / "model", examples=shown)
    with np.load(folder / "golden.npz") as golden:
        assert golden["pictures"].max(axis=(1, 2, 3)).min() == 1
    assert load_artifact(folder).predict(list(shown)).probabilities.shape == (12, 2)


@keras.saving.register_keras_serializable("tests")
class Unwritable(keras.layers.Layer):
    """A layer that Keras cannot write down."""

    def __init__(self, strength):
        super().__init__()
        self.strength = strength

    def call(self, images):
        return images


@pytest.mark.parametrize("layer", [keras.layers.Lambda(lambda x: x), Unwritable(2)], ids=["lambda", "unwritable"])
def test_an_augmentation_that_is_not_saved_does_not_keep_a_model_from_being_saved(layer, tmp_path):
    model = build_classifier(make_tiny_backbone(SIZE), 2, augmentation=keras.Sequential([layer]))
    assert load_artifact(save(tmp_path / "model", model)).predict(pictures()).probabilities.shape == (12, 2)


@pytest.mark.parametrize("name", ["TFSMLayer", "layers.TFSMLayer", "keras.layers.TorchModuleWrapper"])
def test_layers_that_bring_code_of_their_own_are_refused_by_whatever_name(name, tmp_path):
    folder = save(tmp_path / "model")
    with zipfile.ZipFile(folder / "model.keras") as archive:
        parts = {part: archive.read(part) for part in archive.namelist()}
    config = json.loads(parts["config.json"])
    config["config"]["layers"][1] |= {"module": "keras", "class_name": name}
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        for part, content in (parts | {"config.json": json.dumps(config).encode()}).items():
            archive.writestr(part, content)
    sign(folder)
    with pytest.raises(ArtifactError, match=f"holds a {name.split('.')[-1]} layer"):
        load_artifact(folder)
