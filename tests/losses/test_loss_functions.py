"""Dice and bootstrapped cross entropy: against the published values, the plain formulas and numbers by hand."""
import math
from pathlib import Path

import numpy as np
import paddle
import pytest

import losses
from losses import functional, statistics
from tests import rounding
from tests.losses import plain
from tests.losses.plain import TOLERANCE

REFERENCE = np.load(Path(__file__).parents[1] / 'reference' / 'losses.npz')
BOOTSTRAPS = [(100, 0.05), (700, 3.0), (100, 9.0), (700, 9.0)]


def value_and_grad(loss, logits, labels, *args):
    logits = paddle.to_tensor(logits, stop_gradient=False)
    value = loss(logits, labels, *args)
    assert value.shape == []
    value.backward()
    return float(value), logits.grad.numpy()


def exact_value_and_grad(reference, logits, labels, *args):
    """By the plain formula, in float64."""
    return value_and_grad(reference, logits.astype('float64'), labels, *args)


def sample(seed=0, shape=(2, 5, 6, 7), void=0.3, dtype='float32'):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, shape[1], (shape[0], *shape[2:]))
    labels[rng.random(labels.shape) < void] = 255
    return (rng.normal(size=shape) * 3).astype(dtype), paddle.to_tensor(labels)


def both(min_K=10, loss_th=2.0):
    return [(losses.dice, plain.dice, ()),
            (losses.bootstrapped_cross_entropy, plain.bootstrapped_cross_entropy, (min_K, loss_th))]


@pytest.fixture
def short_strips(monkeypatch):
    """Several strips per image, the last one shorter."""
    monkeypatch.setattr(statistics, 'CPU_STRIP', 32)
    monkeypatch.setattr(statistics, 'GPU_STRIP', 32)


@pytest.fixture(params=['host', 'device'])
def form(request, monkeypatch):
    """The form of the losses for a CPU, and the one for a GPU, which reads nothing from the device."""
    if request.param == 'device':
        as_on_a_gpu(monkeypatch)
    return request.param


def as_on_a_gpu(monkeypatch):
    for module in (statistics, functional):
        monkeypatch.setattr(module, 'is_on_host', lambda _: False)


@pytest.mark.parametrize('kind', ['noignore', 'ignore'])
@pytest.mark.parametrize('loss, args, name', [(losses.dice, (), 'dice')] + [
    (losses.bootstrapped_cross_entropy, (k, th), f'bootce_K{k}_th{th}') for k, th in BOOTSTRAPS])
def test_published_values_and_gradients(form, loss, args, name, kind):
    labels = paddle.to_tensor(REFERENCE['labels' if kind == 'noignore' else 'labels_ignore'])
    value, grad = value_and_grad(loss, REFERENCE['logits'], labels, *args)
    expected = REFERENCE[f'{name}_{kind}_grad']
    tolerance = 2 * plain.tolerance(labels.size)  # the published values are float32, too
    assert value == pytest.approx(float(REFERENCE[f'{name}_{kind}']), rel=tolerance)
    rounding.assert_close(grad[:, :, ::3, ::3], expected, floor=tolerance)


@pytest.mark.parametrize('shape', [(1, 2, 3, 4), (2, 5, 6, 7), (3, 19, 11, 8)])
@pytest.mark.parametrize('min_K, loss_th', [(1, 0.0), (10, 2.0), (10, 1e3), (1000, 0.05)])
def test_equal_to_plain_formulas_over_many_strips(short_strips, form, shape, min_K, loss_th):
    logits, labels = sample(shape=shape)
    for loss, reference, args in both(min_K, loss_th):
        value, grad = value_and_grad(loss, logits, labels, *args)
        expected, expected_grad = exact_value_and_grad(reference, logits, labels, *args)
        assert value == pytest.approx(expected, rel=plain.tolerance(labels.size))
        rounding.assert_close(grad, expected_grad, floor=plain.tolerance(labels.size))


