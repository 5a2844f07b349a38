"""Calibration against the definition written out, and against scikit-learn's calibration_curve."""
import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from datasets.labels import LabelSet
from inference.scores.base import ScoredImage, dense, sparse
from inference.scores.calibration import Calibration

LABELS = LabelSet(('road', 'car', 'sky'), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))


def images(count=3, seed=0):
    rng = np.random.default_rng(seed)
    for index in range(count):
        label = rng.choice([0, 1, 255], [30, 40])
        classes = np.where(rng.random(label.shape) < 0.6, label % 255, rng.integers(0, 2, label.shape)).astype(np.uint8)
        confidence = rng.uniform(1 / 3, 1, label.shape).astype(np.float32)
        label[0, :4] = 0
        confidence[0, :4] = 1, 0.4, 0.5, 1 + 2**-23  # edges of bins; softmax may exceed 1 by its rounding
        yield ScoredImage(index, label, classes, confidence)


def test_equals_the_definition_and_scikit_learn():
    score = Calibration(LABELS, bins=10)
    found = score.total([score.measure(image) for image in images()], np.zeros([3, 3], np.int64))
    label, classes, confidence = (np.concatenate([getattr(image, key)[image.label != 255] for image in images()])
                                  for key in ('label', 'classes', 'confidence'))
    confidence = np.minimum(confidence, np.float32(1)).astype(np.float64)
    right = label == classes
    error = 0
    for m, part in enumerate(found['bins'], start=1):
        inside = (confidence > (m - 1) / 10) & (confidence <= m / 10)
        assert part['pixels'] == inside.sum() and (part['low'], part['high']) == ((m - 1) / 10, m / 10)
        if part['pixels']:
            assert part['accuracy'] == right[inside].mean()
            assert part['confidence'] == pytest.approx(confidence[inside].mean(), rel=1e-13)
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        else:
            assert np.isnan(part['accuracy']) and np.isnan(part['confidence'])
    assert found['ece'] == pytest.approx(error, rel=1e-12) and found['ece'] > 0.01
    accuracy, mean = calibration_curve(right, confidence, n_bins=10)
    parts = [part for part in found['bins'] if part['pixels']]
    np.testing.assert_allclose([part['accuracy'] for part in parts], accuracy)
    np.testing.assert_allclose([part['confidence'] for part in parts], mean)


def test_of_a_class_counts_what_is_predicted_as_it():
    score = Calibration(LABELS)
    found = score.total([score.measure(image) for image in images()], np.zeros([3, 3], np.int64))['classes']
    car = [(image.label == 1)[(image.classes == 1) & (image.label != 255)] for image in images()]
    assert found['car']['accuracy'] == np.concatenate(car).mean() and found['car']['pixels'] == sum(map(len, car))
    assert found['sky']['pixels'] == 0 and np.isnan(found['sky']['ece']) and np.isnan(found['sky']['confidence'])


def test_sums_of_confidences_are_exact():
    """Of the 2**-32 that a float32 here can have, none is lost; in float32, or another order, many would be."""
    (image,) = images(1)
    score = Calibration(LABELS)
    counts = dense(score.measure(image), (3, 15, 4)).sum(axis=(0, 1))
    exact = sum(int(np.ldexp(float(min(value, 1)), 32)) for value in image.confidence[image.label != 255])
    assert (int(counts[2]) << 16) + int(counts[3]) == exact
    assert int(np.float32(1 / 255) * np.float64(2**32)) == np.float32(1 / 255) * np.float64(2**32)


def test_nothing_to_count():
    score = Calibration(LABELS)
    image = ScoredImage(0, np.full([4, 4], 255), np.zeros([4, 4], np.uint8), np.ones([4, 4], np.float32))
    found = score.total([score.measure(image)], np.zeros([3, 3], np.int64))
    assert found['pixels'] == 0 and np.isnan(found['ece'])


def test_a_sparse_table_is_the_array():
    array = np.random.default_rng(0).integers(-1, 2, [3, 4, 5])
    np.testing.assert_array_equal(dense(sparse(array), array.shape), array)
    assert sparse(np.zeros([2, 2], int)).shape == (0, 3)
    assert not dense(np.array([], np.int64), (2, 2)).any()  # as JSON gives an empty table back
