"""Several small images at once: the same logits, in order, large ones alone, and within memory."""
import math
import threading
from types import SimpleNamespace

import cv2
import numpy as np
import paddle
import pytest

from common.errors import UserError
from inference import Segmenter, backends, folder, forms, lanes, memory
from inference.predictor import Predictor
from tests import fill, rounding
from tests.inference.test_backends import builder, expected, network, weights  # noqa: F401 (fixtures)
from tests.inference.test_forms import fastest


@pytest.fixture
def predictor(builder, weights, monkeypatch):  # noqa: F811
    fastest(monkeypatch, forms.AT_ONCE)
    monkeypatch.setattr(lanes, 'threads', lambda: 3)
    return Predictor(backends.create(builder, weights, 'openvino'))


def in_threads(function, items):
    """function(item) of each, all started at once."""
    found = [None] * len(items)
    barrier = threading.Barrier(len(items))

    def run(i):
        barrier.wait()
        found[i] = function(items[i])

    started = [threading.Thread(target=run, args=[i]) for i in range(len(items))]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return found


def test_logits_are_those_of_the_plain_network_for_any_size(predictor, weights):  # noqa: F811
    several = lanes.lanes(predictor, 100)
    images = [fill.image(seed, [1, 3, *size]) for seed, size in enumerate([(64, 96), (75, 106), (33, 201)])]
    for x, found in zip(images, in_threads(lambda x: several._predictor.logits(paddle.to_tensor(x)).numpy(), images)):
        want, condition = expected(weights, x)
        rounding.assert_close(found, want, condition)


def test_large_images_run_one_after_the_other(predictor, monkeypatch):
    """With the windows and strips that their memory asks for, which are set on the executor."""
    monkeypatch.setattr(lanes, 'SMALL', 64 * 96)
    several = lanes.lanes(predictor, 100)
    inside, most = [], []

    def alone(image, ran=predictor.window_logits):
        inside.append(1)
        most.append(len(inside))
        logits = ran(image)
        inside.pop()
        return logits

    monkeypatch.setattr(predictor, 'window_logits', alone)
    scale = max(predictor.model.n_scales)
    small, large = ((round(64 / scale), width) for width in (round(96 / scale), round(96 / scale) + 3))
    samples = [{'img': fill.image(i, [1, 3, *size])[0]} for i, size in enumerate([small, large, large, small, large])]
    found = in_threads(several, samples)
    assert most == [1, 1, 1]
    for sample, classes in zip(samples, found):
        assert (classes == predictor(sample)).mean() > 0.99


def test_as_many_as_images_threads_and_memory(predictor, monkeypatch):
    peak = predictor.model.peak([round(lanes.SMALL**0.5 / max(predictor.model.n_scales))] * 2, memory.AT_ONCE)
    loaded = predictor.model.base + predictor.model.footprint.weights
    for images, threads, room, count in (  # room: how many the free memory has room for
            (100, 3, math.inf, 3), (2, 3, math.inf, 2), (1, 3, math.inf, None), (100, 1, math.inf, None),
            (100, 64, math.inf, lanes.MOST), (100, 3, 2.5, 2), (100, 3, 1.5, None), (100, 3, 0.5, None)):
        monkeypatch.setattr(memory, 'available', lambda device, room=room: loaded + room * peak)
        monkeypatch.setattr(lanes, 'threads', lambda threads=threads: threads)
        found = lanes.lanes(predictor, images)
        assert (found and found.count) == count


def test_none_with_a_limit_a_window_or_in_another_form(predictor, builder, weights, monkeypatch,  # noqa: F811
                                                       tmp_path):
    network = predictor.model  # noqa: F811
    assert lanes.lanes(Predictor(network, memory_limit=8 << 30), 100) is None
    assert lanes.lanes(Predictor(network, crop_size=(64, 64), stride=(32, 32)), 100) is None
    network.n_scales = [1.0]  # not those of the graph
    assert lanes.lanes(Predictor(network), 100) is None
    assert lanes.lanes(Predictor(builder.model), 100) is None
    for form, backend in ((forms.AT_ONCE, 'onnxruntime'), (forms.PLAIN, 'openvino'), (forms.STRIPS, 'openvino')):
        fastest(monkeypatch, form)
        monkeypatch.setenv('MSCALE_CACHE', str(tmp_path / f'{form} {backend}'))  # where the form is kept
        assert lanes.lanes(Predictor(backends.create(builder, weights, backend)), 100) is None


# ---------------------------------------------------------------- folders

@pytest.fixture
def segmenter(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv('MSCALE_CACHE', str(tmp_path / 'cache'))
    fastest(monkeypatch, forms.AT_ONCE)
    monkeypatch.setattr(lanes, 'threads', lambda: 3)
    return Segmenter(*tiny, backend='openvino')


@pytest.fixture
def items(tmp_path):
    found = []
    for i in range(7):
        path = tmp_path / f'{i}.png'
        cv2.imwrite(str(path), np.random.default_rng(i).integers(0, 256, [64, 96 + i, 3], np.uint8))
        found.append((path, i))
    return found


def test_a_folder_keeps_its_order_and_names_what_fails(segmenter, items, monkeypatch):
    items[2][0].write_bytes(b'no picture')
    used, found = [], []
    monkeypatch.setattr(folder, 'lanes', lambda *args, make=lanes.lanes: used.append(make(*args)) or used[-1])
    failed = folder.predict_each(segmenter, items, lambda *args: found.append(args), 2)
    assert used[0].count == 3
    assert [name for name, *_ in found] == [0, 1, 3, 4, 5, 6]
    line, = failed
    assert line.startswith(str(items[2][0])) and '\n' not in line
    for name, image, classes, maps in found:
        np.testing.assert_array_equal(image, cv2.imread(str(items[name][0])))
        assert maps is None and classes.shape == (64, 96 + name)
        assert (classes == segmenter.predictor(segmenter.load(items[name][0])[1])).mean() > 0.99


def test_weights_that_give_no_finite_logits_end_it_at_the_first_image(segmenter, items, monkeypatch):
    monkeypatch.setattr(segmenter.predictor.model.executor, 'beside', lambda image, count: paddle.full(
        [1, 19, *image.shape[2:]], math.nan))
    with pytest.raises(UserError, match='0.png: expected finite logits, found NaN or infinity; check --model_path'):
        folder.predict_each(segmenter, items, lambda *args: None, 2)


def test_a_defect_is_not_taken_for_a_bad_image(segmenter, items, monkeypatch):
    monkeypatch.setattr(segmenter.predictor.model.executor, 'beside', SimpleNamespace)  # takes no arguments
    with pytest.raises(TypeError):
        folder.predict_each(segmenter, items, lambda *args: None, 2)
