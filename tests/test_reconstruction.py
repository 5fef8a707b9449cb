import keras
import numpy as np
import pytest
from test_pretexts import IMAGES, first_batch, number

import tlkeras as tl
from tlkeras import reconstruction
from tlkeras.colours import nearest_bin, rebalancing, rgb_to_lab
from tlkeras.reconstruction import PIECE, Autoencoder, Colorization, decoder


def test_the_autoencoder_asks_for_its_input_and_the_denoising_one_for_what_it_was():
    inputs, targets = first_batch(Autoencoder())
    np.testing.assert_allclose(inputs.numpy() / 255, targets.numpy(), atol=1e-6)
    assert number(Autoencoder().loss(targets, inputs / 255)) < 1e-12
    grey = np.full((50, 32, 32, 3), 128, np.uint8)
    spoilt, clean = first_batch(Autoencoder(noise=20.0), grey)
    assert (spoilt.numpy() - 128).std() == pytest.approx(20, rel=0.05)
    assert np.ptp(clean.numpy()) < 1e-6


def test_the_squared_error_is_the_mean_over_all_pixels():
    truth, answer = np.random.default_rng(0).random((2, 3, 4, 4, 3)).astype("float32")
    slow = np.mean([(a - b) ** 2 for a, b in zip(truth.ravel(), answer.ravel(), strict=True)])
    assert number(Autoencoder().loss(truth, answer)) == pytest.approx(slow, rel=1e-5)


def test_colorization_sees_no_colour_and_its_loss_is_the_double_loop_of_the_paper():
    task = Colorization(grid=20)
    inputs, targets = first_batch(task)
    assert np.ptp(inputs.numpy(), axis=-1).max() < 0.01
    assert targets.shape == (12, 8, 8, 3)
    logits = np.random.default_rng(1).normal(size=(12, 8, 8, len(task.bins))).astype("float32")
    ab = keras.ops.convert_to_numpy(rgb_to_lab(targets))[..., 1:]
    total = 0.0  # equation 2 of Zhang et al. 2016
    for place in np.ndindex(12, 8, 8):
        q = int(((task.bins - ab[place]) ** 2).sum(axis=1).argmin())
        shares = np.exp(logits[place]) / np.exp(logits[place]).sum()
        total -= task.weights[q] * np.log(shares[q])
    assert number(task.loss(targets, logits)) == pytest.approx(total / (12 * 8 * 8), rel=1e-4)


def test_colours_are_counted_piece_by_piece_and_no_picture_is_left_out(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (2 * PIECE + 3, 32, 32, 3)).astype(np.uint8)
    images[-3:] = (255, 0, 0)
    places = []

    def spy(ab, bins):
        places.append(int(np.prod(ab.shape[:-1])))
        return nearest_bin(ab, bins)

    monkeypatch.setattr(reconstruction, "nearest_bin", spy)
    task = Colorization(grid=20)
    task.prepare(images)
    assert places == [PIECE * 64, PIECE * 64, 3 * 64]  # each place is held against every bin: that is the memory
    numbers = keras.ops.convert_to_numpy(nearest_bin(rgb_to_lab(images[:, ::4, ::4])[..., 1:], task.bins))
    frequency = np.bincount(numbers.ravel(), minlength=len(task.bins)) / numbers.size
    np.testing.assert_array_equal(task.weights, rebalancing(frequency, 0.5))


def test_painted_pictures_keep_their_light(tiny_backbone):
    task = Colorization(grid=20)
    task.prepare(IMAGES)
    painted = task.colour(task.build(tiny_backbone), IMAGES[:3])
    assert painted.shape == (3, 32, 32, 3) and 0 <= painted.min() and painted.max() <= 255


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (12, 20)])
def test_the_decoder_ends_at_the_size_asked_for(tiny_backbone, size):
    assert decoder(tiny_backbone, size).shape[1:3] == size


def test_the_decoder_climbs_the_stages_of_a_net_of_the_catalogue():
    backbone = tl.load_backbone(weights=None, alpha=0.35, image_size=64)
    model = Autoencoder().build(backbone)
    assert model.output_shape == (None, 64, 64, 3)
    sides = [layer.output.shape[1] for layer in model.layers if layer.name.startswith("pretext_up")]
    assert sides == [4, 8, 16, 32, 64]
