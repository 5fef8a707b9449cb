"""Where a backbone's weights come from: the Keras cache, a download, a file, or the package itself.

Never random weights in silence: what is not to be had is an error that says what was tried and what to do next.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import socket
import threading
import urllib.request
import uuid
import warnings
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import keras
import numpy as np

from tlkeras.card import checksum
from tlkeras.catalogue import Entry, find_entry

logger = logging.getLogger("tlkeras")

EMBEDDED_NAME, EMBEDDED_ALPHA = "MobileNetV2", 0.35
EMBEDDED_FILE = Path(__file__).parent / "embedded.npz"
_PROBE_SECONDS = 5  # a name server that never answers ignores socket timeouts, so the probe has its own clock
_ONE_AT_A_TIME = threading.Lock()  # the timeout is the whole process's
MOST_BYTES = 200  # in a file, for each weight of the net: it may be a tenth of what is saved, optimizer and all
_STALL_SECONDS = 30  # a download that says nothing for so long has failed


class WeightsNotFoundError(OSError):
    """Pretrained weights were asked for and are neither on this machine nor to be had from the network."""


def cache_folder() -> Path:
    """Get the folder that Keras keeps downloaded weights in; KERAS_HOME moves it."""
    return Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "models"


def weights_in_reach(name: str, alpha: float | None = None) -> Path | None:
    """Where the ImageNet weights lie on this machine, or None; asks no network.

    Args:
        name: one of `list_backbones()`.
        alpha: width multiplier, 1.0 by default.

    Raises:
        ValueError: no such net, or no ImageNet weights at this width.
    """
    entry, alpha = find_entry(name), 1.0 if alpha is None else alpha
    paths = [cache_folder() / _file_at(entry, alpha, size)[0] for size in sorted(entry.trained_sizes, reverse=True)]
    return next((path for path in paths if path.is_file()), None)


def choose_weights(entry: Entry, alpha: float | None, image_size: int) -> tuple[str, str, float | None]:
    """Get what "auto" means here and now: weights, name and alpha; a choice that surprises is logged in one line."""
    wanted = 1.0 if alpha is None else alpha
    file, url = _file_at(entry, wanted, image_size)
    if weights_in_reach(entry.name, wanted) or not _unreachable(url):
        logger.info("weights: ImageNet for %s (%s)", entry.name, file)
        try:
            path = _imagenet(entry, wanted, image_size)
            if _readable(entry, wanted, path):
                return "imagenet", entry.name, alpha
            logger.warning("weights: %s is damaged; delete it, and it will be fetched again", path)
        except WeightsNotFoundError as error:  # a damaged file, or a download that broke off
            logger.warning("weights: %s", " ".join(str(error).split()))
    missed = f"ImageNet weights for {entry.title(wanted)} are out of reach"
    others = [other for other in sorted(entry.widths, reverse=True) if other != wanted and _readable(entry, other)]
    if alpha is None and others:
        logger.warning("weights: %s; taking those at alpha %s, the widest in the cache", missed, others[0])
        return "imagenet", entry.name, others[0]
    logger.warning("weights: %s; taking the embedded %s, alpha %s", missed, EMBEDDED_NAME, EMBEDDED_ALPHA)
    return "embedded", EMBEDDED_NAME, EMBEDDED_ALPHA


def _readable(entry: Entry, alpha: float, path: Path | None = None) -> bool:
    path = path or weights_in_reach(entry.name, alpha)
    return path is not None and _count(path, entry.width(alpha).num_weights) is not None


def find_weights(
    entry: Entry, weights: str | os.PathLike, alpha: float | None, image_size: int
) -> tuple[Path, float, str]:
    """Get the file to load, the width that it is for and the label to remember; ImageNet's is downloaded if need be.

    Raises:
        ValueError: the embedded weights were asked for another net, or there are none at this width.
        WeightsNotFoundError: there is no such file, here or in the network.
    """
    if weights == "imagenet":
        alpha = 1.0 if alpha is None else alpha
        return _imagenet(entry, alpha, image_size), alpha, "imagenet"
    if weights == "embedded":
        if entry.name != EMBEDDED_NAME or alpha not in (None, EMBEDDED_ALPHA):
            raise ValueError(
                f"The embedded weights are for {EMBEDDED_NAME} at alpha {EMBEDDED_ALPHA}, not for {entry.name}"
                f"{'' if alpha is None else f' at alpha {alpha}'}: leave name and alpha out."
            )
        if not EMBEDDED_FILE.is_file():
            raise WeightsNotFoundError(f"The embedded weights are missing from this installation: {EMBEDDED_FILE}.")
        return EMBEDDED_FILE, EMBEDDED_ALPHA, "embedded"
    path = Path(weights).expanduser()
    if not path.is_file():
        raise WeightsNotFoundError(f'weights must be "imagenet", "embedded", "auto", None or a file; no file: {path}')
    if alpha is None:  # a file tells its width by the number of weights it holds
        held = _count(path, max(row.num_weights for row in entry.widths.values()))
        alpha = next((width for width, row in entry.widths.items() if row.num_weights == held), 1.0)
    return path, alpha, str(path)


def _file_at(entry: Entry, alpha: float, image_size: int) -> tuple[str, str]:
    """File and address of the weights trained at this image size, or at the native one where there are none."""
    width, trained = entry.width(alpha), image_size if image_size in entry.trained_sizes else entry.image_size
    return tuple(text.replace(f"_{entry.image_size}_", f"_{trained}_") for text in (width.file, width.url))


def _imagenet(entry: Entry, alpha: float, image_size: int) -> Path:
    file, url = _file_at(entry, alpha, image_size)
    path, width = cache_folder() / file, entry.width(alpha)
    known = width.hash if file == width.file else None  # it is that of the file for the native image size
    if path.is_file() and _is_published(path, known):
        return path
    reason = _unreachable(url)
    if reason is None:
        try:
            return _download(url, path, known)
        except Exception as error:  # get_file raises bare Exception
            reason = str(error)
    other = weights_in_reach(entry.name, alpha)
    if other and other != path:
        logger.warning("weights: %s is out of reach; taking %s, trained at another image size", file, other.name)
        return other
    damaged = path.is_file() and not _is_published(path, known)
    raise WeightsNotFoundError(
        f"No ImageNet weights for {entry.title(alpha)}.\n"
        f"  looked for: {path} (KERAS_HOME moves this cache)"
        f"{'; what lies there is damaged: its checksum is not the published one' if damaged else ''}\n"
        f"  tried:      {url} ({reason})\n"
        f"  next:       {'delete that one and ' if damaged else ''}put the file there, or take weights=PATH of a file, "
        f'or weights="embedded" ({EMBEDDED_NAME} at alpha {EMBEDDED_ALPHA}, carried by this package).'
    )


def _download(url: str, path: Path, known: str | None) -> Path:
    """Get a file under its name once it is whole: another process that asks for it must not find half of it."""
    places = {"cache_dir": str(path.parents[1]), "cache_subdir": "models"}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parents[1], os.W_OK):  # get_file takes a place of its own, and finds it there the next time
        with _patience(_STALL_SECONDS):
            return Path(keras.utils.get_file(path.name, url, file_hash=known, **places))
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with _patience(_STALL_SECONDS):
            keras.utils.get_file(draft.name, url, file_hash=known, **places)
        try:
            os.replace(draft, path)
        except OSError:  # Windows, and somebody who was faster reads it
            if not (path.is_file() and _is_published(path, known)):
                raise
        return path
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _is_published(path: Path, known: str | None) -> bool:
    """Whether a file's checksum is the known one; where none is known it has to be believed."""
    if known is None:
        return True
    status = path.stat()
    return _checksum(path, len(known), status.st_size, status.st_mtime_ns) == known


