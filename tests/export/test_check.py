"""The comparison of an exported file with the network of val.py: what it lets through and what it refuses."""
import dataclasses

import numpy as np
import pytest

from inference import plain_head
from inference.export import check, onnx_graph, rearranged_head, whole
from inference.export.whole import Settings
from tests.export import networks

LOGITS = Settings(output='logits')


@pytest.fixture
def cases():
    rng = np.random.default_rng(0)
    return [check.Case(np.zeros(1), rng.uniform(-4, 4, [1, 5, 30, 40]).astype(np.float32)) for _ in range(3)]


def compared(cases, settings, change, classes='uint8'):
    """check.compare of what `change` makes of the logits."""
    results = iter([change(case.logits.copy()) for case in cases])
    check.compare(lambda image: next(results), cases, settings, classes)


def shifted(logits, by):
    logits[0, 2, 7, 9] += by * np.ptp(logits)
    return logits


@pytest.mark.parametrize('by,fine', [(0, True), (0.9e-3, True), (1.1e-3, False), (np.nan, False), (np.inf, False)])
def test_a_thousandth_of_the_range_of_logits(cases, by, fine):
    if fine:
        compared(cases, LOGITS, lambda logits: shifted(logits, by))
        return
    with pytest.raises(ValueError, match=r'image of 30x40: expected a difference of at most 0\.001 of the range from '
                                         r'the network of val\.py, found .* of the range of the logits, .* of 1200 '
                                         r'classes; nothing was written: '):
        compared(cases, LOGITS, lambda logits: shifted(logits, by))


def test_a_thousandth_of_probabilities(cases):
    settings = Settings(output='probabilities')

    def softmax(logits, by=0.0):
        powers = np.exp(logits)
        powers /= powers.sum(1, keepdims=True)
        powers[0, 1, 2, 3] += np.float32(by)
        return powers

    compared(cases, settings, softmax)
    compared(cases, settings, lambda logits: softmax(logits, 0.9e-3))
    with pytest.raises(ValueError, match='of the range of the probabilities'):
        compared(cases, settings, lambda logits: softmax(logits, 1.1e-3))


def classes_with(others):
    """The classes, but another one for so many pixels."""
    def change(logits):
        classes = logits.argmax(1).astype(np.uint8)
        classes[0].flat[:others] = (classes[0].flat[:others] + 1) % 5
        return classes

    return change


@pytest.mark.parametrize('precision,others,fine', [('fp32', 0, True), ('fp32', 1, False), ('fp16', 0, True),
                                                   ('fp16', 1, True), ('fp16', 2, False)])
def test_other_classes(cases, precision, others, fine):
    """1200 pixels: one is less than a thousandth, two are more."""
    settings = Settings(precision=precision)
    if fine:
        compared(cases, settings, classes_with(others))
    else:
        with pytest.raises(ValueError, match=f'{others} of 1200 classes'):
            compared(cases, settings, classes_with(others))


def test_ties_may_be_broken_either_way(cases):
    for case in cases:
        case.logits[0, 3] = case.logits[0, 1:3].max(0) - np.float32(5e-4) * np.ptp(case.logits)
        case.logits[0, 4] = case.logits[0, 0] = -4
    compared(cases, Settings(), lambda logits: np.full([1, 30, 40], 3, np.uint8))


@pytest.mark.parametrize('change,text', [
    (lambda logits: logits.argmax(1), r'expected uint8 \(1, 30, 40\) .*found int64'),
    (lambda logits: logits.argmax(1)[0].astype(np.uint8), r'expected uint8 \(1, 30, 40\) .*found uint8 \(30, 40\)'),
    (lambda logits: np.full([1, 30, 40], 5, np.uint8), 'found inf of the range')])
def test_another_form(cases, change, text):
    with pytest.raises(ValueError, match=text):
        compared(cases, Settings(), change)


def test_pictures_are_varied_and_the_same_each_time():
    for seed, size in enumerate(check.SIZES):
        image = check.picture(seed, size)
        assert image.shape == (*size, 3) and image.dtype == np.uint8 and image.std() > 40
        np.testing.assert_array_equal(image, check.picture(seed, size))
    odd = [size for size in check.SIZES if size[0] % 2 and size[1] % 2]
    assert len(check.SIZES) == 3 and odd


def test_a_fixed_size_has_three_images_of_it():
    class Network:
        def __call__(self, x):
            return [x]

    settings = dataclasses.replace(LOGITS, size=(20, 30), preprocessing=True)
    cases = check.cases(Network(), settings, lambda sample: {'img': sample['img'].transpose(2, 0, 1)})
    assert [case.image.shape for case in cases] == [(20, 30, 3)] * 3
    assert len({case.image.tobytes() for case in cases}) == 3
    for case in cases:  # the transforms get BGR, the exported network RGB
        np.testing.assert_array_equal(case.logits[0], case.image[..., ::-1].transpose(2, 0, 1))


# ---------------------------------------------------------------- planted mistakes

def rounded_up(self, size, scale):
    return tuple(-int(-side * scale // 1) for side in size)


def as_bgr(self, image, mean, std, normalised=onnx_graph.WholeOps.normalised):
    return normalised(self, image, mean[::-1], std[::-1])


def without_attention(ops, model, x, scales, head):
    """All scales with the same weight."""
    size = ops.size(x)
    ones = [ops.resize_to(logits_of_one_scale(ops, model, x, ops.scaled_size(size, scale)), size) for scale in scales]
    return ops.times(ops.sum(ones), 1 / len(scales))


def logits_of_one_scale(ops, model, x, size):
    logits, _ = plain_head.logits_and_attention(
        ops, model, model.ocrnet.backbone.walk(ops, ops.resize_to(x, size)), False)
    return logits


MISTAKES = {
    'none': (whole, 'OUTPUTS', whole.OUTPUTS, Settings()),
    'sizes rounded up': (onnx_graph.WholeOps, 'scaled_size', rounded_up, Settings(size=(75, 107))),
    'a sum without its other terms': (onnx_graph.WholeOps, 'sum', lambda self, terms: terms[0], Settings()),
    'normalised as BGR': (onnx_graph.WholeOps, 'normalised', as_bgr, Settings(preprocessing=True)),
    'fused without attention': (whole, 'hierarchy', without_attention, Settings()),
    'rows moved the wrong way': (rearranged_head, 'ROWS', (1, 0, -1), Settings()),
    'not mirrored': (onnx_graph.WholeOps, 'mirrored', lambda self, x: x, Settings(flip=True))}


@pytest.mark.parametrize('output', whole.OUTPUTS)
@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistakes_are_found(monkeypatch, mistake, output):
    onnxruntime = pytest.importorskip('onnxruntime')
    place, name, instead, settings = MISTAKES[mistake]
    settings = dataclasses.replace(settings, output=output, mean=networks.MEAN, std=networks.STD)
    model = networks.network([0.5, 1.0, 1.5])
    cases = check.cases(model, settings, lambda sample: {'img': networks.normalised(sample['img'][..., ::-1])[0]})
    monkeypatch.setattr(place, name, instead)
    graph = onnx_graph.build(model, settings, {}, rearranged=True)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), None, ['CPUExecutionProvider'])

    def run(image):
        return session.run(None, {'image': image})[0]

    if mistake == 'none':
        check.compare(run, cases, settings)
    else:
        with pytest.raises(ValueError, match=r'expected a difference of at most 0\.001'):
            check.compare(run, cases, settings)