def test_full_size_strips_equal_plain_formulas():
    logits, labels = sample(shape=(1, 3, 190, 200))
    assert statistics.CPU_STRIP < 190 * 200
    for loss, reference, args in both():
        value, grad = value_and_grad(loss, logits, labels, *args)
        expected, expected_grad = exact_value_and_grad(reference, logits, labels, *args)
        assert value == pytest.approx(expected, rel=plain.tolerance(labels.size))
        rounding.assert_close(grad, expected_grad, floor=plain.tolerance(labels.size))


def test_gradient_is_the_finite_difference_in_float64(short_strips):
    logits, labels = sample(shape=(2, 4, 5, 7), dtype='float64')
    direction = np.random.default_rng(1).normal(size=logits.shape)
    for loss, _, args in both():
        _, grad = value_and_grad(loss, logits, labels, *args)
        assert grad.dtype == np.float64
        step = 1e-6
        plus, minus = (float(loss(paddle.to_tensor(logits + s * direction), labels, *args)) for s in (step, -step))
        # Central differences: off by step**2 of the third derivative, and by 2**-53 / step of the value, 1e-10.
        assert (grad * direction).sum() == pytest.approx((plus - minus) / (2 * step), rel=1e-6)


def test_dice_by_hand():
    # Logits log 3 and 0 are probabilities 3/4 and 1/4; the third pixel is void.
    logits = paddle.to_tensor([[[[math.log(3), 0., 50.]], [[0., 0., 0.]]]])
    labels = paddle.to_tensor([[[0, 1, 255]]])
    first, second = 2 * 0.75 / (0.75 + 0.5 + 1), 2 * 0.5 / (0.25 + 0.5 + 1)
    # Without the 1e-5 that the loss adds to each denominator, which changes a term by less than 1e-5
    assert float(losses.dice(logits, labels)) == pytest.approx(1 - (first + second) / 2, abs=1e-5)


@pytest.mark.parametrize('min_K, loss_th, expected', [
    (1, 0.5, (3 + 2 + 1) / 3),  # three above the threshold
    (2, 2.5, (3 + 2) / 2),  # one above: the two largest
    (3, 0.5, (3 + 2 + 1) / 3),  # three are not more than min_K
    (100, 0.0, (3 + 2 + 1 + 0.25) / 4),  # above is more than min_K for no pixel count: all four
])
def test_bootstrapped_cross_entropy_by_hand(min_K, loss_th, expected):
    # Of two classes with logits (0, x) class 0 has loss log(1 + e^x).
    x = [math.log(math.expm1(loss)) for loss in (1, 3, 0.25, 2)]
    logits = paddle.to_tensor([[[[0.] * 4], [x]]])
    labels = paddle.zeros([1, 1, 4], 'int64')
    value = float(losses.bootstrapped_cross_entropy(logits, labels, min_K, loss_th))
    assert value == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize('dtype', ['uint8', 'int32', 'int64'])
@pytest.mark.parametrize('channel', [False, True])
def test_labels_of_other_types_and_shapes_stay_as_they_are(dtype, channel):
    logits, labels = sample()
    given = labels.astype(dtype)
    given = given.unsqueeze(1) if channel else given
    before = given.numpy().copy()
    for loss, reference, args in both():
        value, _ = value_and_grad(loss, logits, given, *args)
        assert value == pytest.approx(float(reference(paddle.to_tensor(logits), labels, *args)), rel=TOLERANCE)
    assert given.dtype == labels.astype(dtype).dtype
    np.testing.assert_array_equal(given.numpy(), before)


def test_logits_stay_as_they_are():
    logits, labels = sample()
    given = paddle.to_tensor(logits, stop_gradient=False)
    for loss, _, args in both():
        loss(given, labels, *args).backward()
    np.testing.assert_array_equal(given.numpy(), logits)


@pytest.mark.parametrize('ignore_index', [255, 2])
def test_logits_under_void_change_nothing(ignore_index):
    logits, labels = sample()
    labels = paddle.where(labels == 255, paddle.full_like(labels, ignore_index), labels)
    void = np.broadcast_to((labels.numpy() == ignore_index)[:, None], logits.shape)
    other = np.where(void, np.random.default_rng(2).normal(size=logits.shape) * 40, logits).astype('float32')
    for loss, _, args in both(min_K=40):
        value, grad = value_and_grad(loss, logits, labels, *args, ignore_index)
        other_value, other_grad = value_and_grad(loss, other, labels, *args, ignore_index)
        assert value == other_value
        np.testing.assert_array_equal(grad, other_grad)
        assert not grad[void].any() and grad[~void].any()


