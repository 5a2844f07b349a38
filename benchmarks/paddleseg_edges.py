"""The edges of `edge: True`, ours beside PaddleSeg's: python -m benchmarks.paddleseg_edges

Prints the milliseconds of both for made-up labels of 19 classes, and their ratio; both give the same bits.
"""
import time
from collections.abc import Callable

import numpy as np
from paddleseg.transforms.functional import mask_to_binary_edge

from datasets.edges import class_edges

CLASSES = 19
REPEATS = 5


def milliseconds(function: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Of the fastest of some calls, and the result."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = function()
        times.append(1000 * (time.perf_counter() - start))
    return min(times), result


def main() -> None:
    label = np.random.default_rng(0).integers(0, CLASSES, (16, 32)).repeat(32, 0).repeat(32, 1).astype(np.uint8)
    theirs, expected = milliseconds(lambda: mask_to_binary_edge(label, 2, CLASSES)[0])
    ours, found = milliseconds(lambda: class_edges(label, CLASSES))
    assert np.array_equal(found, expected)
    print(f'{label.shape[1]}x{label.shape[0]} pixels: PaddleSeg {theirs:.0f} ms, here {ours:.1f} ms: '
          f'{theirs / ours:.0f} times as fast')


if __name__ == '__main__':
    main()
