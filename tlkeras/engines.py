"""Engines: who runs a frozen network. Keras on any backend and device, or OpenVINO on the processor.

On a CPU, OpenVINO runs these nets one and a half to six times as fast as `model.predict`, in float32, with the same
numbers to a few millionths. In bfloat16, where the processor has it, it is twice as fast again, and results move: a
probe on chest X-rays once lost six points by it. So reduced precision is never chosen for you.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator
from importlib.util import find_spec

import keras
import numpy as np

from tlkeras.cache import cache_root, read_engine, save_engine
from tlkeras.conversion import convert, import_openvino

log = logging.getLogger("tlkeras")

MAX_LOADED = 4  # engines in memory, for the next call with the same network
# Pictures go through in slices whose largest maps fit the processor's cache: 1.4 times as fast as 32 at a time for the
# smallest nets at 224 px, and no slower for the others (`benchmarks/slices.py`).
SLICE_BYTES = 10_000_000
_LOADED: dict[tuple[str, str], OpenVINOEngine] = {}
ENGINES = ("auto", "keras", "openvino", "openvino-bfloat16")


class KerasEngine:
    """Runs a network by its Keras backend, on whatever device that uses."""

    def __init__(self, network: keras.Model):
        """Take the network; on TensorFlow it is traced once for all batch sizes."""
        self.name, self.precision = "keras", compute_precision(network)
        if keras.backend.backend() != "tensorflow" or len(getattr(network, "inputs", None) or ()) != 1:
            self._forward = network.predict_on_batch
            return
        import tensorflow as tf

        # `predict` costs twice as much a batch; a `tf.function` that is not concrete warns from the fifth network on.
        forward = tf.function(lambda images: network(images, training=False))
        self._forward = forward.get_concrete_function(tf.TensorSpec(network.input_shape, tf.float32))
        self._network = network  # a concrete function does not keep its variables alive

    def run(self, batches: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """Get the outputs for each batch of images (batch, height, width, channels), in order."""
        for images in batches:
            outputs = self._forward(np.asarray(images, "float32"))
            yield [np.asarray(keras.ops.convert_to_numpy(x), "float32") for x in keras.tree.flatten(outputs)]


class OpenVINOEngine:
    """Runs a network by OpenVINO on the processor; the compiled network is kept on disk for the next start."""

    def __init__(self, network: keras.Model | None, precision: str = "float32", key: str | None = None):
        """Convert and compile, or read what was compiled before; `key` is the network's, where it is known.

        Raises:
            LookupError: If there is no network and none is kept under the key.
        """
        self.name, self.precision = "openvino", precision
        core = import_openvino().Core()
        options = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
            "PERFORMANCE_HINT": "THROUGHPUT",
        }
        folder = cache_root()
        if folder:
            try:
                (folder / "engines").mkdir(parents=True, exist_ok=True)
                core.set_property({"CACHE_DIR": str(folder / "engines")})
            except OSError as error:
                log.warning("%s cannot be written (%s): the engine is compiled anew each time.", folder, error)
                folder = None
        key = key or network_key(network)
        stored = folder and key and folder / "engines" / f"{key}.xml"
        graph = read_engine(core, stored) if stored else None
        kept = graph is not None
        if not kept:
            if network is None:
                raise LookupError(f"no engine is kept under {key}")
            graph = convert(network)
            if stored:
                save_engine(graph, stored)
        self._slice = _slice_size(graph, {"float32": 4, "bfloat16": 2}[precision])
        self._compile = lambda dtype: core.compile_model(_taking(graph, dtype), "CPU", options)
        self._compiled = {}  # by the type of the images
        if not kept:  # what cannot be compiled shows now, while Keras can still take over
            self._compiled[np.float32] = self._compile(np.float32)

    def run(self, batches: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """Get the outputs for each batch of images (batch, height, width, channels), in order."""
        free, running, parts, dtype = None, deque(), [], None

        def finish() -> Iterator[list[np.ndarray]]:
            """Wait for the slice that began first; where it is the last of its batch, the batch."""
            request, _, last = running.popleft()
            request.wait()
            free.append(request)
            parts.append([np.array(tensor.data) for tensor in request.output_tensors])
            if last:
                yield [np.concatenate(output) for output in zip(*parts, strict=True)]
                parts.clear()

        for images in batches:
            if free is None:  # pictures of files stay whole numbers: a quarter of the memory to move
                dtype = np.uint8 if images.dtype == np.uint8 else np.float32
                if dtype not in self._compiled:
                    self._compiled[dtype] = self._compile(dtype)
                compiled = self._compiled[dtype]
                wanted = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
                # Twice as many as run at a time: the next ones lie ready while results are fetched.
                free = [compiled.create_infer_request() for _ in range(2 * wanted)]
            if dtype is np.uint8 and images.dtype != dtype:
                raise ValueError(f"Batches are of one type: the first held uint8, a later one {images.dtype}.")
            images = np.ascontiguousarray(images, dtype=dtype)
            # Slices of one size: OpenVINO prepares for each size anew, which cost a third of the time at 96 px.
            count = math.ceil(len(images) / self._slice) if self._slice else 1
            step = math.ceil(len(images) / max(count, 1)) or 1
            for start in range(0, len(images), step):
                if not free:
                    yield from finish()
                part = images[start : start + step]
                request = free.pop()
                request.start_async([part], share_inputs=True)
                running.append((request, part, start + step >= len(images)))  # a request needs its images alive
        while running:
            yield from finish()


def load_engine(network: keras.Model, engine: str = "auto") -> KerasEngine | OpenVINOEngine:
    """Get the fastest engine for a frozen network, or the one asked for.

    Args:
        network: From images (batch, height, width, channels) in [0, 255] to one or more outputs.
        engine: "keras"; "openvino" (CPU, float32); "openvino-bfloat16" (reduced precision: twice as fast where the
            processor has it, and results move); or "auto": OpenVINO in float32 where it is installed and there is no
            GPU, else Keras.

    Raises:
        ValueError: If the engine is unknown or cannot run this network.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(map(repr, ENGINES))}, got {engine!r}.")
    if engine == "keras" or (engine == "auto" and not _suits_openvino(network)):
        return KerasEngine(network)
    key = network_key(network)
    try:
        return _load_openvino(network, engine, key)
    except Exception as error:  # whatever goes wrong in there, Keras can take over
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        if engine != "auto":
            raise ValueError(f"OpenVINO cannot run this network ({reason}). Take engine='keras'.") from error
        log.warning("OpenVINO cannot run this network (%s); Keras runs it.", reason)
        return KerasEngine(network)


