"""The start of a lesson or a command: Keras imported without its backend's start-up lines, and the lesson's world."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import tempfile
from collections.abc import Iterator

WORLDS = ("embedded", "imagenet")


def start_lesson() -> str:
    """Say which pretrained weights and pictures a lesson uses, and see to it that its figures come out again.

    The world is "embedded", or "imagenet" where there is a GPU; the environment variable TLKERAS_WORLD overrules. All
    random numbers start from the seed 0 (dropout draws its own when a model is built). In the embedded world
    TensorFlow computes each operation in one thread, unless TF_NUM_INTRAOP_THREADS says otherwise, and does not
    rewrite its graphs: the networks there are so small and learn for so few steps that threads wait for each other,
    and that rewriting a graph takes longer than it saves. Call it before the first network, and before Keras is
    imported: what TensorFlow prints when it starts is then kept back.

    Returns:
        "embedded" or "imagenet".

    Raises:
        ValueError: If TLKERAS_WORLD is neither of the two.
    """
    chosen = os.environ.get("TLKERAS_WORLD")
    if chosen and chosen not in WORLDS:
        raise ValueError(f"TLKERAS_WORLD={chosen!r} is neither of {WORLDS}.")
    import_keras()
    import keras

    world = chosen or ("imagenet" if _has_gpu() else "embedded")
    if world == "embedded" and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
        if "TF_NUM_INTRAOP_THREADS" not in os.environ:
            with contextlib.suppress(RuntimeError):  # too late: a network was there before
                tf.config.threading.set_intra_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    print(f"World: {world}. The environment variable TLKERAS_WORLD=embedded or =imagenet chooses the other.")
    return world


def import_keras() -> None:
    """Import Keras and look for devices with the start-up lines kept back; they are shown if that fails."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with captured_stderr() as read, _uncollected():
        try:
            import keras

            if keras.backend.backend() == "tensorflow":
                import tensorflow

                tensorflow.config.list_physical_devices()
        except BaseException:
            sys.__stderr__.write(read())
            raise


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector away from the hundreds of thousands of objects that an import makes and that stay.

    It goes through them many times in vain, two fifths of the seconds that importing TensorFlow takes, and again
    whenever it looks at everything later. Where Keras is there already, nothing is imported and nothing changed.
    """
    if "keras" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _has_gpu() -> bool:
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return bool(tf.config.list_physical_devices("GPU"))  # does not start the devices, as Keras's list would
    return "gpu" in str(list_devices())


def list_devices() -> list[str]:
    """Get the devices that Keras can use, as "cpu:0" or "gpu:0"; Keras's own list knows no torch."""
    import keras

    if keras.backend.backend() != "torch":
        return keras.distribution.list_devices()
    import torch

    count = torch.cuda.device_count() or int(torch.backends.mps.is_available())
    return [f"gpu:{number}" for number in range(count)] or ["cpu:0"]


@contextlib.contextmanager
def captured_stderr() -> Iterator:
    """Keep back what is written to the descriptor 2, as TensorFlow's C++ side does; gives a function that reads it."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:

            def read() -> str:
                os.dup2(kept, 2)
                sink.seek(0)
                return sink.read().decode(errors="replace")

            yield read
        finally:
            os.dup2(kept, 2)
            os.close(kept)
