"""Claims about `Data`: splits that share nothing, pipelines that can be repeated, pictures aligned with their names."""

from __future__ import annotations

import hashlib
import logging

import numpy as np
import pytest
from conftest import save_picture

from tlkeras import pictures
from tlkeras.augmentation import light_augmentation
from tlkeras.data import _warn_once
from tlkeras.loaders import load_folder
from tlkeras.pictures import decode_picture
from tlkeras.splits import Split


def images(dataset) -> np.ndarray:
    return np.concatenate([batch.numpy() for batch, _ in dataset])


def digests(dataset) -> list[str]:
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in images(dataset)]


def load(folder, **options):
    return load_folder(folder, image_size=24, batch_size=8, **options)


def test_batches_are_float32_from_0_to_255_with_whole_labels(insects):
    batch, labels = next(iter(load(insects).train))
    assert batch.shape == (8, 24, 24, 3) and batch.dtype == "float32" and labels.dtype == "int64"
    assert 0 <= batch.numpy().min() < 30 and 225 < batch.numpy().max() <= 255


def test_splits_stay_disjoint_over_two_passes(insects):
    data = load(insects, split=Split(validation=0.2, test=0.2))
    train, validation, test = ([set(digests(d)) for _ in range(2)] for d in (data.train, data.validation, data.test))
    assert train[0] == train[1] and validation[0] == validation[1] and test[0] == test[1]
    assert not train[0] & validation[0] and not train[0] & test[0] and not validation[0] & test[0]
    assert len(train[0] | validation[0] | test[0]) == 50


def test_the_same_seed_gives_the_same_batches_in_each_epoch(insects):
    for augment in (None, "light", lambda: light_augmentation(5)):
        one, two = (load(insects, augment=augment() if callable(augment) else augment, seed=3) for _ in range(2))
        next(iter(two.train))  # a look at a picture must not change what comes later
        next(iter(one.train))
        epochs = [digests(one.train), digests(one.train)]
        assert epochs == [digests(two.train), digests(two.train)]
        assert epochs[0] != epochs[1]


def test_two_epochs_show_the_same_pictures_in_another_order(insects):
    data = load(insects)
    first, second = digests(data.train), digests(data.train)
    assert first != second and sorted(first) == sorted(second)


def test_validation_is_never_augmented_nor_shuffled(insects):
    data = load(insects, augment="light")
    assert digests(data.validation) == digests(data.validation) == digests(data.ordered("validation"))


def test_ordered_is_aligned_with_paths_labels_and_hashes(insects):
    data = load(insects, augment="light", split=Split(test=0.1))
    for split in ("train", "validation", "test"):
        labels = np.concatenate([label.numpy() for _, label in data.ordered(split)])
        np.testing.assert_array_equal(labels, data.labels[split])
        rows = zip(data.paths[split], data.labels[split], data.hashes[split], images(data.ordered(split)), strict=True)
        for path, label, sha256, image in rows:
            assert path.split("/")[0] == data.class_names[label]
            assert hashlib.sha256((data.root / path).read_bytes()).hexdigest() == sha256
            np.testing.assert_array_equal(image, decode_picture(data.root / path, 24))


@pytest.mark.parametrize("trained", [False, True])
def test_pictures_are_those_of_ordered_as_they_are_stored(insects, trained):
    data = load(insects)
    if trained:
        next(iter(data.train))
    for split in ("train", "validation"):
        batches = data.pictures(split)
        assert len(batches) == len(data.ordered(split)) and len(list(batches)) == len(list(batches))
        for (plain, labels), (images, truth) in zip(batches, data.ordered(split), strict=True):
            assert plain.dtype == np.uint8
            np.testing.assert_array_equal(plain, images)
            np.testing.assert_array_equal(labels, truth)
    with pytest.raises(ValueError, match="no split 'test'"):
        data.pictures("test")


def test_subsets_share_their_pictures(insects):
    data = load(insects)
    assert data.subset(np.arange(9)).pixels is data.pixels


