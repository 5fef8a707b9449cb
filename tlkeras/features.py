"""Features: what a frozen backbone makes of pictures. CS231n calls them CNN codes.

A frozen network gives the same answer every epoch, so it runs once. Pictures come in one of the forms that `batches`
lists.
"""

from __future__ import annotations

import logging
import math
import sqlite3
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import keras
import numpy as np

from tlkeras.backbones import Backbone
from tlkeras.batches import count_batches, one_pass
from tlkeras.blueprints import Facts
from tlkeras.engines import load_engine, load_kept_engine, network_key
from tlkeras.freezing import trainable_layers, transfer_of
from tlkeras.heads import AUGMENTATION
from tlkeras.pipelines import check_pictures, without_autotuning
from tlkeras.store import FeatureStore, open_store, picture_key

log = logging.getLogger("tlkeras")

CACHE_LIMIT = 2_000_000_000  # bytes of features that training keeps in memory
POOLING = keras.layers.GlobalAveragePooling2D | keras.layers.GlobalMaxPooling2D | keras.layers.Flatten


def cut_point(model: keras.Model) -> str | None:
    """Get the name of the highest layer of a classifier below which nothing trains, or None if there is no such stage.

    With the whole backbone frozen that is the pooling of the head, or the last stage if the head has none. Else it is
    the last stage below the unfrozen layers.
    """
    transfer = transfer_of(model)
    opened = trainable_layers(model)
    if not opened:
        return _feature_layer(model)
    layers = transfer.backbone_layers
    below = [stage for stage in transfer.stages if layers.index(stage) < layers.index(opened[0])]
    return below[-1] if below else None


def feature_model(model: keras.Model, layer: str | None = None) -> keras.Model:
    """Get a classifier up to a layer: from raw pictures to, by default, the features that its head takes."""
    return keras.Model(model.inputs[0], model.get_layer(layer or _feature_layer(model)).output, name=model.name)


def _feature_layer(model: keras.Model) -> str:
    """The pooling that the head begins with; for another head the backbone's last stage."""
    transfer = transfer_of(model)
    first = transfer.head_layers[0]
    return first if isinstance(model.get_layer(first), POOLING) else transfer.stages[-1]


def top_model(model: keras.Model) -> keras.Model:
    """Get what lies above the cut point, up to the logits; the same layers, so what trains here trains there."""
    return keras.Model(model.get_layer(cut_point(model)).output, model.outputs[0])


def count_views(model: keras.Model, num_pictures: int, num_held_out: int = 0, *, views: int) -> int:
    """Get how many views to store features of: `views`, or 0 where they would not fit or the lowest stage trains.

    Those of the held-out pictures, once, have to find room beside them.
    """
    cut = cut_point(model)
    shape = (None,) if cut is None else model.get_layer(cut).output.shape[1:]
    if not views or None in shape:
        return 0
    return views if 4 * math.prod(shape) * (num_pictures * views + num_held_out) <= CACHE_LIMIT else 0


@dataclass(frozen=True)
class Features:
    """What a frozen network made of a data set.

    Attributes:
        stages: For each stage, first to last, float32 (pictures, channels), or (pictures, height, width, channels)
            where whole maps were asked for.
        labels: One a picture, in the same order.
        engine: What ran the network, with its precision, such as "openvino float32".
        computed: How many pictures went through the network; the others came from the store.
    """

    stages: dict[str, np.ndarray]
    labels: np.ndarray
    engine: str
    computed: int

    @property
    def last(self) -> np.ndarray:
        """Those of the last stage."""
        return list(self.stages.values())[-1]


