"""Whether confidence can be believed: of the pixels predicted with confidence 0.9, nine in ten should be right.

Expected calibration error and reliability diagram: Guo, Pleiss, Sun, Weinberger 2017 (arXiv:1706.04599). Confidence is
the largest softmax probability; bin m of M holds the pixels with confidence in ((m - 1) / M, m / M], and

    ECE = sum over m of |pixels in m| / |all pixels| * |accuracy of m - mean confidence of m|
"""
from collections.abc import Sequence
from typing import Any

import numpy as np

from common.errors import UserError
from datasets.labels import LabelSet
from inference.scores.base import ScoredImage, dense, sparse

BINS = 15  # as in the paper
# Confidences are added as integers in 1/2**32: no float32 of at least 1/256, hence no largest of 255 probabilities, is
# changed by that, and their sum depends on no order.
UNIT = 32


class Calibration:
    """Element: rows [predicted class, bin, column, value]; column 0: pixels, 1: right ones, 2 and 3: sum of the
    confidences in 2**-16, and its remainder in 2**-32."""
    key = 'calibration'
    needs_confidence = True

    def __init__(self, labels: LabelSet, bins: int = BINS) -> None:
        self.labels, self.bins = labels, bins
        self.settings: dict[str, Any] = {'bins': bins}

    def measure(self, image: ScoredImage) -> np.ndarray:
        assert image.confidence is not None  # needs_confidence
        valid = image.label != self.labels.ignore_index
        classes, label, confidence = (array[valid] for array in (image.classes, image.label, image.confidence))
        if confidence.size and not (confidence.min() > 0 and confidence.max() <= 1 + 1e-5):
            raise UserError(f'expected confidences above 0 and up to 1, found {confidence.min()} to {confidence.max()}')
        fixed = np.ldexp(np.minimum(confidence, 1).astype(np.float64), UNIT).astype(np.int64)
        bins = np.maximum(fixed * self.bins - 1, 0) >> UNIT
        key = classes.astype(np.int64) * self.bins + bins
        size = self.labels.num_classes * self.bins

        def count(keys: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
            return np.bincount(keys, weights, size).astype(np.int64).reshape(-1, self.bins)

        # In two halves: as floats, which bincount adds, they are exact for 2**37 pixels.
        return sparse(np.stack([count(key), count(key[classes == label]), count(key, fixed >> 16),
                                count(key, fixed & 0xffff)], axis=2))

    def total(self, elements: Sequence[np.ndarray], matrix: np.ndarray) -> dict[str, Any]:
        """{'ece', 'accuracy', 'confidence', 'pixels', 'bins': [{'low', 'high', 'pixels', 'accuracy', 'confidence'}],
        'classes': {name: {'ece', 'accuracy', 'confidence', 'pixels'}}}; of a class: over the pixels predicted as it.
        """
        shape = self.labels.num_classes, self.bins, 4
        counts = np.zeros(shape, np.int64)
        for element in elements:
            counts += dense(element, shape)
        every = counts.sum(axis=0)
        bins = [{'low': i / self.bins, 'high': (i + 1) / self.bins, **_means(every[i:i + 1])}
                for i in range(self.bins)]
        return {**_means(every), 'ece': _error(every), 'bins': bins,
                'classes': {name: {**_means(part), 'ece': _error(part)}
                            for name, part in zip(self.labels.names, counts)}}

    def text(self, total: dict[str, Any]) -> str:
        return (f'calibration error (ECE, {self.bins} bins): {100 * total["ece"]:.2f}%  '
                f'mean confidence: {100 * total["confidence"]:.2f}%')


def _means(counts: np.ndarray) -> dict[str, Any]:
    """Of counts (bins, 4): pixels, accuracy and mean confidence, NaN without pixels."""
    pixels, right, high, low = (int(value) for value in counts.sum(axis=0))
    nan = float('nan')
    return {'pixels': pixels, 'accuracy': right / pixels if pixels else nan,
            'confidence': ((high << 16) + low) / (pixels << UNIT) if pixels else nan}


def _error(counts: np.ndarray) -> float:
    """ECE of counts (bins, 4), NaN without pixels."""
    pixels = int(counts[:, 0].sum())
    bins = [_means(counts[i:i + 1]) for i in range(len(counts)) if counts[i, 0]]
    return sum(part['pixels'] * abs(part['accuracy'] - part['confidence']) for part in bins) / pixels \
        if pixels else float('nan')