def test_fewer_valid_pixels_than_min_K_are_all_used():
    logits, _ = sample(shape=(1, 3, 4, 5))
    labels = np.full((1, 4, 5), 255)
    labels[0, 0, :3] = [0, 1, 2]
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    nll = -sum(log_p[0, c, 0, c] for c in range(3))
    value, grad = value_and_grad(losses.bootstrapped_cross_entropy, logits, paddle.to_tensor(labels), 8, 0.05)
    assert value == pytest.approx(nll / 8, rel=TOLERANCE)  # as published, the void pixels fill up the places
    assert (np.abs(grad[0, :, 0, :3]).max(0) > 0).all()


def test_all_void_is_zero_with_zero_gradient():
    logits, labels = sample()
    for loss, _, args in both():
        value, grad = value_and_grad(loss, logits, paddle.full_like(labels, 255), *args)
        assert value == 0
        assert not grad.any()


def test_image_that_is_all_void_counts_as_zero_in_the_mean_over_images():
    logits, labels = sample()
    labels[1] = 255
    value, grad = value_and_grad(losses.bootstrapped_cross_entropy, logits, labels, 5, 0.5)
    alone, alone_grad = exact_value_and_grad(plain.bootstrapped_cross_entropy, logits[:1], labels[:1], 5, 0.5)
    assert value == pytest.approx(alone / 2, rel=TOLERANCE)
    rounding.assert_close(grad[:1], alone_grad / 2, floor=TOLERANCE)
    value, _ = value_and_grad(losses.dice, logits, labels)
    assert value == pytest.approx(float(plain.dice(paddle.to_tensor(logits[:1]), labels[:1])), rel=TOLERANCE)


def test_tied_pixels_share_the_last_places():
    # Six equal pixels for four places: each weighs 4/6 of 1/4.
    logits, labels = np.zeros((1, 2, 2, 3), 'float32'), paddle.zeros([1, 2, 3], 'int64')
    value, grad = value_and_grad(losses.bootstrapped_cross_entropy, logits, labels, 4, 5.0)
    # Few terms, all arguments of exp are 0: 8 * EPS = 1e-6 leaves every step its half bit.
    assert value == pytest.approx(math.log(2), rel=1e-6)
    np.testing.assert_allclose(grad[0, 0], np.full((2, 3), -0.5 / 6), rtol=1e-6)
    np.testing.assert_allclose(grad[0, 1], np.full((2, 3), 0.5 / 6), rtol=1e-6)


def test_large_logits_stay_finite():
    logits, labels = sample()
    for loss, _, args in both():
        value, grad = value_and_grad(loss, logits * 1e4, labels, *args)
        assert np.isfinite(value) and np.isfinite(grad).all()


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_half_precision_logits_are_computed_in_float32(dtype):
    half = paddle.to_tensor(sample()[0]).astype(dtype)
    labels = sample()[1]
    half.stop_gradient = False
    for loss, _, args in both():
        half.clear_grad()
        value = loss(half, labels, *args)
        value.backward()
        expected, grad = value_and_grad(loss, half.astype('float32').numpy(), labels, *args)
        assert value.dtype == paddle.float32 and half.grad.dtype == half.dtype
        # The same float32 numbers; the gradient is stored with 8 bits (bfloat16), or in steps of 6e-8 (float16).
        assert float(value) == pytest.approx(expected, rel=1e-6)
        np.testing.assert_allclose(half.grad.astype('float32').numpy(), grad, rtol=1e-2, atol=1e-6)


@pytest.mark.skipif(not paddle.is_compiled_with_cuda(), reason='autocast does nothing on a CPU')
def test_nothing_is_computed_in_half_precision_under_autocast():
    logits, labels = sample()
    for loss, _, args in both():
        expected, expected_grad = value_and_grad(loss, logits, labels, *args)
        with paddle.amp.auto_cast(level='O2'):
            value, grad = value_and_grad(loss, logits, labels, *args)
        assert value == expected
        np.testing.assert_array_equal(grad, expected_grad)


