"""Claims about `Data`: splits that share nothing, pipelines that can be repeated, pictures aligned with their names."""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from tlkeras import scan as scanning
from tlkeras.data import Split, light_augmentation, load_arrays, load_folder, load_tfds, read_manifest, write_manifest
from tlkeras.scan import decode_picture

SHARED = Path(__file__).parents[2] / "shared"


def save(path: Path, seed: int, size=(40, 36)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures") / "set"
    for start, (name, count) in enumerate({"ants": 20, "bees": 15, "wasps": 15}.items()):
        for number in range(count):
            save(root / name / f"{number:02}.png", 100 * start + number)
    return root


def images(dataset) -> np.ndarray:
    return np.concatenate([batch.numpy() for batch, _ in dataset])


def digests(dataset) -> list[str]:
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in images(dataset)]


def load(folder, **options):
    return load_folder(folder, image_size=24, batch_size=8, **options)


def test_batches_are_float32_from_0_to_255_with_whole_labels(folder):
    batch, labels = next(iter(load(folder).train))
    assert batch.shape == (8, 24, 24, 3) and batch.dtype == "float32" and labels.dtype == "int64"
    assert 0 <= batch.numpy().min() < 30 and 225 < batch.numpy().max() <= 255


def test_splits_stay_disjoint_over_two_passes(folder):
    data = load(folder, split=Split(validation=0.2, test=0.2))
    train, validation, test = ([set(digests(d)) for _ in range(2)] for d in (data.train, data.validation, data.test))
    assert train[0] == train[1] and validation[0] == validation[1] and test[0] == test[1]
    assert not train[0] & validation[0] and not train[0] & test[0] and not validation[0] & test[0]
    assert len(train[0] | validation[0] | test[0]) == 50


def test_the_same_seed_gives_the_same_batches_in_each_epoch(folder):
    for augment in (None, "light", lambda: light_augmentation(5)):
        one, two = (load(folder, augment=augment() if callable(augment) else augment, seed=3) for _ in range(2))
        next(iter(two.train))  # a look at a picture must not change what comes later
        next(iter(one.train))
        epochs = [digests(one.train), digests(one.train)]
        assert epochs == [digests(two.train), digests(two.train)]
        assert epochs[0] != epochs[1]


def test_two_epochs_show_the_same_pictures_in_another_order(folder):
    data = load(folder)
    first, second = digests(data.train), digests(data.train)
    assert first != second and sorted(first) == sorted(second)


@pytest.mark.parametrize("augment", ["light", keras.layers.RandomFlip("horizontal", seed=1), light_augmentation(2)])
def test_two_epochs_differ_in_augmentation_and_stay_in_range(folder, augment):
    data = load(folder).augmented(augment)
    first, second = images(data.train), images(data.train)
    plain = {digest: True for digest in digests(data.ordered("train"))}
    assert set(digests(data.train)) != set(digests(data.train))
    assert not set(digests(data.train)) <= set(plain)
    assert first.dtype == second.dtype == np.float32 and first.min() >= 0 and first.max() <= 255.01


def test_light_augmentation_mirrors_half_and_moves_a_tenth_at_most():
    ramp = np.tile(np.linspace(0, 255, 64, dtype=np.float32)[None, None, :, None], (400, 64, 1, 3))
    data = load_arrays(ramp + np.random.default_rng(0).random((400, 1, 1, 1)) * 1e-3 * (ramp < 254), [0, 1] * 200)
    seen = images(data.augmented("light").train)[:, 32, :, 0]
    rising = seen[:, -1] > seen[:, 0]
    assert 0.4 < rising.mean() < 0.6
    span = np.abs(seen[:, -1] - seen[:, 0]) / 255
    assert 0.79 < span.min() < 0.83 and 0.97 < span.max() <= 1.001
    assert np.abs(seen.mean(axis=1) / 255 - 0.5).max() < 0.105


def test_validation_is_never_augmented_nor_shuffled(folder):
    data = load(folder, augment="light")
    assert digests(data.validation) == digests(data.validation) == digests(data.ordered("validation"))


