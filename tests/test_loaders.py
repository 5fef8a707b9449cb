"""Claims about loading folders and arrays: the same split everywhere, and odd input refused in plain words."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import save_picture
from test_data import digests, images, load, pixels

from tlkeras.loaders import load_arrays, load_folder
from tlkeras.splits import Split, read_manifest, write_manifest

SHARED = Path(__file__).parents[2] / "shared"


def test_a_copy_of_the_folder_gives_the_same_split(insects, tmp_path):
    for path in sorted(insects.rglob("*.png"), reverse=True):
        target = tmp_path / "elsewhere" / path.relative_to(insects)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    assert load(insects).paths == load(tmp_path / "elsewhere").paths
    assert load(insects).paths == load_folder(insects, image_size=40).paths
    assert load(insects).paths != load(insects, seed=1).paths


def test_set_aside_files_are_said_aloud_and_do_not_stop_an_epoch(insects, tmp_path, caplog):
    shutil.copytree(insects, tmp_path / "set")
    (tmp_path / "set" / "bees" / "broken.jpg").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "tlkeras"):
        data = load(tmp_path / "set")
    assert [item.path for item in data.set_aside] == ["bees/broken.jpg"]
    assert "bees/broken.jpg (empty file (0 bytes))" in caplog.text and "bees/broken.jpg" in repr(data)
    assert len(images(data.train)) + len(images(data.validation)) == 50


def test_a_manifest_brings_the_split_back_whatever_the_seed(insects, tmp_path):
    data = load(insects, split=Split(test=0.2))
    write_manifest(data, tmp_path / "split.csv")
    again = load(insects, seed=9, split=read_manifest(tmp_path / "split.csv"))
    assert again.paths == data.paths and again.hashes == data.hashes
    write_manifest(again, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "split.csv").read_bytes()
    lines = (tmp_path / "split.csv").read_text().splitlines()
    assert lines[0] == "path,class,split,sha256" and len(lines) == 51


def test_a_manifest_notices_new_missing_and_changed_files(insects, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(insects, root)
    write_manifest(load(root), tmp_path / "split.csv")
    manifest = read_manifest(tmp_path / "split.csv")
    save_picture(root / "ants" / "new.png", 999)
    data = load(root, split=manifest)
    assert [(item.path, item.reason) for item in data.set_aside] == [("ants/new.png", "not in the manifest")]
    save_picture(root / "ants" / "03.png", 998)
    (root / "bees" / "04.png").unlink()
    with pytest.raises(ValueError, match=r"1 missing or unusable: bees/04.png; 1 with other content: ants/03.png"):
        load(root, split=manifest)


def test_a_given_split_is_respected(insects, tmp_path):
    for name, numbers in {"train": range(10), "val": range(10, 15)}.items():
        for kind in ("ants", "bees"):
            for number in numbers:
                source = insects / kind / f"{number:02}.png"
                target = tmp_path / "set" / name / kind / source.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
    data = load(tmp_path / "set")
    assert data.counts == {"train": {"ants": 10, "bees": 10}, "validation": {"ants": 5, "bees": 5}}
    assert all(path.startswith("val/") for path in data.paths["validation"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "heavy"}, '"light" or a Keras layer'),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"image_size": 2.5}, "image_size must be a whole number"),
        ({"split": 0.2}, "split is a Split"),
    ],
)
def test_wrong_options_are_refused_at_the_door(insects, options, message):
    with pytest.raises(ValueError, match=message):
        load_folder(insects, **options)


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


def test_classes_in_a_column_or_as_bytes_and_names_of_any_kind_are_understood(caplog):
    column = load_arrays(pixels(20), np.arange(20)[:, None] % 2, class_names=np.array(["a", "b"]))
    assert column.labels["train"].shape == (16,) and column.class_names == ("a", "b")
    assert load_arrays(pixels(20), [[0], [1]] * 10, class_names=["only"]).labels["train"].shape == (16, 1)
    assert load_arrays(pixels(20), [b"cat", b"dog"] * 10).class_names == ("cat", "dog")
    assert load_arrays(pixels(20), [0, 1] * 10, class_names=[3, 4]).class_names == ("3", "4")
    assert not caplog.records
    load_arrays(pixels(20), [0.0, 1.0] * 10)
    assert "this is regression: for classes pass labels.astype(int)" in caplog.text


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
        (pixels(4), [0, 1, 0, 1], ["a", "a"], "Two classes are called 'a'"),
        (pixels(4), [0, 1, 2, 1], ["1", "b", 1], "Two classes are called '1': give each a name of its own"),
        (pixels(4), [[0, 1], [1, 1], [0, 0], [1, 0]], ["a", "a"], "Two classes are called 'a'"),
        (pixels(4), [1, 1, 1, 1], None, "Two or more classes"),
        (pixels(4), np.array(["a", None, "b", "a"], object), None, "Label 1 is None"),
        (pixels(4), [[0], [0, 1], [1], [1]], None, "labels must all have one shape"),
        (pixels(4), [[0.0], [1.0], [0.0], [1.0]], ["a", "b"], r"Classes are whole numbers of shape \(n,\)"),
        (pixels(4), np.array(["1", 1, "1", 1], object), None, "texts or numbers, and here are both: '1' and 1"),
        (pixels(4), ["a", "a", "a", "b"], None, "'b' cannot be on every side"),
    ],
)
def test_arrays_of_another_kind_are_refused(source, labels, names, message):
    with pytest.raises(ValueError, match=message):
        load_arrays(source, labels, class_names=names)


def test_arrays_have_no_manifest(tmp_path):
    with pytest.raises(ValueError, match="has none"):
        write_manifest(load_arrays(pixels(20), [0, 1] * 10), tmp_path / "split.csv")


@pytest.mark.skipif(not (SHARED / "data/hymenoptera").is_dir(), reason="the shared data sets are not here")
def test_hymenoptera_loads_as_it_was_published():
    data = load_folder(SHARED / "data/hymenoptera", image_size=64)
    assert sum(data.counts["train"].values()) == 244 and sum(data.counts["validation"].values()) == 153
    assert data.class_names == ("ants", "bees") and data.test is None


def test_a_class_that_a_manifest_does_not_list_moves_no_label(insects, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(insects, root)
    before = load(root)
    write_manifest(before, tmp_path / "split.csv")
    for number in range(3):
        save_picture(root / "aphids" / f"{number}.png", 900 + number)
    data = load(root, split=read_manifest(tmp_path / "split.csv"))
    assert data.class_names == before.class_names == ("ants", "bees", "wasps")
    assert all(np.array_equal(data.labels[side], before.labels[side]) for side in before.labels)
    assert len(data.set_aside) == 3 and data.counts == before.counts


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
def test_a_class_whose_name_is_no_text_is_refused_before_anything_is_trained(insects, tmp_path):
    shutil.copytree(insects, tmp_path / "set")
    os.rename(tmp_path / "set" / "bees", os.fsencode(tmp_path / "set") + b"/k\xe4fer")
    with pytest.raises(ValueError, match=r"class folder 'k\\udce4fer' has a name that is no UTF-8.*rename it"):
        load(tmp_path / "set")
