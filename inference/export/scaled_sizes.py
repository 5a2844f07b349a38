"""Sizes of scaled images in integers, as models.layers.scaled_size computes them in float64.

Engines may compute sizes in float32, which rounds to others.
"""
from fractions import Fraction

import numpy as np

from common.export_table import LARGEST_SIDE
from models.layers import scaled_size


def sides_at(scale: float) -> np.ndarray:
    """int64 (LARGEST_SIDE + 1,): the length at a scale of every side; 1 for the side 0."""
    return np.array([scaled_size([side], scale)[0] for side in range(LARGEST_SIDE + 1)], np.int64)


def as_fraction(scale: float) -> Fraction | None:
    """p / q with max(1, side * p // q) == scaled_size for every side up to LARGEST_SIDE, or None where there is none.

    The float64 products of some scales, 0.7 among them, round up to a whole number for one side and not for another.
    """
    sides, wanted = np.arange(LARGEST_SIDE + 1), sides_at(scale)
    for largest in (16, 1000, 10**6):
        found = Fraction(scale).limit_denominator(largest)
        if (np.maximum(1, sides * found.numerator // found.denominator) == wanted).all():
            return found
    return None
