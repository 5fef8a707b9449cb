"""Claims about splits: disjoint, stratified, the same everywhere, and nothing that belongs together is divided."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tlkeras.scan import Picture, scan_folder
from tlkeras.splits import Manifest, Split, group_keys, read_manifest, split_files
from tlkeras.stratification import deal


def pictures(**counts: int) -> list[Picture]:
    return [
        Picture(f"{name}/{number:03}.jpg", name, None, f"{name}{number}")
        for name, count in counts.items()
        for number in range(count)
    ]


PLAIN = Split(near_duplicates=False)


def test_each_class_gets_its_share_to_the_picture():
    found = pictures(ants=50, bees=100, wasps=7)
    sides, *_ = split_files(found, Split(validation=0.2, test=0.1, near_duplicates=False))
    counts = Counter((item.class_name, side) for item, side in zip(found, sides, strict=True))
    assert counts["ants", "validation"] == 10 and counts["ants", "test"] == 5
    assert counts["bees", "validation"] == 20 and counts["bees", "test"] == 10
    assert counts["wasps", "validation"] == 1 and counts["wasps", "test"] == 1 and counts["wasps", "train"] == 5


def test_the_order_in_which_files_are_listed_does_not_matter():
    found = pictures(ants=30, bees=30)
    expected = dict(zip((item.path for item in found), split_files(found, PLAIN)[0], strict=True))
    random.Random(1).shuffle(found)
    assert dict(zip((item.path for item in found), split_files(found, PLAIN)[0], strict=True)) == expected


def test_another_seed_gives_another_split():
    found = pictures(ants=30, bees=30)
    assert split_files(found, PLAIN, seed=0)[0] != split_files(found, PLAIN, seed=1)[0]


def test_the_split_is_the_one_it_always_was():
    found = pictures(ants=10, bees=10)
    held = [item.path for item, side in zip(found, split_files(found, PLAIN)[0], strict=True) if side == "validation"]
    assert held == ["ants/004.jpg", "ants/007.jpg", "bees/005.jpg", "bees/009.jpg"]


def test_groups_are_never_divided():
    found = pictures(ants=60, bees=60)
    split = Split(test=0.2, groups=r"/(\d\d)", near_duplicates=False)
    sides, *_ = split_files(found, split)
    where = {}
    for item, side in zip(found, sides, strict=True):
        where.setdefault(item.path.split("/")[1][:2], set()).add(side)
    assert all(len(seen) == 1 for seen in where.values())
    assert set(sides) == {"train", "validation", "test"}
    assert Counter(sides)["validation"] == pytest.approx(24, abs=12)


def test_groups_may_be_a_function():
    keys = group_keys(["a/x1.jpg", "a/x2.jpg", "b/y1.jpg"], lambda path: path.split("/")[1][0])
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (r"person\d+", "parentheses"),
        (r"(person\d+)", "finds no key in 2 paths"),
        ([1], "expected 2, got 1"),
        (lambda path: "key" if path.startswith("a") else None, "groups finds no key in 1 paths, 'b/2.jpg' among them"),
    ],
)
def test_groups_that_fit_no_path_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        group_keys(["a/1.jpg", "b/2.jpg"], groups)


def test_a_class_of_one_picture_is_refused_by_name():
    with pytest.raises(ValueError, match="'wasps' cannot be on every side .*its 1 pictures form 1 pieces"):
        split_files(pictures(ants=10, wasps=1), PLAIN)


def test_a_class_of_one_group_is_refused_by_name():
    with pytest.raises(ValueError, match="'ants' cannot be on every side .*its 10 pictures form 1 pieces"):
        split_files(pictures(ants=10, bees=10), Split(groups=r"^(ants|bees/\d+)", near_duplicates=False))


def test_two_pictures_a_class_are_enough_for_two_sides():
    assert Counter(split_files(pictures(ants=2, bees=2), PLAIN)[0]) == {"train": 2, "validation": 2}


@pytest.mark.parametrize("shares", [{"validation": 0.0}, {"validation": 1.0}, {"test": 1.0}, {"test": -0.1}])
def test_shares_that_leave_a_side_empty_are_refused(shares):
    with pytest.raises(ValueError, match=f"{next(iter(shares))} must be a number in"):
        Split(**shares)
    with pytest.raises(ValueError, match="validation=0.2 and test=0.8 leave nothing to train on"):
        Split(test=0.8)


def test_equal_bytes_stay_on_one_side_and_are_reported():
    found = pictures(ants=20, bees=20)
    same = [item for item in found if item.path.endswith(("03.jpg", "07.jpg"))]
    found = [dataclasses.replace(item, sha256="same") if item in same else item for item in found]
    for seed in range(5):
        sides, duplicates, _ = split_files(found, PLAIN, seed=seed)
        assert len({side for item, side in zip(found, sides, strict=True) if item.sha256 == "same"}) == 1
        assert duplicates == (("ants/003.jpg", "ants/007.jpg", "bees/003.jpg", "bees/007.jpg"),)


def test_near_duplicates_in_a_folder_stay_on_one_side(tmp_path):
    for name in ("ants", "bees"):
        (tmp_path / name).mkdir()
        for number in range(6):
            generator = np.random.default_rng([number, ord(name[0])])
            small = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            image = Image.fromarray(small).resize((200, 160), Image.Resampling.BICUBIC)
            image.save(tmp_path / name / f"{number}.png")
            if number < 2:
                image.resize((100, 80)).save(tmp_path / name / f"{number} copy.jpg", quality=40)
    found = scan_folder(tmp_path, image_size=32).pictures
    for seed in range(5):
        sides, duplicates, _ = split_files(found, Split(validation=0.3), seed=seed)
        assert duplicates == tuple((f"{c}/{n} copy.jpg", f"{c}/{n}.png") for c in ("ants", "bees") for n in (0, 1))
        where = {item.path: side for item, side in zip(found, sides, strict=True)}
        assert all(where[one] == where[two] for one, two in duplicates)
    assert split_files(found, PLAIN)[1] == ()


def test_a_given_split_is_kept_and_its_leaks_are_named(caplog):
    found = [dataclasses.replace(item, split="train") for item in pictures(ants=5, bees=5)]
    found += [dataclasses.replace(item, path="val/" + item.path, split="validation") for item in found[:1]]
    with caplog.at_level(logging.WARNING, "tlkeras"):
        sides, duplicates, _ = split_files(found, PLAIN)
    assert sides == ["train"] * 10 + ["validation"]
    assert duplicates == (("ants/000.jpg", "val/ants/000.jpg"),)
    assert "LEAK" in caplog.text and "ants/000.jpg = val/ants/000.jpg" in caplog.text


def test_groups_over_given_sides_are_named(caplog):
    found = [dataclasses.replace(item, split="train") for item in pictures(ants=5, bees=5)]
    found += [dataclasses.replace(item, path="t" + item.path, split="test", sha256="t" + item.path) for item in found]
    with caplog.at_level(logging.WARNING, "tlkeras"):
        split_files(found, Split(groups=r"(\d+)", near_duplicates=False))
    assert "belong to one group" in caplog.text


def test_validation_is_cut_from_train_where_only_test_is_given():
    found = [dataclasses.replace(item, split="train") for item in pictures(ants=10, bees=10)]
    found += [dataclasses.replace(item, path="t" + item.path, split="test", sha256="t" + item.path) for item in found]
    sides, *_ = split_files(found, PLAIN)
    assert Counter(sides) == {"train": 16, "validation": 4, "test": 20}
    assert all(side == "test" for side in sides[20:])


def test_numbers_without_classes_are_dealt_by_share():
    sides = deal(None, np.arange(50), [str(n) for n in range(50)], split=Split(test=0.1))
    assert Counter(sides) == {"train": 35, "validation": 10, "test": 5}


def test_a_manifest_is_followed_and_strangers_are_left_out():
    found = pictures(ants=3)
    manifest = Manifest(tuple((i.path, "ants", s, i.sha256) for i, s in zip(found[:2], ("test", "train"), strict=True)))
    assert split_files(found, manifest)[0] == ["test", "train", ""]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("ants/gone.jpg", "ants", "train", "x"), "1 missing or unusable: ants/gone.jpg"),
        (("ants/000.jpg", "ants", "train", "x"), "1 with other content: ants/000.jpg"),
        (("ants/000.jpg", "bees", "train", "ants0"), "1 of another class: ants/000.jpg"),
    ],
)
def test_a_manifest_of_other_files_is_refused_by_name(row, message):
    with pytest.raises(ValueError, match=message):
        split_files(pictures(ants=2), Manifest((row,)))


def test_a_file_that_is_no_manifest_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("path,class\nx,y\n")
    with pytest.raises(ValueError, match="without .*split.*sha256"):
        read_manifest(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("path,class,split,sha256\nx,y,dev,0\n")
    with pytest.raises(ValueError, match="dev"):
        read_manifest(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_text("path,class,split,sha256\nx,y,train,0\nz,y,train,0\nx,y,validation,0\n")
    with pytest.raises(ValueError, match="lists 'x' twice"):
        read_manifest(tmp_path / "c.csv")
    (tmp_path / "d.csv").write_text("path,class,split,sha256\nx,y,train,0\n", encoding="utf-8-sig")
    assert read_manifest(tmp_path / "d.csv").rows == (("x", "y", "train", "0"),)


def test_a_broken_expression_for_groups_is_refused():
    with pytest.raises(ValueError, match="no regular expression"):
        group_keys(["a1"], "(person")


@pytest.mark.parametrize(
    ("labels", "pieces", "split"),
    [
        ([0, 1] * 20, np.repeat([0, 1], 20), Split()),  # two places
        ([0, 1] * 50, np.repeat(range(5), 20), Split(validation=0.1, test=0.1)),
        ([0, 1] * 30, np.repeat(range(3), 20), Split(test=0.2)),
        (([0] * 50 + [1] * 2) * 2 + [0] * 400, np.repeat(range(10), [52, 52] + 8 * [50]), Split()),
        ([0, 0, 0, 0] + 10 * [1], [0, 0, 1, 1, *range(2, 12)], Split()),  # two photographs, each saved twice
    ],
    ids=["two groups", "five groups", "three groups", "rare class in two of ten groups", "two pairs"],
)
def test_what_can_be_on_every_side_is(labels, pieces, split):
    labels, pieces = np.asarray(labels), np.asarray(pieces)
    for seed in range(20):
        sides = np.array(deal(labels, pieces, [str(n) for n in range(len(labels))], split=split, seed=seed))
        wanted = {"train", "validation"} | ({"test"} if split.test else set())
        assert all(set(sides[labels == label]) == wanted for label in (0, 1))
        assert all(len(set(sides[pieces == piece])) == 1 for piece in set(pieces.tolist()))


def test_a_class_of_one_piece_cannot_be_on_two_sides():
    with pytest.raises(ValueError, match="Class '0' cannot be on every side .* its 4 pictures form 1 pieces"):
        deal([0] * 4 + [1] * 9, np.array([0] * 4 + [*range(1, 10)]), [str(n) for n in range(13)], split=Split())


def test_leaks_of_a_manifest_are_named_and_look_alikes_belong_together(tmp_path, caplog):
    rng = np.random.default_rng(0)
    for name in ("ants", "bees"):
        (tmp_path / name).mkdir()
        for number in range(4):
            image = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize(
                (64, 64), Image.Resampling.BICUBIC
            )
            image.save(tmp_path / name / f"{number}.png")
            if number == 0:
                image.save(tmp_path / name / "near.jpg", quality=60)
    found = scan_folder(tmp_path, image_size=32).pictures
    dealt, _, expected = split_files(found, Split())
    sides = ["validation" if item.path.endswith(("near.jpg", "3.png")) else "train" for item in found]
    rows = [(item.path, item.class_name, side, item.sha256) for item, side in zip(found, sides, strict=True)]
    with caplog.at_level(logging.WARNING, "tlkeras"):
        _, duplicates, pieces = split_files(found, Manifest(tuple(rows)))
    assert "LEAK" in caplog.text and "ants/0.png = ants/near.jpg" in caplog.text
    assert duplicates == (("ants/0.png", "ants/near.jpg"), ("bees/0.png", "bees/near.jpg"))
    assert np.array_equal(pieces, expected)
    caplog.clear()
    rows = [(item.path, item.class_name, side, item.sha256) for item, side in zip(found, dealt, strict=True)]
    split_files(found, Manifest(tuple(rows[1:])))  # its own split, and a picture that it does not list
    assert "LEAK" not in caplog.text
