"""The near pictures of a lesson; photographs are read where a lesson is run on them (test_claims)."""

import numpy as np
import pytest

from tlkeras.fractals import make_fractals
from tlkeras.worlds import load_near


def test_the_embedded_world_is_of_systems_that_its_weights_have_not_seen():
    images, labels = load_near("embedded", num_classes=2, per_class=2, image_size=32)
    np.testing.assert_array_equal(images, make_fractals(2, 2, image_size=32, family=1)[0])
    assert labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("home", [False, True])
def test_photographs_are_the_first_of_each_class_of_a_folder(insects, monkeypatch, home):
    monkeypatch.setenv("HOME", str(insects.parent))
    monkeypatch.setenv("TLKERAS_DATA", f"~/{insects.name}" if home else str(insects))
    images, labels = load_near("imagenet", num_classes=2, per_class=5, image_size=32)
    assert images.shape == (10, 32, 32, 3)
    assert labels.tolist() == [0] * 5 + [1] * 5


def test_an_unknown_world_is_refused():
    with pytest.raises(ValueError, match="world='mars' is neither"):
        load_near("mars")
