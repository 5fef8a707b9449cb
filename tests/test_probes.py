import keras
import numpy as np
import pytest
from conftest import make_tiny_backbone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC
from sklearn.utils.class_weight import compute_sample_weight
from test_features import Pictures

from tlkeras.features import compute_features
from tlkeras.heads import build_classifier, build_head
from tlkeras.loaders import load_arrays
from tlkeras.predictions import predict, to_probabilities
from tlkeras.probes import KINDS, PENALTIES, fit_probe, probe_head, set_head


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return images[:300] / 16, labels[:300]


def make_lively_backbone():
    """The tiny backbone with kernels large enough for random features to tell the colours apart."""
    backbone = make_tiny_backbone()
    for weight in backbone.model.trainable_weights:
        weight.assign(2 * weight)
    return backbone


@pytest.mark.parametrize(("task", "num_classes"), [("classification", 2), ("classification", 3), ("binary", 2)])
def test_the_whole_model_gives_the_probes_probabilities(colour_pictures, task, num_classes):
    images, labels = colour_pictures[0].astype("float32"), colour_pictures[1] % num_classes
    model = build_classifier(make_lively_backbone(), num_classes, task=task)
    features, truth = compute_features(model, Pictures(images, labels))
    probe = fit_probe(features, truth)
    expected = probe.predict_proba(features)
    assert np.ptp(expected) > 0.3  # so that agreement means something
    set_head(model, probe)
    np.testing.assert_allclose(to_probabilities(model.predict(images, verbose=0), task), expected, atol=1e-4)


def scaled(features, like):
    """Each channel divided by the geometric mean of its own deviation and that of all."""
    deviation = like.std(axis=0)
    scale = np.sqrt(deviation * np.sqrt(np.mean(deviation**2)))
    return (features - like.mean(axis=0)) / np.where(scale > 0, scale, 1)


@pytest.mark.parametrize("weight", [None, {0: 1.0, 1: 30.0}])
def test_the_penalty_is_the_one_with_the_best_cross_validated_log_loss(digits, weight):
    features, labels = digits
    if weight:  # one class is rare: what weighs in the fit weighs in the choice
        labels = np.repeat([0, 1], [200, 20])
        features = np.random.default_rng(0).normal(size=(220, 30)) + 0.5 * labels[:, None]
    losses, plain_losses = np.zeros(len(PENALTIES)), np.zeros(len(PENALTIES))
    for learn, judge in StratifiedKFold(5, shuffle=True, random_state=0).split(features, labels):
        known, unknown = (scaled(features[rows], features[learn]) for rows in (learn, judge))
        each = compute_sample_weight(weight, labels[judge])
        for place, c in enumerate(PENALTIES):
            plain = LogisticRegression(C=c, max_iter=2000, tol=1e-6, class_weight=weight).fit(known, labels[learn])
            found = plain.predict_proba(unknown)
            losses[place] += log_loss(labels[judge], found, sample_weight=each) * each.sum()
            plain_losses[place] += log_loss(labels[judge], found) * len(judge)
    chosen = fit_probe(features, labels, class_weight=weight).C
    assert chosen == PENALTIES[int(np.argmin(losses))]
    if weight:
        assert chosen != PENALTIES[int(np.argmin(plain_losses))]


def test_labels_may_be_a_list(digits):
    features, labels = digits
    assert fit_probe(features, list(map(int, labels)), kind="centroid").score(features, labels) > 0.8


def test_where_there_is_nothing_to_learn_the_penalty_is_strong(digits):
    noise = np.random.default_rng(0).normal(size=(300, 40))
    assert fit_probe(noise, digits[1]).C <= 0.01


@pytest.mark.parametrize("kind", ["softmax", "svm"])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_fit_in_the_span_of_few_pictures_is_the_fit_in_all_channels(kind, num_classes):
    rng = np.random.default_rng(0)
    labels = np.arange(36) % num_classes
    features = (rng.normal(size=(36, 200)) + labels[:, None]) * rng.uniform(0.1, 3, 200) + 5
    probe = fit_probe(features, labels, kind=kind)
    if kind == "softmax":
        plain = LogisticRegression(C=probe.C, max_iter=5000, tol=1e-8)
    else:
        plain = LinearSVC(C=probe.C, max_iter=100000, tol=1e-8)
    plain.fit(scaled(features, features), labels)
    new = rng.normal(size=(20, 200)) * 3 + 5
    found, expected = probe.decision_function(new), plain.decision_function(scaled(new, features))
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(found, expected, atol=0.02 * np.ptp(expected))


