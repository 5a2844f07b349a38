"""Strips of rows of the finest branch, and the rows of the coarser branches that each depends on."""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def bilinear_rows(size: int, out: int) -> np.ndarray:
    """float32 (out, size): interpolation of `size` rows to `out`, half-pixel centres (as models.layers.resize)."""
    matrix = np.zeros([out, size])
    source = np.maximum((np.arange(out) + 0.5) * (size / out) - 0.5, 0)
    low = np.minimum(source.astype(int), size - 1)
    part = source - low
    np.add.at(matrix, (np.arange(out), low), 1 - part)
    np.add.at(matrix, (np.arange(out), np.minimum(low + 1, size - 1)), part)
    return matrix.astype(np.float32)


class Strip(NamedTuple):
    """A strip of output rows [start, stop); it needs rows from low[b] on of the coarser branch b.

    enlarge, enlarge_shifted: as for inference.fused.pixels_and_statistics.
    """
    start: int
    stop: int
    low: list[int]
    enlarge: np.ndarray
    enlarge_shifted: np.ndarray


def split_rows(height: int, coarser_heights: Sequence[int], rows: int) -> tuple[list[Strip], list[int]]:
    """Strips of about `rows` rows each, and the number of rows each takes of the three coarser branches."""
    number = -(-height // rows)
    rows = -(-height // number)
    matrices = [bilinear_rows(size, height) for size in coarser_heights]
    bounds = [(start, min(start + rows, height)) for start in range(0, height, rows)]

    def needed(matrix: np.ndarray, start: int, stop: int) -> tuple[int, int]:
        used = np.flatnonzero(matrix[max(start - 1, 0):stop + 1].any(axis=0))
        return used[0], used[-1] + 1

    counts = [max(high - low for low, high in (needed(m, *b) for b in bounds)) for m in matrices]
    result = []
    for start, stop in bounds:
        lows, enlarge, shifted = [], [], []
        for matrix, count in zip(matrices, counts):
            low = min(needed(matrix, start, stop)[0], matrix.shape[1] - count)
            padded = np.pad(matrix[:, low:low + count], [(1, 1), (0, 0)])
            lows.append(int(low))
            enlarge.append(padded[start + 1:stop + 1])
            shifted += [padded[start + dy:stop + dy] for dy in range(3)]
        result.append(Strip(start, stop, lows, np.concatenate(enlarge, axis=1), np.concatenate(shifted, axis=1)))
    return result, counts