def test_labels_of_the_shuffled_pipeline_belong_to_their_pictures(insects):
    data = load(insects)
    truth = dict(zip(digests(data.ordered("train")), data.labels["train"], strict=True))
    for batch, labels in data.train:
        for image, label in zip(batch.numpy(), labels.numpy(), strict=True):
            assert truth[hashlib.sha256(image.tobytes()).hexdigest()] == label


def test_counts_add_up_and_the_table_says_them(insects):
    data = load(insects, split=Split(test=0.2))
    assert data.counts["train"] == {"ants": 12, "bees": 9, "wasps": 9}
    assert data.counts["validation"] == data.counts["test"] == {"ants": 4, "bees": 3, "wasps": 3}
    assert data.num_classes == 3 and data.class_names == ("ants", "bees", "wasps")
    text = repr(data)
    assert "50 pictures, 3 classes, 24 px" in text and "ants" in text and "validation" in text


def test_without_a_test_share_there_is_no_test(insects):
    data = load(insects)
    assert data.test is None and list(data.counts) == ["train", "validation"]
    with pytest.raises(ValueError, match="no split 'test'.*train, validation"):
        data.ordered("test")


@pytest.mark.parametrize(("share", "cache"), [("MEMORY_SHARE", "disk"), ("DISK_SHARE", "none")])
def test_every_cache_gives_the_same_pictures(insects, monkeypatch, share, cache):
    expected = load(insects)
    monkeypatch.setattr(pictures, "MEMORY_SHARE", 0.0)
    monkeypatch.setattr(pictures, share, 0.0)
    data = load(insects)
    assert data.cache == cache and f"cache: {cache}" in repr(data)
    np.testing.assert_array_equal(images(data.train), images(expected.train))
    np.testing.assert_array_equal(images(data.ordered("validation")), images(expected.validation))


def test_imbalance_gives_balanced_weights_and_says_so(tmp_path, caplog):
    for number in range(20):
        save_picture(tmp_path / "common" / f"{number}.png", number)
        if number < 5:
            save_picture(tmp_path / "rare" / f"{number}.png", 50 + number)
    _warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "tlkeras"):
        data = [load(tmp_path) for _ in range(2)][-1]
    assert caplog.text.count("rare 2.50") == 1  # a loop over seeds says it once
    assert data.counts["train"] == {"common": 16, "rare": 4}
    assert data.class_weight == {0: pytest.approx(20 / (2 * 16)), 1: pytest.approx(20 / (2 * 4))}
    assert "rare 2.50" in repr(data)


def test_balanced_classes_need_no_weights(insects):
    assert load(insects).class_weight is None


def pixels(count: int, *, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, channels), dtype=np.uint8)


def test_a_subset_has_fewer_training_pictures_and_the_same_others():
    from tlkeras.loaders import load_arrays

    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    data = load_arrays(images, np.arange(40) % 2)
    fewer = data.subset([5, 2, 9])
    expected = [image for k, (image, _) in enumerate(data.ordered("train").unbatch()) if k in (2, 5, 9)]
    np.testing.assert_array_equal([image for image, _ in fewer.ordered("train").unbatch()], expected)
    assert fewer.labels["train"].tolist() == data.labels["train"][[2, 5, 9]].tolist()
    np.testing.assert_array_equal(fewer.pieces["train"], data.pieces["train"][[2, 5, 9]])
    assert fewer.index["validation"] is data.index["validation"]
    mask = data.labels["train"] == 1
    assert data.subset(mask).labels["train"].tolist() == [1] * mask.sum()


@pytest.mark.parametrize("rows", [[True, False], [0.0, 1.0], [-1], [1000], []])
def test_rows_that_are_no_places_are_refused(insects, rows):
    with pytest.raises(ValueError, match=r"places from 0 to \d+, or a mask of \d+"):
        load(insects).subset(rows)
