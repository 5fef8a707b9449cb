"""The catalogue of backbones and the one way to load them.

A backbone takes raw RGB pictures in [0, 255]; the preprocessing that its weights were trained with lies inside it, so
it cannot be forgotten or applied twice. The catalogue itself is data: ``catalogue.json``, beside this module.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import logging
import os
import re
import socket
import threading
import urllib.request
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

logger = logging.getLogger("tlkeras")

EMBEDDED_NAME, EMBEDDED_ALPHA = "MobileNetV2", 0.35
EMBEDDED_FILE = Path(__file__).parent / "weights" / "embedded.npz"
_PROBE_SECONDS = 5  # a name server that never answers ignores socket timeouts, so the probe has its own clock
_STALL_SECONDS = 30  # a download that says nothing for so long has failed

# Each is one Rescaling(scale, offset) of the channels; "caffe" turns RGB to BGR before. Equal to Keras's own
# `preprocess_input`, and unlike it saved with the model.
_MEAN, _DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
_RESCALING = {
    "tf": (1 / 127.5, -1.0),
    "torch": ((1 / (255 * _DEVIATION)).tolist(), (-_MEAN / _DEVIATION).tolist()),
    "caffe": (1.0, [-103.939, -116.779, -123.68]),
}
_SELF_TAUGHT = re.compile(r"EfficientNetB\d")  # their normalization's statistics are weights: `_fix_normalization`


class WeightsNotFoundError(OSError):
    """Pretrained weights were asked for and are neither on this machine nor to be had from the network."""


@dataclass(frozen=True)
class Width:
    """One width of a net: how many weights it has (without top) and the ImageNet file that fills them."""

    num_weights: int
    file: str
    url: str
    hash: str | None


@dataclass(frozen=True)
class Entry:
    """A row of the catalogue: what has to be known about a net before it is built.

    Attributes:
        name: its name in ``keras.applications``.
        preprocessing: "tf" (x / 127.5 - 1), "torch" (mean and deviation), "caffe" (BGR minus mean) or "none" (inside).
        image_size: height and width in pixels that the ImageNet weights were trained at.
        min_size: the smallest height and width in pixels that the net accepts.
        top1: published ImageNet top-1 accuracy in percent at width 1, or None where none is published.
        batch_norm: whether the net has batch-norm layers.
        stages: layer names, first to last; each layer's output cuts the graph in two.
        trained_sizes: image sizes for which separate weights are published; only the MobileNets have several.
        widths: per width multiplier, the weights and their file; most nets have the one width 1.0.
    """

    name: str
    preprocessing: str
    image_size: int
    min_size: int
    top1: float | None
    batch_norm: bool
    stages: tuple[str, ...]
    trained_sizes: tuple[int, ...]
    widths: dict[float, Width]

    @property
    def num_weights(self) -> int:
        """Number of weights at width 1, without top."""
        return self.widths[1.0].num_weights

    @property
    def alphas(self) -> tuple[float, ...]:
        """The widths with ImageNet weights, or nothing where the net has no width to choose."""
        return tuple(self.widths) if len(self.widths) > 1 else ()

    @classmethod
    def from_json(cls, name: str, row: dict) -> Entry:
        """Read one row of ``catalogue.json``."""
        widths = {float(alpha): Width(**width) for alpha, width in row["widths"].items()}
        lists = {key: tuple(row[key]) for key in ("stages", "trained_sizes")}
        return cls(name=name, **{**row, **lists, "widths": widths})


def _read_catalogue() -> dict[str, Entry]:
    rows = json.loads(Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8"))["nets"]
    return {name: Entry.from_json(name, row) for name, row in rows.items()}


CATALOGUE = _read_catalogue()


@dataclass(frozen=True)
class Backbone:
    """A net without its top, preprocessing inside, and the names of its stages.

    Attributes:
        name: its name in the catalogue.
        model: flat functional model, raw RGB in [0, 255] (batch, height, width, 3) to features (batch, h, w, c).
        weights: "imagenet", "embedded", "random" or the path of the file that filled it.
        image_size: height and width of the input in pixels.
        stages: layer names, first to last; the last one is the output.
        num_features: channels of the output.
        alpha: width multiplier, or None where the net has none.
    """

    name: str
    model: keras.Model
    weights: str
    image_size: int
    stages: tuple[str, ...]
    num_features: int
    alpha: float | None = None


def list_backbones() -> list[str]:
    """Names of all backbones that `load_backbone` knows; `CATALOGUE[name]` tells more about one.

    Example:
    >>> "MobileNetV2" in list_backbones()
    True
    """
    return list(CATALOGUE)


def load_backbone(
    name: str = "MobileNetV2",
    *,
    weights: str | os.PathLike | None = "imagenet",
    image_size: int | None = None,
    alpha: float | None = None,
    channels: int = 3,
) -> Backbone:
    """A pretrained net without its top that takes raw pictures in [0, 255].

    Use it wherever a picture has to become features. Do not call `preprocess_input` on what goes in: a net that is fed
    twice-scaled pictures trains without complaint and is wrong.

    Args:
        name: one of `list_backbones()`.
        weights: "imagenet" (from the Keras cache, else downloaded into it; KERAS_HOME says where it is), "embedded"
            (carried by this package: MobileNetV2 at alpha 0.35, best at about 96 pixels), "auto" (ImageNet where in
            reach, else another width in the cache, else embedded whatever the name: one logged line says so), a file
            (.h5, .weights.h5, .keras, .npz), or None: random.
        image_size: height and width in pixels; by default the size that the net was trained at.
        alpha: width multiplier of the MobileNets; by default the width of the weights (1.0 for "imagenet").
        channels: 3 for RGB; 1 for grey pictures (batch, height, width, 1), repeated over three channels.

    Returns:
        The backbone; its weights are trainable until you freeze them.

    Raises:
        ValueError: the name, the size, the width or the channels do not exist, or the file does not fit the net.
        WeightsNotFoundError: the weights are neither on this machine nor to be had from the network.

    Example:
    >>> backbone = load_backbone("MobileNetV2", weights=None, image_size=96, alpha=0.35)
    >>> backbone.model.output_shape
    (None, 3, 3, 1280)
    """
    entry = _entry(name)
    if channels not in (1, 3):
        raise ValueError(f"channels must be 3 (RGB) or 1 (grey), not {channels!r}.")
    if image_size is not None and image_size < entry.min_size:
        raise ValueError(f"{name} takes pictures of at least {entry.min_size} pixels, not image_size={image_size}.")
    if alpha is not None and not alpha > 0:
        raise ValueError(f"alpha is a width multiplier above 0, such as 0.35 or 1.0; received {alpha!r}.")
    if alpha is not None and not entry.alphas:
        with_width = ", ".join(other for other, row in CATALOGUE.items() if row.alphas)
        raise ValueError(f"{name} has no width to choose: leave alpha out, or take one of {with_width}.")
    size = image_size or entry.image_size
    if weights == "auto":
        weights, name, alpha = _choose(entry, alpha, size)
        entry = CATALOGUE[name]
    file, label = None, "random"
    if weights is not None:
        file, alpha, label = _find(entry, weights, alpha, size)
    alpha = 1.0 if alpha is None else alpha
    model = _build(entry, size, alpha, channels)
    if file:
        _fill(model, file, entry, alpha)
    return Backbone(
        name=name,
        model=model,
        weights=label,
        image_size=size,
        stages=entry.stages,
        num_features=model.output_shape[-1],
        alpha=alpha if entry.alphas else None,
    )


def stage_model(backbone: Backbone, stages: str | Sequence[str] = "all") -> keras.Model:
    """A model with one feature map per stage as output, in the order asked for.

    Use it to see what a net knows at every depth. It shares its weights with the backbone.

    Args:
        backbone: from `load_backbone`.
        stages: "all", or names out of `backbone.stages`.

    Returns:
        A model from pictures (batch, height, width, 3) in [0, 255] to a list of (batch, h, w, c).

    Raises:
        ValueError: a name is not a stage of this backbone, or there is none.
    """
    names = list(backbone.stages) if stages == "all" else [stages] if isinstance(stages, str) else list(stages)
    unknown = [stage for stage in names if stage not in backbone.stages]
    if unknown or not names:
        raise ValueError(f"{backbone.name} has the stages {', '.join(backbone.stages)}; received {unknown or 'none'}.")
    return keras.Model(backbone.model.input, [backbone.model.get_layer(stage).output for stage in names])


def weights_in_reach(name: str, alpha: float | None = None) -> Path | None:
    """Where the ImageNet weights lie on this machine, or None; asks no network.

    Args:
        name: one of `list_backbones()`.
        alpha: width multiplier, 1.0 by default.

    Raises:
        ValueError: no such net, or no ImageNet weights at this width.
    """
    entry = _entry(name)
    width = _width(entry, 1.0 if alpha is None else alpha)
    paths = [_cached(_file_at(entry, width, size)[0]) for size in sorted(entry.trained_sizes, reverse=True)]
    return next((path for path in paths if path.is_file()), None)


# --- which file ------------------------------------------------------------------------------------------------------


def _entry(name: str) -> Entry:
    if name not in CATALOGUE:
        lower = {known.lower(): known for known in CATALOGUE}
        near = [lower[match] for match in difflib.get_close_matches(str(name).lower(), lower, n=3, cutoff=0.5)]
        hint = f"did you mean {' or '.join(near)}?" if near else "list_backbones() names them all."
        raise ValueError(f"There is no backbone {name!r}: {hint}")
    return CATALOGUE[name]


def _width(entry: Entry, alpha: float) -> Width:
    if alpha not in entry.widths:
        known = ", ".join(map(str, entry.widths))
        raise ValueError(f"{entry.name} has ImageNet weights at alpha {known}, not {alpha!r}.")
    return entry.widths[alpha]


def _at(entry: Entry, alpha: float) -> str:
    return f" at alpha {alpha}" if entry.alphas else ""


def _cached(file: str) -> Path:
    return Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "models" / file


def _file_at(entry: Entry, width: Width, size: int) -> tuple[str, str]:
    """File and address of the weights trained at this image size, or at the native one where there are none."""
    trained = size if size in entry.trained_sizes else entry.image_size
    return tuple(text.replace(f"_{entry.image_size}_", f"_{trained}_") for text in (width.file, width.url))


def _choose(entry: Entry, alpha: float | None, size: int) -> tuple[str, str, float | None]:
    """What "auto" means here and now: weights, name and alpha; every choice that surprises is logged in one line."""
    wanted = 1.0 if alpha is None else alpha
    file, url = _file_at(entry, _width(entry, wanted), size)
    if weights_in_reach(entry.name, wanted) or not _unreachable(url):
        logger.info("weights: ImageNet for %s (%s)", entry.name, file)
        return "imagenet", entry.name, alpha
    missed = f"ImageNet weights for {entry.name}{_at(entry, wanted)} are out of reach"
    others = [other for other in sorted(entry.widths, reverse=True) if weights_in_reach(entry.name, other)]
    if alpha is None and others:
        logger.warning("weights: %s; taking those at alpha %s, the widest in the cache", missed, others[0])
        return "imagenet", entry.name, others[0]
    logger.warning("weights: %s; taking the embedded %s, alpha %s", missed, EMBEDDED_NAME, EMBEDDED_ALPHA)
    return "embedded", EMBEDDED_NAME, EMBEDDED_ALPHA


def _find(entry: Entry, weights: str | os.PathLike, alpha: float | None, size: int) -> tuple[Path, float, str]:
    """The file to load, the width it is for and the label to remember."""
    if weights == "imagenet":
        alpha = 1.0 if alpha is None else alpha
        return _imagenet(entry, alpha, size), alpha, "imagenet"
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
        held = _count(path)
        alpha = next((width for width, row in entry.widths.items() if row.num_weights == held), 1.0)
    return path, alpha, str(path)


def _imagenet(entry: Entry, alpha: float, size: int) -> Path:
    width = _width(entry, alpha)
    file, url = _file_at(entry, width, size)
    path = _cached(file)
    if path.is_file():
        return path
    reason = _unreachable(url)
    if reason is None:
        try:
            with _patience(_STALL_SECONDS):
                return Path(
                    keras.utils.get_file(
                        file, url, cache_subdir="models", cache_dir=str(path.parents[1]), file_hash=width.hash
                    )
                )
        except Exception as error:  # get_file raises bare Exception
            reason = str(error)
    other = weights_in_reach(entry.name, alpha)
    if other:
        logger.warning("weights: %s is out of reach; taking %s, trained at another image size", file, other.name)
        return other
    raise WeightsNotFoundError(
        f"No ImageNet weights for {entry.name}{_at(entry, alpha)}.\n"
        f"  looked for: {path} (KERAS_HOME moves this cache)\n"
        f"  tried:      {url} ({reason})\n"
        f'  next:       put the file there, or take weights=PATH of a file, or weights="embedded" '
        f"({EMBEDDED_NAME} at alpha {EMBEDDED_ALPHA}, carried by this package)."
    )


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
    """`get_file` has no timeout of its own and would wait for a silent server for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


