"""Engines: who runs a frozen network. Keras on any backend and device, or OpenVINO on the processor.

On a CPU, OpenVINO runs these nets one and a half to six times as fast as `model.predict`, in float32, with the same
numbers to a few millionths. In bfloat16, where the processor has it, it is twice as fast again, and results move: a
probe on chest X-rays once lost six points by it. So reduced precision is never chosen for you.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np

log = logging.getLogger("tlkeras")

MAX_FILES = 60  # an engine is a graph, its weights and what the processor's compiler made of them
ENGINES = ("auto", "keras", "openvino", "openvino-bfloat16")


def cache_root() -> Path | None:
    """Get the folder of compiled engines and stored features: TLKERAS_CACHE or the user's; None where that is "off"."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("TLKERAS_CACHE")
    if chosen == "off":
        return None
    return Path(chosen) if chosen else user_cache_path("tlkeras")


class KerasEngine:
    """Runs a network by its Keras backend, on whatever device that uses."""

    def __init__(self, network: keras.Model):
        """Take the network; on TensorFlow it is traced once for all batch sizes."""
        self.name, self.precision = "keras", network.compute_dtype
        if keras.backend.backend() != "tensorflow" or len(getattr(network, "inputs", None) or ()) != 1:
            self._forward = network.predict_on_batch
            return
        import tensorflow as tf

        signature = [tf.TensorSpec(network.input_shape, tf.float32)]  # `predict` costs twice as much a batch
        self._forward = tf.function(lambda images: network(images, training=False), signature)

    def run(self, batches: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """Get the outputs for each batch of images (batch, height, width, channels), in order."""
        for images in batches:
            outputs = self._forward(np.asarray(images, "float32"))
            yield [np.asarray(keras.ops.convert_to_numpy(x), "float32") for x in keras.tree.flatten(outputs)]


class OpenVINOEngine:
    """Runs a network by OpenVINO on the processor; the compiled network is kept on disk for the next start."""

    def __init__(self, network: keras.Model, precision: str = "float32"):
        """Convert and compile, or read what was compiled before."""
        import openvino

        self.name, self.precision = "openvino", precision
        core = openvino.Core()
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
        stored = folder and folder / "engines" / f"{network_key(network)}.xml"
        if stored and stored.exists() and stored.with_suffix(".bin").exists():
            graph = core.read_model(stored)
        else:
            graph = _convert(network)
            if stored:
                _make_room()
                _save(graph, stored)
        self._compiled = core.compile_model(graph, "CPU", options)
        self._num_requests = self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")

    def run(self, batches: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """Get the outputs for each batch of images (batch, height, width, channels), in order."""
        free = [self._compiled.create_infer_request() for _ in range(self._num_requests)]
        running: deque = deque()

        def finish() -> list[np.ndarray]:
            request, _ = running.popleft()
            request.wait()
            free.append(request)
            return [np.array(tensor.data) for tensor in request.output_tensors]

        for images in batches:
            if not free:
                yield finish()
            images = np.ascontiguousarray(images, dtype=np.float32)
            request = free.pop()
            request.start_async([images], share_inputs=True)
            running.append((request, images))  # the images must live as long as the request
        while running:
            yield finish()


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
    try:
        return OpenVINOEngine(network, "bfloat16" if engine.endswith("bfloat16") else "float32")
    except (ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        if engine != "auto":
            raise ValueError(f"OpenVINO cannot run this network ({reason}). Take engine='keras'.") from error
        log.warning("OpenVINO cannot run this network (%s); Keras runs it.", reason)
        return KerasEngine(network)


def list_engines() -> list[Path]:
    """Get the files of all engines that are kept on disk."""
    folder = cache_root()
    return sorted(file for file in (folder / "engines").glob("*") if file.is_file()) if folder else []


def clear_engines() -> None:
    """Delete all engines that are kept on disk."""
    for file in list_engines():
        file.unlink(missing_ok=True)


def network_key(network: keras.Model) -> str:
    """Get a text that is the same for two networks of the same layers and weights, and for no others."""
    # What may train does not change what comes out.
    graph = re.sub(r'"trainable": (true|false)', "", network.to_json())
    digest = hashlib.blake2b(graph.encode(), digest_size=16)
    for weight in network.weights:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).tobytes())
    return digest.hexdigest()


def _suits_openvino(network: keras.Model) -> bool:
    accelerated = any(not device.startswith("cpu") for device in keras.distribution.list_devices())
    return (
        keras.backend.backend() == "tensorflow"
        and not accelerated
        and network.compute_dtype == "float32"
        and find_spec("openvino") is not None
    )


def _convert(network: keras.Model):
    import openvino

    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(f"the {keras.backend.backend()} backend cannot be converted here")
    import tensorflow as tf

    signature = [tf.TensorSpec(network.input_shape, tf.float32)]
    function = tf.function(lambda images: network(images, training=False), signature)
    shape = [-1 if side is None else side for side in network.input_shape]
    graph = openvino.convert_model(function, input=shape)
    # Keras's swish has a gradient of its own, which leaves further outputs behind the ones asked for.
    return openvino.Model(graph.get_results()[: len(network.outputs)], graph.get_parameters())


def _make_room() -> None:
    """Delete the engines that were kept first where there are too many."""
    files = sorted(list_engines(), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files[MAX_FILES:]:
        file.unlink(missing_ok=True)


def _save(graph, path: Path) -> None:
    """Write the converted network under a name of its own first, so that no reader sees half of it."""
    import openvino

    draft = path.with_name(f".{os.getpid()}-{path.stem}.xml")
    try:
        openvino.save_model(graph, draft, compress_to_fp16=False)
        os.replace(draft.with_suffix(".bin"), path.with_suffix(".bin"))
        os.replace(draft, path)
    except (OSError, RuntimeError) as error:
        log.warning("the engine could not be kept in %s: %s", path.parent, error)
    finally:
        for suffix in (".xml", ".bin"):
            draft.with_suffix(suffix).unlink(missing_ok=True)