def extract_features(
    source: Backbone | keras.Model,
    batches: Iterable,
    *,
    stages: str | Sequence[str] = "last",
    pooled: bool = True,
    engine: str = "auto",
    cache: bool = False,
) -> Features:
    """Run a frozen network once over a data set and keep what comes out at one or more depths.

    All stages cost one pass. On a processor OpenVINO runs it where it is installed, in float32.

    Args:
        source: From `load_backbone` or `build_classifier`; augmentation is left out.
        batches: (images, labels) batches, images (batch, height, width, 3) in [0, 255]; unshuffled, such as
            `data.ordered("train")`, where the order of the rows matters.
        stages: "last", "all", or the names of stages or of any layers, such as VGG16's "fc1".
        pooled: Whether feature maps are averaged over height and width; whole maps take much memory.
        engine: As in `load_engine`: "auto", "keras", "openvino" or "openvino-bfloat16" (faster; results move).
        cache: Whether pooled features are kept on disk, in the folder TLKERAS_CACHE or the user's cache. A picture is
            known by its pixels, so only new or changed ones are computed. Not for augmented pictures.

    Returns:
        A `Features`.

    Raises:
        ValueError: If a layer or the engine is unknown, `batches` is empty, without end or not something that can be
            gone through, its first batch is no pair or its pictures are not raw and in [0, 255], or whole maps shall
            be cached.

    Example:
    >>> import tlkeras as tl
    >>> data = tl.load_arrays(*tl.make_fractals(2, 8, image_size=32))
    >>> backbone = tl.load_backbone(weights="embedded", image_size=32)
    >>> features = tl.extract_features(backbone, data.train, stages="all", engine="keras")
    >>> [values.shape[1] for values in features.stages.values()]
    [8, 8, 16, 24, 32, 56, 1280]
    """
    if cache and not pooled:
        raise ValueError("Only pooled features are cached: whole maps would fill the disk. Leave out cache=True.")
    count_batches(batches)
    names = _layer_names(source, stages)
    runner, network, facts = _look_up(source, names, pooled, engine)
    batches = one_pass(without_autotuning(batches))
    first = next(batches, None)
    check_pictures(first, facts.input_shape)
    batches = chain([first], batches)
    runner = runner or load_engine(network, engine)
    key = (facts.key or network_key(network)) if cache else None
    store = open_store(key) if cache else None
    title = f"{facts.name}, {facts.input_shape[1]} px, {', '.join(names)}"
    if store:
        run = _StoredRun(runner, store, f"{key} {runner.name} {runner.precision}", title)
        table, labels = run(batches)
        values = np.split(table, np.cumsum(facts.widths)[:-1], axis=1)
        computed = run.computed
    else:
        values, labels = _run(runner, batches)
        computed = len(labels)
    log.info("features at %s: %d pictures, %d computed by %s in %s", ", ".join(names), len(labels), computed,
             runner.name, runner.precision)  # fmt: skip
    return Features(dict(zip(names, values, strict=True)), labels, f"{runner.name} {runner.precision}", computed)


def compute_features(
    model: keras.Model, batches: Iterable, *, views: int = 1, layer: str | None = None, engine: str = "auto"
) -> tuple[np.ndarray, np.ndarray]:
    """Run the frozen part of a classifier over a data set, once for each view, and keep what its head takes.

    Args:
        model: From `build_classifier`.
        batches: (images, labels) batches; images (batch, height, width, 3) in [0, 255].
        views: Passes. The first is without the model's augmentation, each further one with it.
        layer: Whose output; None is what the head's first layer with weights takes: pooled features, (batch,
            channels), for the default head.
        engine: As in `load_engine`.

    Returns:
        Features, float32, (views * pictures, ...), and labels in the same order.

    Raises:
        ValueError: If `batches` is empty, without end, or not something that can be gone through again.
    """
    count_batches(batches)
    batches = without_autotuning(batches)
    augmentation, runner = model.get_layer(AUGMENTATION), load_engine(feature_model(model, layer), engine)

    def augmented() -> Iterator:
        for images, labels in one_pass(batches):
            images = keras.ops.convert_to_tensor(images, "float32")
            yield keras.ops.convert_to_numpy(augmentation(images, training=True)), labels

    passes = [_run(runner, augmented() if view and augmentation.steps else batches) for view in range(views)]
    return np.concatenate([values[0] for values, _ in passes]), np.concatenate([labels for _, labels in passes])


def _run(runner, batches: Iterable) -> tuple[list[np.ndarray], np.ndarray]:
    """Every output of an engine over all batches, and the labels."""
    labels = []

    def images() -> Iterator[np.ndarray]:
        for pictures, truth in one_pass(batches):
            labels.append(keras.ops.convert_to_numpy(truth))
            yield keras.ops.convert_to_numpy(pictures)

    parts = list(runner.run(images()))
    return [np.concatenate(values) for values in zip(*parts, strict=True)], np.concatenate(labels)


