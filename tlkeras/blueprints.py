"""Blueprints: a backbone known by what it would be built from, so that it need not be built to use its features.

Keras takes most of a second to build even a small network and to fill it, as long as an engine takes for the features
of hundreds of pictures. An engine that was kept needs no network, only its key. So what was once made of a backbone as
it came from its file is noted on disk under what that backbone is: the file's content, the net, its width and size, and
the versions of everything that builds it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import keras

from tlkeras.cache import cache_root
from tlkeras.version import __version__

log = logging.getLogger("tlkeras")


@dataclass(frozen=True)
class Facts:
    """What extraction has to know of a network that it does not see.

    Attributes:
        name: The network's.
        key: As `network_key` gives.
        input_shape: (None, height, width, channels).
        widths: Channels of each output.
    """

    name: str
    key: str
    input_shape: tuple[int | None, ...]
    widths: tuple[int, ...]


class Blueprint:
    """What a backbone would be built from, and the facts of networks that were made of it."""

    def __init__(self, build: Callable[[], keras.Model], file: Path, *parts: object):
        """Take the function that builds it, the file of its weights and whatever else tells it from others."""
        self._build, self._policy = build, keras.config.dtype_policy()
        digest = hashlib.blake2b(digest_size=16)
        for content in (file, Path(__file__).with_name("backbones.py")):
            with content.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        versions = (__version__, keras.__version__, self._policy.name, keras.config.image_data_format())
        digest.update(repr((*parts, *versions)).encode())
        self.key = digest.hexdigest()

    def build(self) -> keras.Model:
        """Build the model, with the precision that was set when the blueprint was made."""
        now = keras.config.dtype_policy()
        keras.config.set_dtype_policy(self._policy)
        try:
            return self._build()
        finally:
            keras.config.set_dtype_policy(now)

    def recall(self, stages: Sequence[str], pooled: bool) -> Facts | None:
        """Get the facts of the network up to these stages, or None where it was never made on this machine."""
        if self._policy.compute_dtype != "float32":  # which Keras runs, and whoever chooses an engine has to see
            return None
        found = self._read().get(_name(stages, pooled))
        try:
            return found and Facts(**{**found, "input_shape": tuple(found["input_shape"])})
        except (TypeError, KeyError):  # another version's, or damaged
            return None

    def note(self, stages: Sequence[str], pooled: bool, facts: Facts) -> None:
        """Keep the facts for the next process; without a cache, or where it cannot be written, nothing happens."""
        if self._file is None:
            return
        draft = self._file.with_suffix(f".{os.getpid()}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps({**self._read(), _name(stages, pooled): asdict(facts)}))
            os.replace(draft, self._file)
        except OSError as error:
            log.debug("%s cannot be written: %s", self._file, error)

    @property
    def _file(self) -> Path | None:
        folder = cache_root()
        return folder and folder / "engines" / f"{self.key}.json"

    def _read(self) -> dict:
        try:
            noted = json.loads(self._file.read_text()) if self._file else {}
        except (OSError, ValueError):
            return {}
        return noted if isinstance(noted, dict) else {}


def _name(stages: Sequence[str], pooled: bool) -> str:
    return f"{','.join(stages)}{'' if pooled else ' as maps'}"
