import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import normalized_mutual_info_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tlkeras.sounds import MATERIALS, RATE, SAMPLES, Sound, make_struck_objects, sound_summary


@pytest.fixture(scope="module")
def things():
    return make_struck_objects(300, image_size=32)


def test_things_are_the_same_for_the_same_seed_and_other_for_another(things):
    again, other = make_struck_objects(5, image_size=32), make_struck_objects(5, image_size=32, seed=1)
    assert np.array_equal(again.images, things.images[:5]) and np.array_equal(again.sounds, things.sounds[:5])
    assert not np.array_equal(other.images, again.images)
    assert things.images.dtype == np.uint8 and np.ptp(things.images) > 200


def test_metal_rings_longest_and_rubber_shortest(things):
    energy = things.sounds**2
    moments = (energy @ np.arange(SAMPLES)) / energy.sum(axis=1) / RATE  # seconds
    by_material = [np.median(moments[things.materials == k]) for k in range(len(MATERIALS))]
    assert by_material == sorted(by_material, reverse=True)
    assert by_material[0] > 5 * by_material[-1]


def test_a_large_thing_sounds_lower_than_a_small_one_of_its_kind(things):
    frequencies = np.fft.rfftfreq(SAMPLES, 1 / RATE)
    spectrum = np.abs(np.fft.rfft(things.sounds, axis=1))
    metal_bars = (things.materials == 0) & (things.shapes == 0)
    lowest = np.array([frequencies[row > 0.3 * row.max()][0] for row in spectrum[metal_bars]])
    assert 330 / 0.9 * 0.9 < lowest.min() and lowest.max() < 330 / 0.45 * 1.1
    assert lowest.max() > 1.5 * lowest.min()


def test_summaries_tell_materials_and_shuffled_materials_do_not(things):
    summaries = sound_summary(things.sounds)
    assert summaries.shape == (300, 100) and np.isfinite(summaries).all()
    judge = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    assert cross_val_score(judge, summaries, things.materials, cv=3).mean() > 0.9
    shuffled = np.random.default_rng(0).permutation(things.materials)
    assert cross_val_score(judge, summaries, shuffled, cv=3).mean() < 0.4


def test_a_summary_does_not_say_when_the_stroke_fell(things):
    late = np.roll(things.sounds[things.materials == 3], 1200, axis=1)  # rubber is silent again by then
    early = sound_summary(things.sounds[things.materials == 3])
    scale = sound_summary(things.sounds).std(axis=0) + 1e-6
    assert np.abs((sound_summary(late) - early) / scale)[:, :20].mean() < 0.25


def test_clusters_of_sounds_know_materials(things):
    task = Sound(sounds=things.sounds, num_clusters=12)
    clusters = task.prepare(things.images)
    assert set(clusters) == set(range(12)) and task.num_classes == 12
    assert normalized_mutual_info_score(clusters, things.materials) > 0.4
    shuffled = np.random.default_rng(0).permutation(things.materials)
    assert normalized_mutual_info_score(clusters, shuffled) < 0.15


def test_sounds_that_do_not_fit_are_refused(things):
    with pytest.raises(ValueError, match="as many sounds, got 7"):
        Sound(sounds=things.sounds[:7]).prepare(things.images)
    with pytest.raises(ValueError, match="between 2 and the number of sounds, 7; got 30"):
        Sound(sounds=things.sounds[:7]).prepare(things.images[:7])
    with pytest.raises(ValueError, match=r"\(7, 4000, 2\): take the mean over the channels"):
        Sound(sounds=np.stack([things.sounds[:7]] * 2, axis=-1), num_clusters=2).prepare(things.images[:7])
    with pytest.raises(TypeError, match="sounds"):
        Sound().prepare(things.images)
    with pytest.raises(ValueError, match="256"):
        sound_summary(np.zeros((2, 100)))
    with pytest.raises(ValueError, match="count"):
        make_struck_objects(0)
