"""Claims about published sets: their own splits are kept, what is missing is said."""

from __future__ import annotations

import functools
import hashlib
import http.server
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import save_picture
from test_data import digests, pixels

from tlkeras.loaders import split_pixels
from tlkeras.pictures import decode_picture
from tlkeras.splits import Split
from tlkeras.tfds import load_tfds


def test_a_tfds_folder_builder_gives_its_own_splits(insects, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    shutil.copytree(insects, tmp_path / "set" / "train")
    for number in range(4):
        for name in ("ants", "bees", "wasps"):
            save_picture(
                tmp_path / "set" / "test" / name / f"{number}.png", 5000 + number + 10 * len(name) + ord(name[0])
            )
    data = load_tfds(tfds.folder_dataset.ImageFolder(str(tmp_path / "set")), image_size=24, batch_size=8)
    assert data.counts["test"] == {"ants": 4, "bees": 4, "wasps": 4}
    assert data.counts["validation"] == {"ants": 4, "bees": 3, "wasps": 3}
    assert sum(data.counts["train"].values()) == 40
    decoded = [decode_picture(path, 24).astype("float32") for path in insects.rglob("*.png")]
    files = {hashlib.sha256(image.tobytes()).hexdigest() for image in decoded}
    assert set(digests(data.train)) | set(digests(data.validation)) == files
    assert not set(digests(data.train)) & set(digests(data.validation))


@functools.cache  # a name can be registered once
def tiny_class():
    tfds = pytest.importorskip("tensorflow_datasets")

    class Tiny(tfds.core.GeneratorBasedBuilder):
        """`examples`, pairs of picture and label, of two classes, and no split but train."""

        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = Path(__file__).parent

        def _info(self):
            label = tfds.features.ClassLabel(names=["cat", "dog"])
            features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(8, 8, 3)), "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number, (image, label) in enumerate(self.examples):
                yield number, {"image": image, "label": label}

    return Tiny


def tiny_builder(folder: Path, images: np.ndarray, labels):
    kind = tiny_class()
    kind.examples = list(zip(images, labels, strict=True))
    builder = kind(data_dir=folder)
    builder.download_and_prepare()
    return builder


def test_a_prepared_tfds_folder_is_read_in_place_and_cut_once(tmp_path):
    source = pixels(20)
    builder = tiny_builder(tmp_path, source, np.arange(20) % 2)
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


def test_examples_without_a_label_are_set_aside_and_sets_without_any_refused(tmp_path):
    builder = tiny_builder(tmp_path / "some", pixels(20), [-1] * 4 + [0, 1] * 8)
    data = load_tfds(builder, image_size=8)
    assert len(data.set_aside) == 4 and "its label is -1, which is none of the 2 classes" in data.set_aside[0].reason
    builder = tiny_builder(tmp_path / "none", pixels(4), [-1] * 4)
    with pytest.raises(ValueError, match="None of the 4 examples of 'tiny' can be used: its label is -1"):
        load_tfds(builder, image_size=8)
    with pytest.raises(ValueError, match="is no prepared set: it holds no dataset_info.json.*load_folder"):
        load_tfds(str(tmp_path / "none"), image_size=8)


@functools.cache
def served_class():
    """A set whose archive is downloaded from `address`, as the builders of the catalogue do it."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class Served(tiny_class()):
        """Two classes of PNG files in a zip archive."""

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(dl_manager.download_and_extract(self.address))}

        def _generate_examples(self, folder):
            for file in sorted(tfds.core.Path(folder).glob("*/*.png")):
                yield f"{file.parent.name} {file.name}", {"image": file, "label": file.parent.name}

    return Served


@pytest.fixture
def web_server(tmp_path):
    """The folder `web` behind an address of this machine; gives both, and a function that ends it."""
    (tmp_path / "web").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def end():
        server.shutdown()
        server.server_close()
        thread.join()

    yield tmp_path / "web", f"http://127.0.0.1:{server.server_port}", end
    if thread.is_alive():
        end()


def test_a_set_is_downloaded_by_name_once_and_read_from_disk_afterwards(tmp_path, web_server, monkeypatch):
    web, address, end = web_server
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for number in range(10):
        for shift, name in enumerate(("cat", "dog")):
            save_picture(tmp_path / "files" / name / f"{number}.png", 7000 + 2 * number + shift, size=(8, 8))
    shutil.make_archive(str(web / "pets"), "zip", tmp_path / "files")
    served_class().address = f"{address}/pets.zip"
    first = load_tfds("served", data_dir=tmp_path / "sets", image_size=8)
    assert first.counts == {"train": {"cat": 8, "dog": 8}, "validation": {"cat": 2, "dog": 2}}
    files = [decode_picture(file, 8).astype("float32") for file in (tmp_path / "files").rglob("*.png")]
    seen = set(digests(first.train)) | set(digests(first.validation))
    assert seen == {hashlib.sha256(image.tobytes()).hexdigest() for image in files}
    end()
    again = load_tfds("served", data_dir=tmp_path / "sets", image_size=8)
    assert digests(again.validation) == digests(first.validation)


def test_a_failing_download_says_soon_what_was_tried(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr("tlkeras.tfds.RETRIES", 0)
    with pytest.raises(ConnectionError, match=r"tf_flowers.*Max retries.*flower_photos.*looked for in.*data_dir="):
        load_tfds("tf_flowers", data_dir=tmp_path)


def test_an_unknown_tfds_name_is_answered_with_near_ones(monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(ValueError, match="no set 'tf_flower'; did you mean tf_flowers"):
        load_tfds("tf_flower")


def test_equal_pictures_on_both_sides_of_given_splits_are_named(caplog):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    digests = [str(number % 11) for number in range(12)]  # the last is the first
    sides = ["train"] * 8 + ["test"] * 4
    options = {"class_names": ("a", "b"), "seed": 0, "batch_size": 4}
    split_pixels(images, np.arange(12) % 2, digests, split=None, given=sides, **options)
    assert "LEAK" in caplog.text and "picture 0 = picture 11" in caplog.text


def test_without_tensorflow_datasets_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match="pip install tensorflow-datasets importlib_resources"):
        load_tfds("tf_flowers")
