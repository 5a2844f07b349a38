"""Strips of rows of the finest branch, and the rows of the coarser branches that each depends on."""
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


def bilinear_rows(size: int, out: int, start: int = 0, stop: int | None = None) -> np.ndarray:
    """float32 (out, size): interpolation of `size` rows to `out`, half-pixel centres (as models.layers.resize).

    start, stop: only these of the `out` rows.
    """
    rows = np.arange(start, out if stop is None else stop)
    matrix = np.zeros([len(rows), size])
    source = np.maximum((rows + 0.5) * (size / out) - 0.5, 0)
    low = np.minimum(source.astype(int), size - 1)
    part = source - low
    np.add.at(matrix, (rows - start, low), 1 - part)
    np.add.at(matrix, (rows - start, np.minimum(low + 1, size - 1)), part)
    return matrix.astype(np.float32)


def bilinear_rows_via(size: int, above: int, out: int, step: int) -> Iterator[tuple[slice, np.ndarray]]:
    """bilinear_rows(above, out) @ bilinear_rows(size, above) in pieces of `step` rows, for heights whose square is too
    much: (the rows that a piece reads, its matrix for them).
    """
    for start in range(0, out, step):
        second = bilinear_rows(above, out, start, min(start + step, out))
        used = np.flatnonzero(second.any(axis=0))
        first = bilinear_rows(size, above, used[0], used[-1] + 1)
        read = np.flatnonzero(first.any(axis=0))
        rows = slice(int(read[0]), int(read[-1]) + 1)
        yield rows, np.ascontiguousarray((second[:, used[0]:used[-1] + 1] @ first)[:, rows])


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
