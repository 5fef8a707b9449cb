import multiprocessing
import sqlite3
import threading
from contextlib import closing

import numpy as np
import pytest

from tlkeras.store import FeatureStore, delete_store, picture_key, write_ahead


def vectors(start, stop):
    return {bytes([k // 256, k % 256]): np.full(5, k, np.float32) for k in range(start, stop)}


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path)


def test_what_was_written_is_read_back_and_the_rest_is_missing(store):
    store.write("a", "title", vectors(0, 1200))
    found = store.read("a", list(vectors(600, 1300)))
    assert set(found) == set(vectors(600, 1200))
    np.testing.assert_array_equal(found[bytes([3, 0])], np.full(5, 768))
    assert store.read("b", list(vectors(0, 10))) == {}


def test_a_damaged_row_is_found_by_its_checksum_and_forgotten(store, caplog):
    store.write("a", "title", vectors(0, 3))
    with sqlite3.connect(store.path) as database:
        database.execute("UPDATE features SET value = zeroblob(20) WHERE picture = ?", (bytes([0, 1]),))
    assert set(store.read("a", list(vectors(0, 3)))) == {bytes([0, 0]), bytes([0, 2])}
    assert "1 stored features are damaged" in caplog.text
    assert store.entries()[0]["pictures"] == 2


def test_a_file_that_is_no_database_is_set_aside(tmp_path, caplog):
    (tmp_path / "features.sqlite").write_bytes(b"not a database at all" * 100)
    store = FeatureStore(tmp_path)
    store.write("a", "title", vectors(0, 3))
    assert len(store.read("a", list(vectors(0, 3)))) == 3
    assert (tmp_path / "features.damaged").exists() and "is damaged" in caplog.text


def test_the_network_used_longest_ago_goes_first_when_the_limit_is_passed(store):
    for name in ("old", "middle", "new"):
        store.write(name, "title", vectors(0, 10))
    store.limit = 450  # 10 pictures of 5 numbers are 200 bytes
    store.make_room(keep="new")
    assert [entry["network"] for entry in store.entries()] == ["new", "middle"]
    store.limit = 0
    store.make_room(keep="middle")
    assert [entry["network"] for entry in store.entries()] == ["middle"]


def test_a_network_that_is_only_read_counts_as_used(store):
    for name in ("read", "other"):
        store.write(name, "title", vectors(0, 10))
    store.make_room(keep="read")
    store.write("new", "title", vectors(0, 10))
    store.limit = 450
    store.make_room(keep="new")
    assert {entry["network"] for entry in store.entries()} == {"new", "read"}


def test_clear_empties_one_network_or_all(store):
    store.write("a", "one", vectors(0, 3))
    store.write("b", "two", vectors(0, 4))
    store.clear("a")
    assert [(entry["title"], entry["pictures"], entry["bytes"]) for entry in store.entries()] == [("two", 4, 80)]
    store.clear()
    assert store.entries() == []


def write_many(folder, start, both):
    store = FeatureStore(folder)
    both.wait(300)
    for k in range(start, start + 200, 10):
        store.write("a", "title", vectors(k, k + 10))


def test_two_processes_at_once_do_no_harm(tmp_path):
    context = multiprocessing.get_context("spawn")
    both = context.Barrier(2)
    writers = [context.Process(target=write_many, args=(tmp_path, start, both)) for start in (0, 100)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    found = FeatureStore(tmp_path).read("a", list(vectors(0, 300)))
    assert len(found) == 300 and all(value[0] == key[0] * 256 + key[1] for key, value in found.items())


def test_write_ahead_waits_for_a_process_that_reads(tmp_path):
    other = sqlite3.connect(tmp_path / "file", isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE t (a)")
    other.execute("BEGIN")
    other.execute("SELECT * FROM t").fetchall()  # from here on the file is locked to a change of its mode
    with closing(sqlite3.connect(tmp_path / "file", timeout=0, isolation_level=None)) as database:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            write_ahead(database, patience=0.1)
        threading.Timer(0.3, other.close).start()
        write_ahead(database)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_picture_is_known_by_its_pixels_shape_and_type():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype("float32")
    changed = image.copy()
    changed[2, 3, 1] += 1
    keys = {picture_key(image), picture_key(changed), picture_key(image.astype("uint8")), picture_key(image.copy())}
    assert len(keys) == 3


def test_a_store_is_deleted_without_being_opened(tmp_path):
    for name in ("features.sqlite", "features.sqlite-wal", "features.damaged"):
        (tmp_path / name).write_bytes(b"no database")
    delete_store(tmp_path)
    assert list(tmp_path.iterdir()) == []