@lru_cache(maxsize=64)
def _checksum(path: Path, length: int, size: int, changed: int) -> str:
    """Checksum of a file; read once as long as size and time of change stay, as 100 MB take about 0.15 s."""
    return checksum(path, "sha256" if length == 64 else "md5")


def _unreachable(url: str) -> str | None:
    """Why an address does not answer within seconds, or None where it does."""
    answer = [f"no answer in {_PROBE_SECONDS} seconds"]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PROBE_SECONDS).close()
            answer[0] = ""
        except Exception as error:  # whatever it is, there is no file to be had
            answer[0] = str(error) or type(error).__name__

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return answer[0] or None


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """`get_file` has no timeout of its own and would wait for a silent server for ever. One thread after the other."""
    with _ONE_AT_A_TIME:
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(seconds)
        try:
            yield
        finally:
            socket.setdefaulttimeout(before)


def fill_weights(model: keras.Model, file: Path, entry: Entry, alpha: float) -> None:
    """Load a file into a net.

    Raises:
        ValueError: the file does not fit; said are the file, the net, what it holds and what was expected.
    """
    held = _count(file, expected := model.count_params())
    try:
        if held is None or held < expected:  # Keras fills what it can of some files and only warns about the rest
            raise ValueError("too few weights, far too many, or none that can be read")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            _read(model, file, entry, more=held > expected)
        if not all(np.isfinite(keras.ops.convert_to_numpy(variable)).all() for variable in model.weights):
            raise ValueError("some of them are NaN or infinite")
    except Exception as error:  # h5py, zipfile, numpy and Keras each have their own for a file that does not fit
        holds = "cannot be read as weights (.h5, .weights.h5, .keras or .npz)" if held is None else f"holds {held:,}"
        raise ValueError(
            f"{file} {holds}; expected {expected:,} weights, those of {entry.title(alpha)} without its top. "
            f"Check name and alpha; a damaged download has to be deleted and fetched again. "
            f"({' '.join(str(error).split())[:300]})"
        ) from None