# --- build and fill --------------------------------------------------------------------------------------------------


def _build(entry: Entry, size: int, alpha: float, channels: int = 3) -> keras.Model:
    """The net with random weights, its preprocessing in front, under names that no global counter can change."""
    image = keras.Input((size, size, channels), name="image")
    x = keras.layers.Identity(name="augmentation")(image)  # the place that `build_classifier` fills
    x = keras.layers.Concatenate(name="preprocess_widen")([x] * 3) if channels == 1 else x
    if entry.preprocessing == "caffe":
        x = keras.ops.flip(x, axis=-1)  # RGB to BGR
    if entry.preprocessing != "none":
        scale, offset = _RESCALING[entry.preprocessing]
        x = keras.layers.Rescaling(scale, offset, name="preprocess_rescaling")(x)
    width = {"alpha": alpha} if entry.alphas else {}
    net = getattr(keras.applications, entry.name)(
        include_top=False, weights=None, input_tensor=x, input_shape=(size, size, 3), **width
    )
    if _SELF_TAUGHT.fullmatch(entry.name):
        net = keras.models.clone_model(net, clone_function=_fix_normalization)
    _name_for_good(net, entry.name.lower())
    return keras.Model(net.input[0] if isinstance(net.input, list) else net.input, net.output, name=entry.name.lower())


