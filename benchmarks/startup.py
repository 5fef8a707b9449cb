"""How long until Keras is there? A plain import against the start of a lesson or a command, in new processes in turns.

    python benchmarks/startup.py [--repeats 7] [--json]

Importing TensorFlow makes some 400,000 Python objects, and the garbage collector goes through them many times though
nothing of them is garbage. `start_lesson` and every command keep it waiting meanwhile. Medians of whole processes.
"""

from __future__ import annotations

import os
import subprocess
import sys

from _turns import claim_row, in_turns, measure_all

PLAIN = "import keras, tensorflow; tensorflow.config.list_physical_devices()"
OURS = "from tlkeras.startup import import_keras; import_keras()"


def start(code: str) -> None:
    """Run a process that does this and ends."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    subprocess.run([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL, check=True)


def measure(name: str, repeats: int) -> dict:
    """Seconds, ours and the plain import's."""
    return claim_row(f"{name}: seconds until Keras is there", *in_turns(
        lambda: start(OURS), lambda: start(PLAIN), repeats, 1000,  # so that milliseconds become seconds
    ), 1.3)  # fmt: skip


if __name__ == "__main__":
    measure_all(__doc__, ("TensorFlow backend",), measure, 7, quick=3)
