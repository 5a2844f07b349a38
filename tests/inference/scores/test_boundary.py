"""Boundary scores against their definition, pixel by pixel in plain Python, and SciPy's distance transform."""
import itertools
import math

import numpy as np
import pytest
import scipy.ndimage

from datasets.labels import LabelSet
from inference.scores.base import ScoredImage
from inference.scores.boundary import Boundary

LABELS = LabelSet(('road', 'car', 'sky', 'never'), tuple((i, i, i) for i in range(4)))
NONE = np.zeros([4, 4], np.int64)


def blobs(rng, size, classes=3, steps=4):
    """A map of smooth regions."""
    noise = scipy.ndimage.gaussian_filter(rng.standard_normal([classes, *size]), [0, steps, steps])
    return noise.argmax(axis=0).astype(np.uint8)


def images(count=4, size=(23, 31)):
    for index in range(count):
        rng = np.random.default_rng(index)
        label = blobs(rng, size).astype(np.int64)
        classes = np.roll(label.astype(np.uint8), index, axis=1)
        classes[5:9, 3:8] = 2
        label[-4:] = 255
        label[rng.random(size) < 0.05] = 255
        yield ScoredImage(index, label, classes)


def plain_boundary(classes, label, name):
    """[(y, x)] of the boundary pixels of a class: the definition."""
    height, width = label.shape
    found = []
    for y, x in itertools.product(range(height), range(width)):
        if label[y, x] == 255 or classes[y, x] != name:
            continue
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= v < height and 0 <= u < width and label[v, u] != 255 and classes[v, u] != name:
                found.append((y, x))
                break
    return found


def near(points, targets, pixels):
    return sum(any(math.dist(p, t) <= pixels for t in targets) for p in points)


def plain_f(image, name, pixels):
    truth, guess = (plain_boundary(classes, image.label, name) for classes in (image.label, image.classes))
    if not truth and not guess:
        return None
    precision = near(guess, truth, pixels) / len(guess) if guess else 0
    recall = near(truth, guess, pixels) / len(truth) if truth else 0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0


@pytest.mark.parametrize('pixels', [(1, 2), (3,)])
def test_equals_the_definition(pixels):
    score = Boundary(LABELS, pixels)
    found = score.total([score.measure(image) for image in images()], NONE)
    assert found['pixels'] == list(pixels)
    for (i, name), (number, distance) in itertools.product(enumerate(LABELS.names), enumerate(pixels)):
        expected = [f for image in images() if (f := plain_f(image, i, distance)) is not None]
        value = found['classes'][name]['f'][number]
        assert value == pytest.approx(np.mean(expected), rel=1e-14) if expected else math.isnan(value)
        tp, union = 0, 0
        for image in images():
            contours = [p for other in range(3) for p in plain_boundary(image.label, image.label, other)]
            for y, x in itertools.product(*map(range, image.label.shape)):
                label, guess = image.label[y, x], image.classes[y, x]
                if label != 255 and near([(y, x)], contours, distance):
                    tp += label == guess == i
                    union += i in (label, guess)
        value = found['classes'][name]['trimap_iou'][number]
        assert value == tp / union if union else math.isnan(value)
    for key in ('f', 'trimap_iou'):
        values = [found['classes'][name][key][0] for name in LABELS.names[:3]]
        assert found['mean'][key][0] == pytest.approx(np.mean(values))  # `never` is left out
    assert 0.05 < found['mean']['f'][0] < 0.95


def test_hand_worked():
    """A contour one pixel off: within 1 pixel all is right, and half of the band of 1 pixel is."""
    label = np.repeat([[0, 0, 0, 0, 1, 1, 1, 1]], 3, axis=0)
    classes = np.repeat(np.array([[0, 0, 0, 1, 1, 1, 1, 1]], np.uint8), 3, axis=0)
    score = Boundary(LABELS, [1])
    found = score.total([score.measure(ScoredImage(0, label, classes))], NONE)
    assert found['classes']['road']['f'] == found['classes']['car']['f'] == [1]
    # Columns 2 to 5 are at most 1 pixel from the boundary pixels in columns 3 and 4; column 3 is wrong.
    assert found['classes']['road']['trimap_iou'] == [1 / 2] and found['classes']['car']['trimap_iou'] == [2 / 3]
    assert np.isnan(found['classes']['sky']['f'][0])


def test_a_class_missing_in_the_prediction_scores_nothing_and_no_contour_at_all_is_undefined():
    label = np.zeros([6, 6], np.int64)
    label[2:4, 2:4] = 1
    score = Boundary(LABELS, [3])
    found = score.total([score.measure(ScoredImage(0, label, np.zeros([6, 6], np.uint8)))], NONE)
    assert found['classes']['road']['f'] == found['classes']['car']['f'] == [0]
    flat = ScoredImage(0, np.zeros([6, 6], np.int64), np.zeros([6, 6], np.uint8))
    found = score.total([score.measure(flat)], NONE)
    assert all(np.isnan(values[key][0]) for values in found['classes'].values() for key in values)
    assert np.isnan(found['mean']['f'][0])


def test_void_makes_no_contour():
    label = np.array([[0, 0, 255, 1, 1]])
    score = Boundary(LABELS, [3])
    assert score.measure(ScoredImage(0, label, label.clip(0, 1).astype(np.uint8))).size == 0


def test_distances_are_exact_in_large_images():
    """Against SciPy's distance transform, which works with integers, at every distance, up to the edges."""
    from inference.scores import boundary

    rng = np.random.default_rng(0)
    of, to = (np.where(rng.random([150, 260]) < 0.004, blobs(rng, (150, 260), 3, 25).astype(np.int16), np.int16(-1))
              for _ in range(2))
    pixels = range(1, 31)
    found = boundary.near(of, to, list(pixels), 4)
    for name in range(4):
        if not (to == name).any():
            assert not found[:, name].any()
            continue
        index = scipy.ndimage.distance_transform_edt(to != name, return_distances=False, return_indices=True)
        squared = ((index - np.indices(to.shape)) ** 2).sum(axis=0)[of == name]
        np.testing.assert_array_equal(found[:, name], [(squared <= d**2).sum() for d in pixels])
    assert found[0].sum() < found[-1].sum() / 4


@pytest.mark.parametrize('pixels', [(), (0,), (3, 3), (5, 3), (51,)])
def test_distances_that_are_refused(pixels):
    with pytest.raises(ValueError, match='--boundary: expected rising distances of 1 to 50 pixels, found'):
        Boundary(LABELS, pixels)