def _fix_normalization(layer: keras.Layer) -> keras.Layer:
    """Give EfficientNet's normalization its ImageNet statistics as constants.

    Keras keeps them as weights that a layer reads only when it is loaded from a file: a clone filled by `set_weights`
    would silently run without. And its files hold the deviation for the variance, which Keras mends by one more layer
    under weights="imagenet" only: a file loaded by its path would see pictures of half the contrast.
    """
    if isinstance(layer, keras.layers.Normalization):
        return keras.layers.Normalization(mean=_MEAN.tolist(), variance=(_DEVIATION**2).tolist(), name=layer.name)
    return type(layer).from_config(layer.get_config())


def _name_for_good(net: keras.Model, prefix: str) -> None:
    """Rename "add_3" and its like: Keras counts them over the process, so a second net would have other names."""
    counts: dict[str, int] = {}
    for operation in net.operations:
        kind = re.sub(r"_\d+$", "", operation.name)
        if kind.replace("_", "") == type(operation).__name__.lower():
            counts[kind] = counts.get(kind, 0) + 1
            operation.name = f"{prefix}_{kind}_{counts[kind]}"


def _fill(model: keras.Model, file: Path, entry: Entry, alpha: float) -> None:
    """Load a file into the net, or say which file, which net and what was expected."""
    held, expected = _count(file), model.count_params()
    try:
        if held is None or held < expected:  # Keras fills what it can of some files and only warns about the rest
            raise ValueError("too few weights, or none that can be read")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            _read(model, file, entry)
    except Exception as error:  # h5py, zipfile, numpy and Keras each have their own for a file that does not fit
        holds = "cannot be read as weights (.h5, .weights.h5, .keras or .npz)" if held is None else f"holds {held:,}"
        raise ValueError(
            f"{file} {holds}; expected {expected:,} weights, those of {entry.name}{_at(entry, alpha)} without its "
            f"top. Check name and alpha; a damaged download has to be deleted and fetched again. "
            f"({' '.join(str(error).split())[:300]})"
        ) from None


