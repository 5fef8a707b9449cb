"""Blueprints: a backbone known by what it would be built from, so that it need not be built to use its features.

Keras takes most of a second to build even a small network and to fill it, as long as an engine takes for the features
of hundreds of pictures. An engine that was kept needs no network, only its key. So what was once made of a backbone as
it came from its file is noted on disk under what that backbone is: the file's content, the net, its width and size, and
everything that builds it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import keras

from tlkeras.cache import cache_root
from tlkeras.card import sha256
from tlkeras.version import __version__

log = logging.getLogger("tlkeras")

_BUILDING = threading.RLock()  # of all, since a lock of its own could not be copied with a backbone
BUILDERS = ("backbones.py", "weights.py", "features.py")  # whose change makes other networks of the same parts


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

    def __init__(self, build: Callable[[Path], keras.Model], file: Path, *parts: object):
        """Take the function that builds it of the file of its weights, and whatever else tells it from others."""
        self._build, self._file = build, file.resolve()
        self._content = sha256(self._file)
        sources = [Path(__file__).with_name(name) for name in BUILDERS]
        builders = [sha256(source) for source in sources if source.is_file()]  # not where compiled modules are alone
        versions = (__version__, keras.__version__, keras.config.image_data_format())
        known = repr((self._content, file.suffixes[-2:], *builders, *parts, *versions))
        self.key = hashlib.sha256(known.encode()).hexdigest()[:32]

    @staticmethod
    def can_wait() -> bool:
        """Whether a network built later, and elsewhere, is the one that would be built now."""
        policy = keras.config.dtype_policy()
        if keras.backend.backend() != "tensorflow" or type(policy) is not keras.DTypePolicy or policy.name != "float32":
            return False
        import tensorflow as tf

        return not tf.distribute.has_strategy()

    def build(self, into: dict) -> keras.Model:
        """Put the model into a dictionary, unless another thread was faster, and get it.

        Raises:
            ValueError: If the file is not what it was.
        """
        with _BUILDING:
            if "model" not in into:
                if not self._file.is_file() or sha256(self._file) != self._content:
                    raise ValueError(
                        f"{self._file} is gone, or has changed since the backbone was loaded: load it again."
                    )
                with _as_if_built_at_once():
                    into["model"] = self._build(self._file)
        return into["model"]

    def recall(self, stages: Sequence[str], pooled: bool) -> Facts | None:
        """Get the facts of the network up to these stages, or None where it was never made on this machine."""
        try:
            found = self._read()[_name(stages, pooled)]
            name, key, shape, widths = (found[part] for part in ("name", "key", "input_shape", "widths"))
            return Facts(str(name), key, (None, *map(int, shape[1:])), tuple(map(int, widths))) if key else None
        except (LookupError, TypeError, ValueError):  # not there, another version's, or damaged
            return None

    def note(self, stages: Sequence[str], pooled: bool, facts: Facts) -> None:
        """Keep the facts for the next process; without a cache, or where it cannot be written, nothing happens."""
        if self._notes is None:
            return
        draft = self._notes.with_suffix(f".{os.getpid()}")
        try:
            self._notes.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps({**self._read(), _name(stages, pooled): asdict(facts)}))
            os.replace(draft, self._notes)
        except OSError as error:
            log.debug("%s cannot be written: %s", self._notes, error)

    @property
    def _notes(self) -> Path | None:
        folder = cache_root()
        return folder and folder / "engines" / f"{self.key}.json"

    def _read(self) -> dict:
        try:
            noted = json.loads(self._notes.read_text()) if self._notes else {}
        except (OSError, ValueError, RecursionError):
            return {}
        return noted if isinstance(noted, dict) else {}


@contextlib.contextmanager
def _as_if_built_at_once() -> Iterator[None]:
    """Float32, outside of any graph that is being traced, and no random number that somebody else would have drawn."""
    import tensorflow as tf

    policy, state = keras.config.dtype_policy(), random.getstate()
    keras.config.set_dtype_policy("float32")
    try:
        with tf.init_scope():
            yield
    finally:
        random.setstate(state)
        keras.config.set_dtype_policy(policy)


def _name(stages: Sequence[str], pooled: bool) -> str:
    return f"{','.join(stages)}{'' if pooled else ' as maps'}"
