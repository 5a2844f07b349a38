"""Whether two evaluations of the same images differ by more than the choice of these images.

Paired percentile bootstrap (Efron, Tibshirani 1993, chapter 13): resample the images with replacement, for all
evaluations alike, add their counts, compute every score anew, and look at the spread of the differences. It answers for
the images, taken as independent; another run of the training may differ by more.
"""
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

CHUNK = 1 << 24  # numbers drawn at once


class Scores(NamedTuple):
    """iou: float64 (..., K), NaN where a class is absent. miou, accuracy: float64 (...)."""
    iou: np.ndarray
    miou: np.ndarray
    accuracy: np.ndarray


class Difference(NamedTuple):
    """first, second: the scores. difference: second - first. low, high: its interval. better: share of the resamples in
    which it is above 0. All NaN where undefined."""
    first: float
    second: float
    difference: float
    low: float
    high: float
    better: float

    @property
    def beyond(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def scores(counts: np.ndarray) -> Scores:
    """Of counts (..., 3, K) as in documents.Scored: IoU, its mean over the classes that occur, accuracy."""
    right, actual, predicted = np.moveaxis(counts.astype(np.float64), -2, 0)
    with np.errstate(invalid='ignore', divide='ignore'):
        iou = right / (actual + predicted - right)
        occurs = ~np.isnan(iou)
        return Scores(iou, np.where(occurs, iou, 0).sum(axis=-1) / occurs.sum(axis=-1),
                      right.sum(axis=-1) / actual.sum(axis=-1))


def draws(images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each image is in each resample, int64 (some resamples, images), until there are enough."""
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // images)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        chosen = rng.integers(images, size=(rows, images)) + images * np.arange(rows)[:, None]
        yield np.bincount(chosen.ravel(), minlength=rows * images).reshape(rows, images)


def resampled(counts: Sequence[np.ndarray], resamples: int, seed: int) -> list[Scores]:
    """The scores of every resample (first axis), for each of the counts (images, 3, K); the same resamples for all."""
    flat = [part.reshape(len(part), -1).astype(np.float64) for part in counts]  # a product of floats is the faster one
    assert all(part.sum() * len(part) < 2**53 for part in flat), 'exact in float64'
    parts: list[list[np.ndarray]] = [[] for _ in counts]
    for times in draws(len(counts[0]), resamples, seed):
        for part, sums in zip(parts, flat):
            part.append((times.astype(np.float64) @ sums).reshape(-1, *counts[0].shape[1:]))
    return [scores(np.concatenate(part)) for part in parts]


def difference(first: np.ndarray, second: np.ndarray, of_first: np.ndarray, of_second: np.ndarray,
               level: float) -> Difference:
    """first, second: () scores of all images; of_first, of_second: (resamples,). level: of the interval."""
    spread = of_second - of_first
    spread = spread[~np.isnan(spread)]  # of the resamples without the class
    a, b = float(first), float(second)
    if np.isnan(b - a) or not spread.size:
        return Difference(a, b, *[float('nan')] * 4)
    low, high = np.quantile(spread, [(1 - level) / 2, (1 + level) / 2])
    return Difference(a, b, b - a, float(low), float(high), float((spread > 0).mean()))