def _read(model: keras.Model, file: Path, entry: Entry, *, more: bool) -> None:
    """Fill a net by a file, which may hold `more` weights than the net has."""
    if file.suffix == ".npz":
        _read_npz(model, file)
    elif entry.learns_normalization and more:
        build = getattr(keras.applications, entry.name)
        published = build(include_top=False, weights=None, input_shape=(*model.input_shape[1:3], 3))
        published.load_weights(file)  # the normalization's statistics among them
        for layer in model.layers:
            if layer.weights:
                layer.set_weights(published.get_layer(layer.name).get_weights())
    else:
        model.load_weights(file)


def _read_npz(model: keras.Model, file: Path) -> None:
    with np.load(file, allow_pickle=False) as arrays:
        values = [arrays[key].astype("float32") for key in sorted(arrays.files, key=_by_number)]
    shapes = [tuple(variable.shape) for variable in model.weights]
    if [value.shape for value in values] != shapes:
        unlike = sum(value.shape != shape for value, shape in zip(values, shapes, strict=False))
        raise ValueError(f"it holds {len(values)} arrays for {len(shapes)} variables, {unlike} of another shape")
    model.set_weights(values)


def _by_number(name: str) -> list:
    """A key that sorts the names of `np.savez(file, *arrays)`: arr_2 comes before arr_10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _count(file: Path, expected: int) -> int | None:
    """Number of weights that a file holds, or None where it cannot be read or claims far more than are `expected`."""
    import h5py

    counted = 0

    def add(name: str, item: object) -> None:
        nonlocal counted
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer"):
            counted += int(np.prod(item.shape))

    try:
        if zipfile.is_zipfile(file):  # a small file may unpack to any size
            with zipfile.ZipFile(file) as archive:
                if sum(part.file_size for part in archive.infolist()) > MOST_BYTES * expected + 10**6:
                    return None
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                return sum(arrays[key].size for key in arrays.files)
        if file.suffix == ".keras":
            with zipfile.ZipFile(file) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as group:
                group.visititems(add)
        else:
            with h5py.File(file) as group:
                group.visititems(add)
    except Exception:  # damage has many names: EOFError, zlib.error, RuntimeError of h5py, TokenError of numpy's header
        return None
    return counted if 4 * counted <= MOST_BYTES * expected else None