def test_ordered_is_aligned_with_paths_labels_and_hashes(folder):
    data = load(folder, augment="light", split=Split(test=0.1))
    for split in ("train", "validation", "test"):
        labels = np.concatenate([label.numpy() for _, label in data.ordered(split)])
        np.testing.assert_array_equal(labels, data.labels[split])
        rows = zip(data.paths[split], data.labels[split], data.hashes[split], images(data.ordered(split)), strict=True)
        for path, label, sha256, image in rows:
            assert path.split("/")[0] == data.class_names[label]
            assert hashlib.sha256((data.root / path).read_bytes()).hexdigest() == sha256
            np.testing.assert_array_equal(image, decode_picture(data.root / path, 24))


def test_labels_of_the_shuffled_pipeline_belong_to_their_pictures(folder):
    data = load(folder)
    truth = dict(zip(digests(data.ordered("train")), data.labels["train"], strict=True))
    for batch, labels in data.train:
        for image, label in zip(batch.numpy(), labels.numpy(), strict=True):
            assert truth[hashlib.sha256(image.tobytes()).hexdigest()] == label


def test_a_copy_of_the_folder_gives_the_same_split(folder, tmp_path):
    for path in sorted(folder.rglob("*.png"), reverse=True):
        target = tmp_path / "elsewhere" / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    assert load(folder).paths == load(tmp_path / "elsewhere").paths
    assert load(folder).paths == load_folder(folder, image_size=40).paths
    assert load(folder).paths != load(folder, seed=1).paths


def test_counts_add_up_and_the_table_says_them(folder):
    data = load(folder, split=Split(test=0.2))
    assert data.counts["train"] == {"ants": 12, "bees": 9, "wasps": 9}
    assert data.counts["validation"] == data.counts["test"] == {"ants": 4, "bees": 3, "wasps": 3}
    assert data.num_classes == 3 and data.class_names == ("ants", "bees", "wasps")
    text = repr(data)
    assert "50 pictures, 3 classes, 24 px" in text and "ants" in text and "validation" in text


def test_without_a_test_share_there_is_no_test(folder):
    data = load(folder)
    assert data.test is None and list(data.counts) == ["train", "validation"]
    with pytest.raises(ValueError, match="no split 'test'.*train, validation"):
        data.ordered("test")


def test_set_aside_files_are_said_aloud_and_do_not_stop_an_epoch(folder, tmp_path, caplog):
    shutil.copytree(folder, tmp_path / "set")
    (tmp_path / "set" / "bees" / "broken.jpg").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "tlkeras"):
        data = load(tmp_path / "set")
    assert [item.path for item in data.set_aside] == ["bees/broken.jpg"]
    assert "bees/broken.jpg (empty file (0 bytes))" in caplog.text and "bees/broken.jpg" in repr(data)
    assert len(images(data.train)) + len(images(data.validation)) == 50


@pytest.mark.parametrize(("share", "cache"), [("MEMORY_SHARE", "disk"), ("DISK_SHARE", "none")])
def test_every_cache_gives_the_same_pictures(folder, monkeypatch, share, cache):
    expected = load(folder)
    monkeypatch.setattr(scanning, "MEMORY_SHARE", 0.0)
    monkeypatch.setattr(scanning, share, 0.0)
    data = load(folder)
    assert data.cache == cache and f"cache: {cache}" in repr(data)
    np.testing.assert_array_equal(images(data.train), images(expected.train))
    np.testing.assert_array_equal(images(data.ordered("validation")), images(expected.validation))


def test_a_manifest_brings_the_split_back_whatever_the_seed(folder, tmp_path):
    data = load(folder, split=Split(test=0.2))
    write_manifest(data, tmp_path / "split.csv")
    again = load(folder, seed=9, split=read_manifest(tmp_path / "split.csv"))
    assert again.paths == data.paths and again.hashes == data.hashes
    write_manifest(again, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "split.csv").read_bytes()
    lines = (tmp_path / "split.csv").read_text().splitlines()
    assert lines[0] == "path,class,split,sha256" and len(lines) == 51


