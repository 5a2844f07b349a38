"""Sizes of scaled images in integers: int(side * scale) of Python, for every side."""
from fractions import Fraction

import numpy as np
import pytest

from common.export_table import LARGEST_SIDE
from inference.export import scaled_sizes

SIDES = range(1, LARGEST_SIDE + 1)


@pytest.mark.parametrize('scale', [0.25, 0.5, 0.75, 1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 3.0])
def test_fractions_give_pythons_sizes(scale):
    found = scaled_sizes.as_fraction(scale)
    assert found == Fraction(str(scale))
    assert all(max(1, side * found.numerator // found.denominator) == max(1, int(side * scale)) for side in SIDES)


@pytest.mark.parametrize('scale', [0.7, 0.29])
def test_scales_without_a_fraction(scale):
    """0.29 * 100 is 28.999999999999996 and 0.29 * 300 is 87.0: a fraction would be below 0.29, and not below it."""
    assert scaled_sizes.as_fraction(scale) is None
    table = scaled_sizes.sides_at(scale)
    assert all(table[side] == max(1, int(side * scale)) for side in SIDES)
    in_float32 = np.floor(np.arange(LARGEST_SIDE + 1, dtype=np.float32) * np.float32(scale))
    assert (table[1:] != np.maximum(in_float32, 1)[1:]).any(), 'float32 would do'
