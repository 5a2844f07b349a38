"""How far rounding may move a result: tolerances that are measured or counted, and one comparison that says them.

A float32 result and its reference (another order of the same sums, or another machine's float32) both differ from the
exact value, each by its own rounding. How far depends on the case, not on the test's taste:

    allowed = factor * condition + floor       relative to the largest absolute value of the reference

condition: what `sensitivity` measures, the deviation of the results when every element of the input moves by its last
    float32 bit. Measured on a float64 function (see `in_float64`) it is a property of the case, the same number on
    every processor; measured on a float32 function it holds that machine's own rounding as well.
factor: BOTH_SIDES or ONE_SIDE with a float64 condition, SPREAD with a float32 one; their reasons are beside them.
floor: the rounding of the last sum itself, which is there however well-conditioned the case is (`of_sum`).
"""
import contextlib
from unittest import mock

import numpy as np
import paddle

from models import layers, ocr, scale_attention

EPS = float(np.finfo(np.float32).eps)  # 2**-23 = 1.2e-7: a stored result is off by at most half of it

# In float64 only the input was disturbed; in float32 every layer disturbs its output as much. The largest network of
# the tests has 82 convolutions with batch norm and ReLU: 246 independent disturbances add up as sqrt(246), about 16.
# Measured on it: 80 float32 runs in training mode are at most 9 times the condition away from float64. Where it is
# below EPS (evaluation, the first layer's statistics) they are up to 17 times, which `floor` alone would allow.
ONE_SIDE = 16
BOTH_SIDES = 2 * ONE_SIDE  # float32 here against a reference that was float32, too

# Two float32 runs of which the input's last bit differs already round differently in every layer. The largest of four
# such deviations is a sample of what another order of the sums does: measured up to 2.5 times it, and 3 times that
# margin for other processors.
SPREAD = 8


def of_sum(terms):
    """Relative rounding of two float32 sums of the same n terms: each of n steps is off by at most EPS / 2, and
    independent errors add up as sqrt(n), on both sides. (The worst case, n * EPS / 2, needs all of one sign.)"""
    return float(np.sqrt(terms)) * EPS


def of_positions(*sizes):
    """Relative rounding of bilinear interpolations of `sizes` rows or columns, one after the other, against exact
    positions: a float32 position among n is off by n * EPS / 2 at most, and neighbours differ by about the largest
    value."""
    return sum(sizes) * EPS / 2


FLOOR = of_sum(512)  # 2.7e-6: the classifier's sum over the 512 channels of the OCR features


def disturbed(x, rng):
    """float32 array -> float32 array of which every element is the next number above or below, by chance."""
    return np.nextafter(x, np.where(rng.random(x.shape) < 0.5, -np.inf, np.inf).astype(np.float32))


def of_network(function):
    """function: tensor -> tensor, as one of arrays for `sensitivity`, without gradients."""
    def of_arrays(x):
        with paddle.no_grad():
            return function(paddle.to_tensor(x)).numpy()

    return of_arrays


def error(found, expected):
    """Largest deviation of an array relative to the largest absolute value of the expected one (same shape)."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, f'expected the shape {expected.shape}, found {found.shape}'
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(np.float64).tiny))


def sensitivity(function, x, plain=None, trials=4, seed=0):
    """The condition of a case: the largest `error` over `trials` copies of x (float32 array) with disturbed last bits.

    function: float32 array -> array, or dict of arrays; it may compute in float64. plain: function(x), if it is at
    hand. Returns a float, or a dict of them.
    """
    rng = np.random.default_rng(seed)
    plain = function(x) if plain is None else plain
    runs = [function(disturbed(x, rng)) for _ in range(trials)]
    if not isinstance(plain, dict):
        return max(error(run, plain) for run in runs)
    return {key: max(error(run[key], value) for run in runs) for key, value in plain.items()}


def allowed(condition=0.0, factor=SPREAD, floor=FLOOR):
    """The relative error that rounding explains, see the head of this file."""
    return factor * condition + floor


def assert_close(found, expected, condition=0.0, factor=SPREAD, floor=FLOOR, name='result'):
    """Arrays of one shape, equal up to rounding; or two dicts of such arrays, with a float or a dict as condition."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys() and expected, f'expected {list(expected)}, found {list(found)}'
        for key, value in expected.items():
            each = condition[key] if isinstance(condition, dict) else condition
            assert_close(found[key], value, each, factor, floor, key)
        return
    off, limit = error(found, expected), allowed(condition, factor, floor)
    assert off <= limit, (f'{name}: expected a relative error of at most {limit:.2g} = {factor} x condition '
                          f'{condition:.2g} + {floor:.2g} for the last sum, found {off:.2g}')


@contextlib.contextmanager
def in_float64(model):
    """Within, the network computes in float64, also where models/ asks for float32; its parameters stay float64."""
    model.to(dtype='float64')
    with contextlib.ExitStack() as stack:
        for module in (layers, ocr, scale_attention):
            stack.enter_context(mock.patch.object(module, 'cast', lambda x, dtype: x))
        yield model