def _read(model: keras.Model, file: Path, entry: Entry) -> None:
    if file.suffix == ".npz":
        _read_npz(model, file)
    elif _SELF_TAUGHT.fullmatch(entry.name) and file.suffix == ".h5" and not file.name.endswith(".weights.h5"):
        build = getattr(keras.applications, entry.name)
        published = build(include_top=False, weights=None, input_shape=(*model.input_shape[1:3], 3))
        published.load_weights(file)  # by order, the normalization's statistics among them
        for layer in model.layers:
            if layer.weights:
                layer.set_weights(published.get_layer(layer.name).get_weights())
    else:
        model.load_weights(file)


def _read_npz(model: keras.Model, file: Path) -> None:
    with np.load(file, allow_pickle=False) as arrays:
        values = [arrays[key].astype("float32") for key in sorted(arrays.files)]
    shapes = [tuple(variable.shape) for variable in model.weights]
    if [value.shape for value in values] != shapes:
        unlike = sum(value.shape != shape for value, shape in zip(values, shapes, strict=False))
        raise ValueError(f"it holds {len(values)} arrays for {len(shapes)} variables, {unlike} of another shape")
    model.set_weights(values)


def _count(file: Path) -> int | None:
    """Number of weights that a file holds, or None where it cannot be read."""
    import h5py

    counted = 0

    def add(name: str, item: object) -> None:
        nonlocal counted
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer"):
            counted += int(np.prod(item.shape))

    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                return sum(arrays[key].size for key in arrays.files)
        if file.suffix == ".keras":
            with zipfile.ZipFile(file) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as group:
                group.visititems(add)
        else:
            with h5py.File(file) as group:
                group.visititems(add)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return counted
