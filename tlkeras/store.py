"""A store of features on disk, so that no picture goes through the same network twice.

One SQLite file holds a row for each network and picture, written in transactions: a killed run leaves what was done,
and several processes may read and write at once. A picture is known by its pixels, so a changed one is computed
anew and the others are not.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import time
import zlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from tlkeras.cache import cache_root

log = logging.getLogger("tlkeras")

LIMIT = 4_000_000_000  # bytes of features; beyond it the network that was used longest ago goes


class FeatureStore:
    """Features by network and picture, in one file."""

    def __init__(self, folder: Path, limit: int = LIMIT):
        """Open the store, or make it; a file that is no database is set aside and said so.

        Args:
            folder: Where `features.sqlite` lies.
            limit: Bytes of features to keep.
        """
        self.path, self.limit = Path(folder) / "features.sqlite", limit
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise OSError(f"{self.path} cannot be used: {error}") from error
            aside = self.path.with_suffix(".damaged")
            log.warning("%s is damaged (%s): set aside as %s, features are computed anew.", self.path, error, aside)
            self._set_aside(aside)
            self._prepare()

    def _set_aside(self, aside: Path) -> None:
        self.path.replace(aside)
        for ending in ("-wal", "-shm"):  # they belong to the damaged file
            self.path.with_name(self.path.name + ending).unlink(missing_ok=True)

    def _connect(self) -> closing:
        return closing(sqlite3.connect(self.path, timeout=60, isolation_level=None))

    def _prepare(self) -> None:
        with self._connect() as database:
            write_ahead(database)
            database.execute(
                "CREATE TABLE IF NOT EXISTS features (network TEXT, picture BLOB, value BLOB, checksum INTEGER, "
                "PRIMARY KEY (network, picture)) WITHOUT ROWID"
            )
            database.execute("CREATE TABLE IF NOT EXISTS networks (network TEXT PRIMARY KEY, title TEXT, used REAL)")

    def read(self, network: str, pictures: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        """Get the stored float32 vectors of these pictures, those that are there and whole."""
        found, damaged = {}, []
        with self._connect() as database:
            for start in range(0, len(pictures), 500):
                part = pictures[start : start + 500]
                marks = ",".join("?" * len(part))
                query = f"SELECT picture, value, checksum FROM features WHERE network = ? AND picture IN ({marks})"
                for picture, value, checksum in database.execute(query, (network, *part)):
                    if zlib.crc32(value) == checksum:
                        found[picture] = np.frombuffer(value, np.float32)
                    else:
                        damaged.append((network, picture))
            if damaged:
                log.warning("%d stored features are damaged and are computed anew.", len(damaged))
                database.executemany("DELETE FROM features WHERE network = ? AND picture = ?", damaged)
        return found

    def write(self, network: str, title: str, vectors: dict[bytes, np.ndarray]) -> None:
        """Keep these vectors, all or none; `make_room` keeps to the limit."""
        rows = []
        for picture, vector in vectors.items():
            value = np.ascontiguousarray(vector, np.float32).tobytes()
            rows.append((network, picture, value, zlib.crc32(value)))
        with self._connect() as database:
            database.execute("BEGIN IMMEDIATE")
            database.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?)", rows)
            database.execute("INSERT OR REPLACE INTO networks VALUES (?, ?, ?)", (network, title, time.time()))
            database.execute("COMMIT")

    def make_room(self, keep: str) -> None:
        """Drop whole networks, the one used longest ago first, until the limit holds; never `keep`, in use now."""
        with self._connect() as database:
            database.execute("UPDATE networks SET used = ? WHERE network = ?", (time.time(), keep))
        entries = self.entries()
        size = sum(entry["bytes"] for entry in entries)
        for entry in sorted(entries, key=lambda entry: entry["used"]):
            if size <= self.limit:
                return
            if entry["network"] != keep:
                self.clear(entry["network"])
                size -= entry["bytes"]

    def entries(self) -> list[dict]:
        """What is stored: for each network its key, title, pictures, bytes and when it was last used (Unix time)."""
        query = (
            "SELECT n.network, n.title, n.used, COUNT(f.picture), COALESCE(SUM(LENGTH(f.value)), 0) "
            "FROM networks n LEFT JOIN features f USING (network) GROUP BY n.network ORDER BY n.used DESC"
        )
        with self._connect() as database:
            rows = database.execute(query).fetchall()
        return [
            {"network": network, "title": title, "used": used, "pictures": pictures, "bytes": size}
            for network, title, used, pictures, size in rows
        ]

    def clear(self, network: str | None = None) -> None:
        """Delete what is stored of one network, or everything, and give the space back."""
        if network is None:
            delete_store(self.path.parent)
            self._prepare()
            return
        with self._connect() as database:
            for table in ("features", "networks"):
                database.execute(f"DELETE FROM {table} WHERE network = ?", (network,))
            database.execute("VACUUM")


def open_store(key: str | None) -> FeatureStore | None:
    """Get the store for features of the network of this key; None, and a warning, where they cannot be kept."""
    folder = cache_root()
    if key is None:
        log.warning("features are not kept: a layer's code is neither Keras's nor ours, and may change.")
        return None
    try:
        return folder and FeatureStore(folder)
    except OSError as error:
        log.warning("features are not kept: %s", error)
        return None


def list_store(folder: Path) -> list[Path]:
    """Get the files of the store in this folder, and of one that was set aside as damaged, without opening it."""
    return sorted(Path(folder).glob("features.*"))


def delete_store(folder: Path) -> None:
    """Delete them."""
    for file in list_store(folder):
        file.unlink(missing_ok=True)


def picture_key(image: np.ndarray) -> bytes:
    """Get 16 bytes that name a picture (height, width, channels) by its pixels."""
    image = np.ascontiguousarray(image)
    return hashlib.blake2b(image, digest_size=16, person=str(image.dtype).encode()[:16]).digest()


def write_ahead(database: sqlite3.Connection, patience: float = 60.0) -> None:
    """Switch to write-ahead logging. SQLite does not wait for another process that opens the file at that moment."""
    end = time.monotonic() + patience
    while True:
        try:
            database.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.02)
