"""Conversion: a Keras network as OpenVINO's, and OpenVINO without its reports."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

import keras

_ASKING: list[str | None] = []  # what CI was, for each thread that is in OpenVINO
_QUIET = threading.Lock()


def convert(network: keras.Model):
    """Get a network as an `openvino.Model`, in float32."""
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(f"the {keras.backend.backend()} backend cannot be converted here")
    import tensorflow as tf

    openvino = import_openvino()
    # The weights go in as tensors: for a variable OpenVINO searches all the others, at each node that reads one.
    trained, other = (
        [tf.convert_to_tensor(variable.value) for variable in variables]
        for variables in (network.trainable_variables, network.non_trainable_variables)
    )
    signature = [tf.TensorSpec(network.input_shape, tf.float32)]
    function = tf.function(lambda images: network.stateless_call(trained, other, images, training=False)[0], signature)
    shape = [-1 if side is None else side for side in network.input_shape]
    with _mended_openvino(tf.__version__), without_telemetry():
        graph = openvino.convert_model(function, input=shape)
    # Keras's swish has a gradient of its own, which leaves further outputs behind the ones asked for.
    return openvino.Model(graph.get_results()[: len(network.outputs)], graph.get_parameters())


@contextlib.contextmanager
def _mended_openvino(version: str) -> Iterator[None]:
    """Tell OpenVINO TensorFlow's version: it asks by `exec("del tensorflow")`, in Python 3.13 a NameError."""
    try:
        from openvino.frontend.tensorflow import utils

        asked = utils.get_environment_setup
    except (ImportError, AttributeError):  # another OpenVINO
        asked = None
    if asked is None or sys.version_info < (3, 13):
        yield
        return
    utils.get_environment_setup = lambda framework: {"tensorflow": version}
    try:
        yield
    finally:
        utils.get_environment_setup = asked


def import_openvino():
    """Get the package `openvino`, imported without a report to its maker."""
    with without_telemetry():
        import openvino
    return openvino


@contextlib.contextmanager
def without_telemetry() -> Iterator[None]:
    """Keep OpenVINO from reporting imports and conversions to its maker, under a name it leaves in the home folder.

    It does by default, and never in continuous integration: so that is what it is told while it asks.
    """
    with _QUIET:
        _ASKING.append(os.environ.get("CI"))
        os.environ["CI"] = "true"
    try:
        yield
    finally:
        with _QUIET:
            before = _ASKING.pop()  # of several threads the last one puts back what the first one found
            if not _ASKING:
                os.environ.pop("CI") if before is None else os.environ.update(CI=before)
