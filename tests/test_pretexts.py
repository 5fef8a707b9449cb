import keras
import numpy as np
import pytest
import tensorflow as tf

import tlkeras as tl
from tlkeras.embeddings import nt_xent
from tlkeras.pretexts import Labels, Rotation, SimCLR, VICReg
from tlkeras.reconstruction import Autoencoder, Colorization
from tlkeras.sounds import Sound

DRAW = tf.constant([0, 16], tf.int64)
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3)).astype(np.uint8)


def first_batch(task, images=IMAGES):
    targets = task.prepare(images)
    return task.batch(tf.cast(images, tf.float32), tf.constant(targets), DRAW)


def number(tensor) -> float:
    return float(keras.ops.convert_to_numpy(tensor))


@pytest.mark.parametrize(
    "task",
    [
        Labels(np.arange(12) % 3),
        Rotation(),
        Autoencoder(),
        Autoencoder(noise=40),
        Colorization(grid=20),
        SimCLR(),
        VICReg(width=32),
        Sound(sounds=np.random.default_rng(0).normal(size=(12, 512)), num_clusters=3),
    ],
    ids=lambda task: type(task).__name__,
)
def test_every_task_trains_every_weight_of_the_backbone(task, tiny_backbone):
    inputs, targets = first_batch(task)
    model = task.build(tiny_backbone)
    assert inputs.shape[1:] == (32, 32, 3) and 0 <= inputs.numpy().min() and inputs.numpy().max() <= 255
    with tf.GradientTape() as tape:
        loss = task.loss(targets, model(inputs, training=True))
    assert np.isfinite(number(loss))
    gradients = tape.gradient(loss, tiny_backbone.model.trainable_variables)
    assert all(np.abs(gradient.numpy()).max() > 0 for gradient in gradients)


def test_the_loss_of_classes_is_the_mean_surprise_at_the_right_one():
    logits, targets = np.random.default_rng(0).normal(0, 3, (12, 4)), np.arange(12) % 4
    slow = [-np.log(np.exp(row[right]) / np.exp(row).sum()) for row, right in zip(logits, targets, strict=True)]
    sound = Sound(sounds=np.ones((12, 512)), num_clusters=2)
    for task in (Labels(targets), Rotation(), sound):
        loss = task.loss(tf.constant(targets), tf.constant(logits, tf.float32))
        assert number(loss) == pytest.approx(np.mean(slow), rel=1e-5)


def test_a_turned_picture_says_by_how_much():
    right = Rotation(smallest=0.999)
    ramp = np.zeros((200, 32, 32, 3), np.uint8)
    ramp[:, :16] = 200  # the upper half is light
    turned, turns = first_batch(right, ramp)
    sums = [turned.numpy()[turns == k].mean(axis=(0, 3)) for k in range(4)]
    assert sums[0][:8].mean() > 190 > 10 > sums[0][-8:].mean()  # above
    assert sums[1][:, :8].mean() > 190  # a quarter turn against the clock brings the top to the left
    assert sums[2][-8:].mean() > 190
    assert sums[3][:, -8:].mean() > 190
    assert np.bincount(turns.numpy()).min() > 30


@pytest.mark.parametrize("smallest", [0, -1, 20, float("nan")])
def test_a_window_that_is_no_share_of_a_picture_is_refused(smallest):
    for make in (
        lambda s: Labels(np.arange(12) % 3, smallest=s),
        lambda s: SimCLR(smallest=s),
        lambda s: VICReg(0.2, s),
    ):
        with pytest.raises(ValueError, match=r"smallest must be a number in \(0, 1\], got"):
            make(smallest)


@pytest.mark.parametrize("temperature", [0, -0.1, float("nan")])
def test_a_temperature_that_divides_by_nothing_is_refused(temperature):
    with pytest.raises(ValueError, match=r"temperature must be a number in \(0, inf\), got"):
        SimCLR(temperature=temperature)


def test_rotation_refuses_pictures_that_a_turn_would_betray():
    with pytest.raises(ValueError, match="square"):
        Rotation().prepare(np.zeros((4, 32, 24, 3)))


def test_two_views_of_a_picture_are_nearer_than_those_of_two_pictures():
    images, _ = tl.make_fractals(6, 2, image_size=32)
    task = SimCLR(strength=0.0, smallest=0.9)
    views, _ = first_batch(task, images)
    flat = views.numpy().reshape(24, -1) - views.numpy().reshape(24, -1).mean(axis=1, keepdims=True)
    other = np.concatenate([flat[:12], np.roll(flat[12:], 1, axis=0)])
    assert number(nt_xent(flat, 0.2)) < number(nt_xent(other, 0.2)) - 0.3


def test_labels_must_be_one_a_picture():
    with pytest.raises(ValueError, match="as many labels"):
        Labels(np.zeros(3, int)).prepare(IMAGES)
    with pytest.raises(ValueError, match="float"):
        Labels(np.zeros(12)).prepare(IMAGES)