def load_kept_engine(key: str, engine: str = "auto") -> OpenVINOEngine | None:
    """Get the engine of a network of which only its key is known.

    Returns:
        What `load_engine` gives for that network; None where Keras is to run it or it is not kept on this machine.
    """
    if engine not in ("auto", "openvino", "openvino-bfloat16") or (engine == "auto" and not _has_openvino()):
        return None
    try:
        return _load_openvino(None, engine, key)
    except Exception as error:  # whatever it is, the network can be built
        log.debug("the engine %s cannot be used: %s", key, error)
        return None


def _load_openvino(network: keras.Model | None, engine: str, key: str | None) -> OpenVINOEngine:
    """The engine that is in memory, or one made of the network or read from disk, which then is if it has a key."""
    precision = "bfloat16" if engine.endswith("bfloat16") else "float32"
    if key is None:
        return OpenVINOEngine(network, precision)
    loaded = _LOADED.get((key, precision))
    if loaded is None:
        loaded = _LOADED[key, precision] = OpenVINOEngine(network, precision, key)
        if len(_LOADED) > MAX_LOADED:
            _LOADED.pop(next(iter(_LOADED)))
    return loaded


def network_key(network: keras.Model) -> str | None:
    """Get a text that is the same for two networks of the same layers and weights, and for no others.

    None where a layer's code is not Keras's or ours: it may change while its name and its weights stay.
    """
    try:
        graph = network.to_json()
    except Exception:  # a layer that cannot be written down, for whatever reason
        return None
    activations = [getattr(layer, "activation", None) for layer in network._flatten_layers()]
    if not _is_known(json.loads(graph)) or any(f is not None and not _is_ours(f.__module__) for f in activations):
        return None  # of a function called `relu` Keras writes the name alone
    # What may train does not change what comes out, and a seed only what training sees.
    graph = re.sub(r'"(trainable|seed)": [^,}]*', "", graph)
    digest = hashlib.blake2b(graph.encode(), digest_size=16)
    for weight in network.weights:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).tobytes())
    return digest.hexdigest()


def _is_known(part: object) -> bool:
    """Whether no part of a configuration is code of others: a function, a class of another package, a Lambda."""
    if isinstance(part, dict):
        known = "module" not in part or _is_ours(part["module"])
        coded = part.get("class_name") in ("function", "Lambda", "__lambda__")
        return known and not coded and all(map(_is_known, part.values()))
    return all(map(_is_known, part)) if isinstance(part, list) else True


def _is_ours(module: str | None) -> bool:
    """Whether code of this module stays as it is; None is what Keras writes of a notebook's and a script's own."""
    return module is not None and module.split(".")[0] in ("keras", "keras_hub", "tlkeras", "builtins")


def _suits_openvino(network: keras.Model) -> bool:
    return _has_openvino() and compute_precision(network) == "float32"


def _has_openvino() -> bool:
    if keras.backend.backend() != "tensorflow" or find_spec("openvino") is None:
        return False
    return all(device.startswith("cpu") for device in keras.distribution.list_devices())


def compute_precision(network: keras.Model) -> str:
    """Get the lowest precision that a layer with weights computes in, whatever the model's own policy says."""
    layers = network._flatten_layers(include_self=False)
    kinds = {layer.compute_dtype for layer in layers if layer.weights and not isinstance(layer, keras.Model)}
    return next((kind for kind in ("float16", "bfloat16") if kind in kinds), "float32")


def _slice_size(graph, width: int) -> int | None:
    """How many pictures of so many bytes a number go through at a time; None where the graph fixes how many."""
    shapes = [output.partial_shape for node in graph.get_ops() for output in node.outputs()]
    maps = [shape for shape in shapes if shape.rank.is_static and len(shape) == 4 and shape[0].is_dynamic]
    sizes = [math.prod(side.get_length() for side in shape[1:]) for shape in maps if shape[1:].is_static]
    return max(1, SLICE_BYTES // (width * max(sizes))) if sizes else None


def _taking(graph, dtype: type):
    """The graph for images of this type."""
    if dtype != np.uint8:
        return graph
    from openvino import Type
    from openvino.preprocess import PrePostProcessor

    graph = graph.clone()
    steps = PrePostProcessor(graph)
    steps.input().tensor().set_element_type(Type.u8)
    return steps.build()