def test_the_scale_of_the_features_changes_no_prediction(digits):
    features, labels = digits
    expected = fit_probe(features, labels).predict_proba(features)
    assert np.ptp(expected) > 0.3
    np.testing.assert_allclose(fit_probe(features * 1e-3, labels).predict_proba(features * 1e-3), expected, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_channel_that_is_always_zero_is_no_news(digits, kind):
    features, labels = digits
    assert (features == 0).all(axis=0).any()
    assert fit_probe(features, labels, kind=kind).score(features, labels) > 0.8


def test_what_speeds_the_choice_of_the_penalty_up_does_not_stay_with_the_probe(digits):
    probe = fit_probe(*digits)
    assert probe.get_params() == LogisticRegression(C=probe.C, max_iter=500).get_params()


def test_class_weights_reach_the_probe(digits):
    features, labels = digits
    rare = np.where(np.arange(300) < 30, 1, 0)
    plain = fit_probe(features, rare).predict(features).mean()
    assert fit_probe(features, rare, class_weight={0: 1.0, 1: 20.0}).predict(features).mean() > plain


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.zeros((6, 4, 4, 2)), np.zeros(6, int), r"pooled features .* got an array of shape \(6, 4, 4, 2\)"),
        (np.zeros((6, 2)), np.array([0, 0, 0, 1, 1, 2]), "Class 2 has 1 pictures; cross-validation takes 2"),
        (np.zeros((6, 2)), np.zeros(6, int), "Class 1 has 0 pictures"),
        (np.zeros((6, 2)), np.array([0, 0, 0, 2, 2, 2]), "Class 1 has 0 pictures"),
        (np.zeros((6, 2)), np.zeros((6, 3)), r"one class \(0, 1, ...\) a row, got float64 labels \(6, 3\)"),
        (np.zeros((6, 2)), np.zeros(5, int), r"got int64 labels \(5,\)"),
        (np.zeros((6, 2)), np.full(6, -1), "one class"),
        (np.zeros((6, 2)), np.linspace(0, 1, 6), "For values, .* train_head"),
        (np.zeros((0, 2)), np.zeros(0, int), r"got int64 labels \(0,\)"),
        (np.full((6, 2), np.nan), np.array([0, 0, 0, 1, 1, 1]), "NaN or infinite"),
    ],
)
def test_what_cannot_be_probed_is_refused(features, labels, message):
    with pytest.raises(ValueError, match=message):
        fit_probe(features, labels)


@pytest.mark.parametrize(
    "head",
    [
        build_head(3, hidden=(4,)),
        keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, "tanh")]),
        keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, "softmax")]),
        keras.Sequential([keras.layers.Dense(3), keras.layers.GlobalAveragePooling2D()]),
    ],
)
def test_a_head_that_is_not_linear_on_pooled_features_takes_no_probe(digits, head):
    model = build_classifier(
        make_tiny_backbone(), 3, head=head, task="regression"
    )  # a classification refuses a softmax itself
    with pytest.raises(ValueError, match="pooling and one dense layer only"):
        set_head(model, fit_probe(digits[0], digits[1] % 3))


def linear_head(before=(), after=()):
    layers = keras.layers
    return keras.Sequential([layers.GlobalAveragePooling2D(), *before, layers.Dense(3), *after])


