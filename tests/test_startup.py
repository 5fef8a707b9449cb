"""The start of a lesson, each time in a process of its own: TensorFlow's threads are set once."""

import functools
import os
import subprocess
import sys

import pytest

SCRIPT = """
import tlkeras as tl
world = tl.start_lesson()
import tensorflow as tf
as_is = tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer", False)
threads = tf.config.threading.get_intra_op_parallelism_threads()
print(world, threads, "graphs as they are" if as_is else "graphs rewritten")
print(float(tl.build_head(3)(tf.ones((1, 2, 2, 8)), training=True)[0, 0]))  # random weights and dropout
print(tl.start_lesson() == world)
import gc
print(gc.isenabled(), gc.get_freeze_count() > 100_000)
"""


@functools.cache  # each start takes seconds
def choose(**variables: str) -> subprocess.CompletedProcess:
    kept = {
        name: value for name, value in os.environ.items() if name not in ("TLKERAS_WORLD", "TF_NUM_INTRAOP_THREADS")
    }
    environment = {**kept, "CUDA_VISIBLE_DEVICES": "-1", **variables}
    return subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("variables", "answer"),
    [
        ({}, "embedded 1 graphs as they are"),
        ({"TLKERAS_WORLD": "imagenet"}, "imagenet 0 graphs rewritten"),  # 0 is TensorFlow's own choice
        # The variable rules the threads, which this figure does not show.
        ({"TF_NUM_INTRAOP_THREADS": "2"}, "embedded 0 graphs as they are"),
    ],
    ids=str,
)
def test_the_world_is_announced_and_small_networks_get_one_thread(variables, answer):
    said = choose(**variables).stdout.splitlines()
    assert said[0].startswith(f"World: {answer.split()[0]}. ")
    assert said[1] == answer
    assert said[3].startswith("World: ") and said[4] == "True"  # also once a network was there


def test_random_weights_and_dropout_are_the_same_in_every_run():
    one, other = (start().stdout.splitlines()[2] for start in (choose, choose.__wrapped__))
    assert float(one) == float(other)


def test_start_up_lines_are_kept_back_and_what_fails_is_shown():
    assert choose().stderr == ""
    broken = choose(KERAS_BACKEND="mars").stderr
    assert "mars" in broken.splitlines()[-1]


def test_the_garbage_collector_waits_for_the_import_only():
    assert choose().stdout.splitlines()[5] == "True True"


def test_an_unknown_world_is_refused():
    assert "TLKERAS_WORLD='mars' is neither of ('embedded', 'imagenet')" in choose(TLKERAS_WORLD="mars").stderr
