"""Views: one picture seen twice, as contrastive learning wants it, by operations of a tf.data pipeline.

Images are float32 (batch, height, width, 3) in [0, 255], here and in what comes out; `draw` is two integers that
decide everything random, so that a run which is resumed sees the same views again.
"""

from __future__ import annotations

from typing import Any


def crop(images: Any, draw: Any, smallest: float) -> Any:
    """Take a window of `smallest` to all of each picture's area, enlarge it to the full size, mirror half of them.

    The window's sides, as shares of the picture's, are to each other as 3:4 to 4:3 (Szegedy et al. 2015,
    https://arxiv.org/abs/1409.4842). One that is longer than the picture is cut off at its side, so that a window can
    be smaller than `smallest` where that is above 0.75: at 1 it has 0.87 to all of the area.
    """
    import tensorflow as tf

    count, size = tf.shape(images)[0], images.shape[1:3]
    random = tf.random.stateless_uniform((5, count), draw)
    area = smallest + (1 - smallest) * random[0]
    aspect = tf.exp((2 * random[1] - 1) * tf.math.log(4 / 3))
    height, width = tf.minimum(tf.sqrt(area / aspect), 1.0), tf.minimum(tf.sqrt(area * aspect), 1.0)
    top, left = random[2] * (1 - height), random[3] * (1 - width)
    mirrored, right = random[4] < 0.5, left + width
    first, last = tf.where(mirrored, right, left), tf.where(mirrored, left, right)
    boxes = tf.stack([top, first, top + height, last], axis=1)
    return tf.image.crop_and_resize(images, boxes, tf.range(count), size)


def jitter(images: Any, draw: Any, strength: float) -> Any:
    """Change light, contrast and saturation by up to 80 % of `strength`, channels apart by 40 %; a fifth turn grey.

    Without it two windows of one picture are told by their colours, and nothing else is learnt (Chen et al. 2020,
    https://arxiv.org/abs/2002.05709, section 3.2). For their turn of the hue stands one factor a channel.
    """
    import tensorflow as tf

    count = tf.shape(images)[0]
    random = tf.random.stateless_uniform((7, count, 1, 1, 1), draw + 1, 1 - 0.8 * strength, 1 + 0.8 * strength)
    tint = 1 + (random[3:6, ..., 0] - 1) / 2
    images = images * random[0]
    mean = tf.reduce_mean(images, axis=(1, 2, 3), keepdims=True)
    images = (images - mean) * random[1] + mean
    grey = tf.image.rgb_to_grayscale(images)
    images = (images - grey) * random[2] + grey
    images = images * tf.transpose(tint, (1, 2, 3, 0))
    turn_grey = tf.random.stateless_uniform((count, 1, 1, 1), draw + 2) < 0.2
    return tf.clip_by_value(tf.where(turn_grey, grey, images), 0.0, 255.0)


def two_views(images: Any, draw: Any, smallest: float, strength: float) -> Any:
    """Get the first views of all pictures and then the second ones, (2 * batch, height, width, 3)."""
    import tensorflow as tf

    twice = tf.concat([images, images], axis=0)
    return jitter(crop(twice, draw, smallest), draw, strength)