@pytest.mark.parametrize(
    ("head", "culprit"),
    [
        (linear_head([keras.layers.UnitNormalization(name="odd")]), "UnitNormalization"),
        (linear_head([keras.layers.Rescaling(1.0, -3.0, name="odd")]), "Rescaling"),
        (linear_head([keras.layers.LayerNormalization(center=False, scale=False, name="odd")]), "LayerNormalization"),
        (linear_head([keras.layers.Activation("relu", name="odd")]), "Activation"),
        (linear_head(after=[keras.layers.Rescaling(-1.0, name="odd")]), "Rescaling"),
        (linear_head(after=[keras.layers.LeakyReLU(name="odd")]), "LeakyReLU"),
        (linear_head(after=[keras.layers.Softmax(name="odd")]), "Softmax"),
    ],
)
def test_a_layer_without_weights_that_changes_values_makes_a_head_that_takes_no_probe(data, head, culprit):
    model = build_classifier(
        make_tiny_backbone(), 3, head=head, task="regression"
    )  # a classification refuses a softmax itself
    before = model.get_weights()
    with pytest.raises(ValueError, match=rf"'odd' \({culprit}\) does not fit in. Train this head with train_head"):
        probe_head(model, data)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_layers_that_pass_values_on_do_not_keep_a_probe_from_its_head(colour_pictures):
    layers = keras.layers
    linear, noise = layers.Activation("linear"), layers.GaussianNoise(0.1)
    before = [layers.Dropout(0.5), noise, layers.Flatten(), layers.Identity(), linear]
    model = build_classifier(make_lively_backbone(), 3, head=linear_head(before, [layers.Activation("linear")]))
    images, labels = colour_pictures[0].astype("float32"), colour_pictures[1]
    features, truth = compute_features(model, Pictures(images, labels))
    probe = fit_probe(features, truth)
    set_head(model, probe)
    found = to_probabilities(model.predict(images, verbose=0))
    np.testing.assert_allclose(found, probe.predict_proba(features), atol=1e-4)


@pytest.mark.parametrize("kind", ["knn", "centroid"])
def test_a_probe_without_weights_makes_no_head(kind):
    features, labels = np.random.default_rng(0).normal(size=(30, 16)), np.arange(30) % 3
    model = build_classifier(make_tiny_backbone(), 3)
    with pytest.raises(ValueError, match="Only a linear probe becomes a head.*kind 'softmax' or 'svm'"):
        set_head(model, fit_probe(features, labels, kind=kind))


def test_a_probe_of_other_features_is_refused(digits):
    model = build_classifier(make_tiny_backbone(), 3)
    with pytest.raises(ValueError, match=r"The probe's weights are \(64, 3\), the head's are \(16, 3\)"):
        set_head(model, fit_probe(digits[0], digits[1] % 3))


@pytest.fixture
def data(colour_pictures):
    return load_arrays(*colour_pictures, class_names=["red", "green", "blue"])


def test_probe_head_trains_the_whole_model_and_reports_what_predict_finds(data):
    model = build_classifier(make_lively_backbone(), 3)
    history = probe_head(model, data)
    (row,) = history.rows
    held_out = predict(model, data)
    assert row["val_accuracy"] == (held_out.predicted == held_out.truth).mean()
    assert row["accuracy"] > 0.8  # chance is 0.33
    assert 1 / row["penalty"] in [pytest.approx(c) for c in PENALTIES]
    assert history.seconds["probe"] > 0


def test_a_class_of_one_training_picture_is_named(colour_pictures):
    labels = ["red", "blue"] * 20 + ["grey"] * 2
    data = load_arrays(colour_pictures[0][:42], labels)
    with pytest.raises(ValueError, match="Class 'grey' has 1 training pictures; a probe takes 2 or more"):
        probe_head(build_classifier(make_tiny_backbone(), 3), data)


def test_a_task_without_classes_has_no_probe(data):
    with pytest.raises(ValueError, match="A probe classifies; this model's task is 'multi-label'"):
        probe_head(build_classifier(make_tiny_backbone(), 3, task="multi-label"), data)


def test_neighbours_of_features_in_half_precision_are_those_in_full():
    rng, labels = np.random.default_rng(0), np.arange(40) % 2
    features = (rng.normal(size=(40, 4096)) * 8 + 8 * (2 * labels[:, None] - 1)).astype("float16")
    assert (np.square(features.astype(float)).sum(axis=1) > np.finfo("float16").max).all()
    full = fit_probe(features.astype("float32"), labels, kind="knn")
    half = fit_probe(features, labels, kind="knn")
    assert half.score(features, labels) == full.score(features.astype("float32"), labels) == 1


def test_pictures_of_another_size_are_refused_as_in_training(colour_pictures):
    data = load_arrays(*colour_pictures)
    with pytest.raises(ValueError, match=r"takes pictures of shape \(None, 16, 16, 3\), got \(32, 32, 32, 3\)"):
        probe_head(build_classifier(make_tiny_backbone(16), 3), data)