def test_a_manifest_notices_new_missing_and_changed_files(folder, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(folder, root)
    write_manifest(load(root), tmp_path / "split.csv")
    manifest = read_manifest(tmp_path / "split.csv")
    save(root / "ants" / "new.png", 999)
    data = load(root, split=manifest)
    assert [(item.path, item.reason) for item in data.set_aside] == [("ants/new.png", "not in the manifest")]
    save(root / "ants" / "03.png", 998)
    (root / "bees" / "04.png").unlink()
    with pytest.raises(ValueError, match=r"1 missing or unusable: bees/04.png; 1 with other content: ants/03.png"):
        load(root, split=manifest)


def test_a_given_split_is_respected(folder, tmp_path):
    for name, numbers in {"train": range(10), "val": range(10, 15)}.items():
        for kind in ("ants", "bees"):
            for number in numbers:
                source = folder / kind / f"{number:02}.png"
                target = tmp_path / "set" / name / kind / source.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
    data = load(tmp_path / "set")
    assert data.counts == {"train": {"ants": 10, "bees": 10}, "validation": {"ants": 5, "bees": 5}}
    assert all(path.startswith("val/") for path in data.paths["validation"])


def test_imbalance_gives_balanced_weights_and_says_so(tmp_path, caplog):
    for number in range(20):
        save(tmp_path / "common" / f"{number}.png", number)
        if number < 5:
            save(tmp_path / "rare" / f"{number}.png", 50 + number)
    with caplog.at_level(logging.WARNING, "tlkeras"):
        data = load(tmp_path)
    assert data.counts["train"] == {"common": 16, "rare": 4}
    assert data.class_weight == {0: pytest.approx(20 / (2 * 16)), 1: pytest.approx(20 / (2 * 4))}
    assert "rare 2.50" in caplog.text and "rare 2.50" in repr(data)


def test_balanced_classes_need_no_weights(folder):
    assert load(folder).class_weight is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "heavy"}, '"light" or a Keras layer'),
        ({"batch_size": 0}, "batch_size is a whole number"),
        ({"image_size": 2.5}, "image_size is a side"),
        ({"split": 0.2}, "split is a Split"),
    ],
)
def test_wrong_options_are_refused_at_the_door(folder, options, message):
    with pytest.raises(ValueError, match=message):
        load_folder(folder, **options)


def pixels(count: int, *, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, channels), dtype=np.uint8)


def test_arrays_keep_their_pixels_and_labels():
    source = pixels(40)
    data = load_arrays(source, np.arange(40) % 4, class_names=["a", "b", "c", "d"], split=Split(test=0.25))
    assert data.counts["train"] == {"a": 6, "b": 6, "c": 6, "d": 6} and data.paths["train"] is None
    for split, numbers in data.index.items():
        np.testing.assert_array_equal(images(data.ordered(split)), source[numbers])
        np.testing.assert_array_equal(data.labels[split], numbers % 4)


def test_text_labels_name_the_classes():
    data = load_arrays(pixels(20), ["dog", "cat"] * 10)
    assert data.class_names == ("cat", "dog") and data.labels["train"].dtype == np.int64


def test_grey_arrays_are_widened_to_three_channels():
    batch = images(load_arrays(pixels(20, channels=1), [0, 1] * 10).train)
    assert batch.shape == (16, 8, 8, 3) and (batch[..., 0] == batch[..., 2]).all()


def test_equal_arrays_stay_on_one_side():
    source = pixels(40)
    source[20:30] = source[:10]
    data = load_arrays(source, [0, 1] * 20)
    assert len(data.duplicates) == 10 and not set(digests(data.train)) & set(digests(data.validation))


def test_groups_of_arrays_are_keys():
    groups = np.arange(40) // 4
    data = load_arrays(pixels(40), [0, 1] * 20, split=Split(groups=groups))
    assert not set(groups[data.index["train"]]) & set(groups[data.index["validation"]])


def test_several_labels_a_picture_and_numbers_are_split_without_classes():
    several = load_arrays(pixels(20), np.random.default_rng(0).integers(0, 2, (20, 3)), class_names=["a", "b", "c"])
    assert several.labels["train"].shape == (16, 3) and several.num_classes == 3 and several.class_weight is None
    numbers = load_arrays(pixels(20), np.linspace(0, 1, 20))
    assert numbers.labels["train"].dtype == np.float32 and numbers.class_names == ("value",)


@pytest.mark.parametrize(
    ("source", "labels", "names", "message"),
    [
        (np.random.default_rng(0).random((4, 8, 8, 3)), [0, 1, 0, 1], None, "multiply by 255"),
        (np.full((4, 8, 8, 3), -1.0), [0, 1, 0, 1], None, "undo any normalization"),
        (np.full((4, 8, 8, 3), np.nan), [0, 1, 0, 1], None, r"\[0, 255\]"),
        (pixels(4)[:, :6], [0, 1, 0, 1], None, "square"),
        (pixels(4), [0, 1, 0], None, "4 in all"),
        (pixels(4), [0, 1, 2, 3], ["a", "b"], "but there are 2 class names"),
        (pixels(4), ["a", "b", "ct", "a"], ["a", "b", "cat"], "did you mean 'cat'"),
        (pixels(4), [1, 1, 1, 1], None, "Two or more classes"),
        (pixels(4), ["a", "a", "a", "b"], None, "'b' cannot be on every side"),
    ],
)
def test_arrays_of_another_kind_are_refused(source, labels, names, message):
    with pytest.raises(ValueError, match=message):
        load_arrays(source, labels, class_names=names)