def test_no_grad_and_losses_in_one_sum():
    logits, labels = sample()
    with paddle.no_grad():
        values = [loss(paddle.to_tensor(logits), labels, *args) for loss, _, args in both()]
    assert all(value.stop_gradient for value in values)
    value, grad = value_and_grad(lambda x, y: sum(loss(x, y, *args) for loss, _, args in both()), logits, labels)
    expected, expected_grad = exact_value_and_grad(lambda x, y: sum(loss(x, y, *args) for _, loss, args in both()),
                                                   logits, labels)
    assert value == pytest.approx(expected, rel=TOLERANCE)
    assert float(sum(values)) == pytest.approx(expected, rel=TOLERANCE)
    rounding.assert_close(grad, expected_grad, floor=TOLERANCE)


@pytest.mark.parametrize('call, words', [
    (lambda x, y: losses.dice(x[0], y), ('logits', '(N, C, H, W)', '(5, 6, 7)')),
    (lambda x, y: losses.dice(x, y[:, 1:]), ('labels', '(2, 6, 7)', '(2, 5, 7)')),
    (lambda x, y: losses.dice(x, y.astype('float32')), ('labels', 'integer', 'float32')),
    (lambda x, y: losses.dice(x, y, ignore_index=254), ('labels', '0..4 or 254', '[255]')),
    (lambda x, y: losses.dice(x, paddle.where(y == 255, y, y - 1)), ('labels', '0..4 or 255', '[-1]')),
    (lambda x, y: losses.bootstrapped_cross_entropy(x, y, 0, 0.05), ('min_K', 'at least 1', 'found 0')),
    (lambda x, y: losses.BootstrappedCrossEntropyLoss(10, -1.), ('loss_th', 'at least 0', 'found -1.0')),
])
def test_errors_are_one_line_with_expected_and_found(call, words):
    logits, labels = sample()
    with pytest.raises(ValueError) as error:
        call(paddle.to_tensor(logits), labels)
    text = str(error.value)
    assert '\n' not in text and all(word in text for word in words), text


def same_in_both_forms(monkeypatch, logits, labels, args):
    """Asserts that loss and gradient of the two forms have the same bits."""
    host = value_and_grad(losses.bootstrapped_cross_entropy, logits, labels, *args)
    as_on_a_gpu(monkeypatch)
    device = value_and_grad(losses.bootstrapped_cross_entropy, logits, labels, *args)
    monkeypatch.undo()
    assert host[0] == device[0] and np.array_equal(host[1], device[1])


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('min_K', [1, 2, 41, 42, 83, 84, 1000])
def test_the_selection_on_a_gpu_is_that_of_topk(monkeypatch, min_K, dtype):
    """Ties among them: half of the pixels are copies of one, and void ones are all 0."""
    logits, labels = sample(shape=(3, 5, 12, 7), void=0.2, dtype=dtype)
    logits[:, :, 6:] = logits[:, :, :1, :1]
    same_in_both_forms(monkeypatch, logits, labels, (min_K, 1e3))
    same_in_both_forms(monkeypatch, logits, labels, (min_K, 2.0))
    nll = losses.softmax_statistics(paddle.to_tensor(logits), labels).nll
    found = functional._kth_largest(nll, min(min_K, 84)).numpy()
    as_on_a_gpu(monkeypatch)
    assert np.array_equal(functional._kth_largest(nll, min(min_K, 84)).numpy(), found)


def test_labels_outside_of_the_classes_on_a_gpu_make_the_losses_nan(monkeypatch):
    as_on_a_gpu(monkeypatch)
    logits, labels = sample(void=0)
    labels[0, 0, 0] = 77
    for loss, _, args in both():
        value, _ = value_and_grad(loss, logits, labels, *args)
        assert math.isnan(value)
    layers = {'types': [losses.DiceLoss()], 'coef': [1]}
    with pytest.raises(ValueError, match=r'labels: expected ids 0..4 or 255 \(void\), found \[77\]'):
        losses.check_labels(5, labels, layers)