class _StoredRun:
    """As `_run`, its outputs side by side; pictures that the store knows do not go through the network."""

    def __init__(self, runner, store: FeatureStore, key: str, title: str):
        self.runner, self.store, self.key, self.title, self.computed = runner, store, key, title, 0
        self.broken = False

    def __call__(self, batches: Iterable) -> tuple[np.ndarray, np.ndarray]:
        labels, rows, waiting = [], [], deque()

        def missing() -> Iterator[np.ndarray]:
            for pictures, truth in batches:
                pictures = keras.ops.convert_to_numpy(pictures)
                labels.append(keras.ops.convert_to_numpy(truth))
                keys = [picture_key(picture) for picture in pictures]
                found = self._ask(self.store.read, self.key, keys) or {}
                rows.append([found.get(key) for key in keys])
                places = [k for k, row in enumerate(rows[-1]) if row is None]
                if places:
                    waiting.append((rows[-1], places, keys))
                    yield pictures[places]

        for outputs in self.runner.run(missing()):
            batch, places, keys = waiting.popleft()
            for place, row in zip(places, np.concatenate(outputs, axis=1), strict=True):
                batch[place] = row
            self.computed += len(places)
            self._ask(self.store.write, self.key, self.title, {keys[place]: batch[place] for place in places})
        self._ask(self.store.make_room, self.key)
        return np.stack([row for batch in rows for row in batch]), np.concatenate(labels)

    def _ask(self, action, *arguments):
        """The store's answer; the first time that it fails, a warning, and from then on nothing."""
        if self.broken:
            return None
        try:
            return action(*arguments)
        except (sqlite3.Error, OSError) as error:
            self.broken = True
            log.warning("%s: %s; features are computed and not kept. `tlkeras cache --clear` makes it anew.",
                        self.store.path, error)  # fmt: skip
            return None


def _layer_names(source: Backbone | keras.Model, stages: str | Sequence[str]) -> list[str]:
    known = (source if isinstance(source, Backbone) else transfer_of(source)).stages
    choice = f"stages are 'last', 'all' or of {', '.join(known)}"
    if not isinstance(stages, Iterable):
        raise ValueError(f"{choice}; got {stages!r}.")
    names = {"last": [known[-1]], "all": list(known)}.get(stages, [stages]) if isinstance(stages, str) else list(stages)
    unknown = [name for name in names if name not in known]
    if unknown:  # a stage needs no look into the network, which may not be built
        layers = {layer.name for layer in getattr(source, "model", source).layers}
        unknown = [name for name in unknown if name not in layers]
    if unknown or not names:
        raise ValueError(f"There is no layer {unknown or names!r}; {choice}.")
    return names


def _look_up(source: Backbone | keras.Model, names: Sequence[str], pooled: bool, engine: str) -> tuple:
    """The engine, None and the facts, where the source is not built and its engine is kept; else None and a network."""
    blueprint = getattr(source, "blueprint", None)  # not built, so it has the weights of its file
    facts = blueprint and blueprint.recall(names, pooled)
    if runner := facts and load_kept_engine(facts.key, engine):
        return runner, None, facts
    network = _feature_network(source, names, pooled)
    key = network_key(network) if blueprint else ""  # where nobody asks for it, it is not worth its time
    facts = Facts(network.name, key, network.input_shape, tuple(output.shape[-1] for output in network.outputs))
    if blueprint:
        blueprint.note(names, pooled, facts)
    return None, network, facts


def _feature_network(source: Backbone | keras.Model, names: Sequence[str], pooled: bool) -> keras.Model:
    model = source.model if isinstance(source, Backbone) else source
    outputs = []
    for name in names:
        output = model.get_layer(name).output
        if pooled and len(output.shape) == 4:
            output = keras.layers.GlobalAveragePooling2D(name=f"{name}_pooled", dtype="float32")(output)
        outputs.append(output)
    return keras.Model(model.inputs[0], outputs, name=model.name)