def test_arrays_have_no_manifest(tmp_path):
    with pytest.raises(ValueError, match="has none"):
        write_manifest(load_arrays(pixels(20), [0, 1] * 10), tmp_path / "split.csv")


def test_a_tfds_folder_builder_gives_its_own_splits(folder, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    shutil.copytree(folder, tmp_path / "set" / "train")
    for number in range(4):
        for name in ("ants", "bees", "wasps"):
            save(tmp_path / "set" / "test" / name / f"{number}.png", 5000 + number + 10 * len(name) + ord(name[0]))
    data = load_tfds(tfds.folder_dataset.ImageFolder(str(tmp_path / "set")), image_size=24, batch_size=8)
    assert data.counts["test"] == {"ants": 4, "bees": 4, "wasps": 4}
    assert data.counts["validation"] == {"ants": 4, "bees": 3, "wasps": 3}
    assert sum(data.counts["train"].values()) == 40
    decoded = [decode_picture(path, 24).astype("float32") for path in folder.rglob("*.png")]
    files = {hashlib.sha256(image.tobytes()).hexdigest() for image in decoded}
    assert set(digests(data.train)) | set(digests(data.validation)) == files
    assert not set(digests(data.train)) & set(digests(data.validation))


def tiny_builder(source: np.ndarray):
    tfds = pytest.importorskip("tensorflow_datasets")

    class Tiny(tfds.core.GeneratorBasedBuilder):
        """Twenty pictures of two classes, and no split but train."""

        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = Path(__file__).parent

        def _info(self):
            label = tfds.features.ClassLabel(names=["cat", "dog"])
            features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(8, 8, 3)), "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number, image in enumerate(source):
                yield number, {"image": image, "label": number % 2}

    return Tiny


def test_a_prepared_tfds_folder_is_read_in_place_and_cut_once(tmp_path):
    source = pixels(20)
    builder = tiny_builder(source)(data_dir=tmp_path)
    builder.download_and_prepare()
    data = load_tfds(builder.data_path, image_size=8, split=Split(test=0.2))
    assert data.counts == {
        "train": {"cat": 6, "dog": 6},
        "validation": {"cat": 2, "dog": 2},
        "test": {"cat": 2, "dog": 2},
    }
    seen = [set(digests(dataset)) for dataset in (data.train, data.validation, data.test)]
    assert set.union(*seen) == {hashlib.sha256(image.astype("float32").tobytes()).hexdigest() for image in source}
    assert sum(map(len, seen)) == 20
    again = load_tfds(builder.data_path, image_size=8, split=Split(test=0.2))
    assert digests(again.train) == digests(load_tfds(builder, image_size=8, split=Split(test=0.2)).train)


def test_a_failing_download_says_what_was_tried(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")

    def refused(*args, **options):
        raise OSError("network is unreachable")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refused)
    with pytest.raises(ConnectionError, match=r"mnist.*network is unreachable.*looked for in.*data_dir="):
        load_tfds("mnist", data_dir=tmp_path)


def test_an_unknown_tfds_name_is_answered_with_near_ones(monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(ValueError, match="no set 'tf_flower'; did you mean tf_flowers"):
        load_tfds("tf_flower")


def test_layers_inside_a_model_augment_in_training_only():
    layers = light_augmentation(3)
    batch = pixels(4).astype("float32")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layers(batch, training=False)), batch)
    assert np.abs(keras.ops.convert_to_numpy(layers(batch, training=True)) - batch).max() > 1


@pytest.mark.skipif(not (SHARED / "data/hymenoptera").is_dir(), reason="the shared data sets are not here")
def test_hymenoptera_loads_as_it_was_published():
    data = load_folder(SHARED / "data/hymenoptera", image_size=64)
    assert sum(data.counts["train"].values()) == 244 and sum(data.counts["validation"].values()) == 153
    assert data.class_names == ("ants", "bees") and data.test is None
