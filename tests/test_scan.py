"""Claims about looking at files: what is usable, what is set aside, and in which words."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from conftest import picture

from tlkeras import pictures
from tlkeras.pictures import decode_picture
from tlkeras.scan import SetAside, scan_folder


@pytest.fixture
def folder(tmp_path):
    for name, start in (("ants", 0), ("bees", 100)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(4):
            picture(start + number).save(tmp_path / "set" / name / f"{number}.png")
    return tmp_path / "set"


def test_forty_odd_files_are_each_used_or_named(folder, odd_files):
    good, bad, ants = odd_files["good"], odd_files["bad"], folder / "ants"
    for name, content in {**good, **bad}.items():
        (ants / name).parent.mkdir(parents=True, exist_ok=True)
        (ants / name).write_bytes(content)
    (ants / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    (ants / "itself.jpg").symlink_to(ants / "itself.jpg")
    (ants / "loop").symlink_to(folder)
    os.mkfifo(ants / "pipe.jpg")
    for name in (".DS_Store", "Thumbs.db", "._0.png"):
        (ants / name).write_bytes(b"furniture")
    (ants / ".ipynb_checkpoints").mkdir()
    (folder / "__MACOSX").mkdir()
    (folder / "SOURCE.md").write_text("where it came from")

    scan = scan_folder(folder, image_size=32)
    names = {item.path.removeprefix("ants/") for item in scan.set_aside}
    assert names == {*bad, "dangling.jpg", "itself.jpg", "loop/", "pipe.jpg", "SOURCE.md"}
    used = {item.path.removeprefix("ants/") for item in scan.pictures if item.class_name == "ants"}
    assert used == {*good, "0.png", "1.png", "2.png", "3.png"}
    assert all(item.reason and "\n" not in item.reason for item in scan.set_aside)
    hidden = ("__MACOSX", *(f"ants/{name}" for name in (".DS_Store", "._0.png", ".ipynb_checkpoints", "Thumbs.db")))
    (note,) = (note for note in scan.notes if note.startswith("5 hidden or system files and folders ignored"))
    assert all(repr(name) in note for name in hidden)
    for row, item in enumerate(scan.pictures):
        np.testing.assert_array_equal(scan.pixels[row], decode_picture(folder / item.path, 32), err_msg=item.path)


def test_a_link_from_one_class_to_another_is_set_aside_and_no_picture_is_of_both(folder):
    (folder / "ants" / "more").symlink_to(folder / "bees")
    (folder / "bees" / "more").symlink_to(folder / "ants")
    scan = scan_folder(folder, image_size=32)
    assert [item.path for item in scan.set_aside] == ["ants/more/", "bees/more/"]
    assert len(scan.pictures) == 8


def test_given_splits_are_found_by_their_usual_names(folder, tmp_path):
    root = tmp_path / "given"
    for name in ("Train", "valid", "test"):
        shutil.copytree(folder, root / name)
    (root / "unlabelled").mkdir()
    scan = scan_folder(root, image_size=8)
    assert [item.split for item in scan.pictures].count("validation") == 8
    assert {item.split for item in scan.pictures} == {"train", "validation", "test"}
    assert scan.set_aside == (SetAside("unlabelled/", "a folder beside train/ that is no split; not read"),)


def test_a_class_may_be_called_train(folder):
    (folder / "ants").rename(folder / "train")
    scan = scan_folder(folder, image_size=8)
    assert scan.class_names == ("bees", "train") and {item.split for item in scan.pictures} == {None}


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [("train", "dev", "validation"), ("training_set", "test_set", "test"), ("Train", "holdout", None)],
)
def test_train_beside_a_folder_of_the_same_classes_is_no_class(folder, tmp_path, train, other, split):
    shutil.copytree(folder, tmp_path / "given" / train)
    shutil.copytree(folder, tmp_path / "given" / other)
    scan = scan_folder(tmp_path / "given", image_size=8)
    assert scan.class_names == ("ants", "bees")
    assert {item.split for item in scan.pictures} == {"train"} | {split} - {None}
    assert [item.path for item in scan.set_aside] == ([] if split else ["holdout/"])


def test_classes_of_the_same_folders_may_be_called_train_too(folder, tmp_path):
    for name in ("bus", "car", "train"):
        shutil.copytree(folder, tmp_path / "vehicles" / name)
    assert scan_folder(tmp_path / "vehicles", image_size=8).class_names == ("bus", "car", "train")


def test_a_class_that_only_validation_knows_is_set_aside(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "given" / "train")
    shutil.copytree(folder, tmp_path / "given" / "val")
    (tmp_path / "given" / "val" / "bees").rename(tmp_path / "given" / "val" / "wasps")
    scan = scan_folder(tmp_path / "given", image_size=8)
    assert scan.class_names == ("ants", "bees")
    assert [item.reason for item in scan.set_aside] == ["class 'wasps' has no picture in train/"] * 4


def test_an_empty_class_is_dropped_and_reported(folder):
    (folder / "wasps").mkdir()
    scan = scan_folder(folder, image_size=8)
    assert scan.class_names == ("ants", "bees")
    assert any("'wasps'" in note and "dropped" in note for note in scan.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: shutil.rmtree(root / "bees"), r"1 class folders .*'ants'.*two or more.*class_name/picture"),
        (lambda root: [shutil.rmtree(root / name) for name in ("ants", "bees")], "0 class folders"),
        (lambda root: shutil.rmtree(root), r"There is no folder.*holds"),
        (lambda root: (shutil.rmtree(root), root.write_text("x")), "is a file"),
        (lambda root: [(root / "ants").rename(root / "val"), (root / "bees").rename(root / "test")], "no train/"),
    ],
)
def test_a_folder_of_another_layout_is_refused_with_what_was_seen(folder, change, message):
    change(folder)
    with pytest.raises(ValueError, match=message):
        scan_folder(folder, image_size=8)


def test_one_folder_too_high_is_told_the_right_one(folder, tmp_path):
    with pytest.raises(ValueError, match="did you mean .*set'"):
        scan_folder(tmp_path, image_size=8)


def test_one_folder_too_low_is_told_the_right_one(folder):
    with pytest.raises(ValueError, match="did you mean .*set'"):
        scan_folder(folder / "ants", image_size=8)
    (folder / "plans").mkdir()  # a folder like any other, beside which no class folders lie
    with pytest.raises(ValueError) as refused:
        scan_folder(folder / "ants", image_size=8)
    assert "did you mean" not in str(refused.value)


def test_without_memory_the_cache_goes_to_disk_and_without_disk_nowhere(folder, monkeypatch):
    expected = scan_folder(folder, image_size=16).pixels
    monkeypatch.setattr(pictures, "MEMORY_SHARE", 0.0)
    on_disk = scan_folder(folder, image_size=16)
    assert on_disk.cache == "disk" and isinstance(on_disk.pixels, pictures.PictureFile)
    np.testing.assert_array_equal(on_disk.pixels[np.arange(8)], expected)
    monkeypatch.setattr(pictures, "DISK_SHARE", 0.0)
    nowhere = scan_folder(folder, image_size=16)
    assert nowhere.cache == "none" and nowhere.pixels is None and len(nowhere.pictures) == 8


def test_the_hash_of_appearance_does_not_depend_on_the_image_size(folder):
    picture(5, (900, 700)).save(folder / "ants" / "big.jpg")
    small, large = (scan_folder(folder, image_size=size).pictures for size in (16, 300))
    assert small == large
