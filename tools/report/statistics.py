"""Statistics of a split from the histograms of its labels: classes, label coverage, sizes."""
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

RARE_PIXELS, RARE_IMAGES = 0.01, 0.1  # a class is rare below this share of the labelled pixels, or of the images
BINS = 20  # of the label coverage
QUANTILES = {'least': 0, 'lower_quartile': 0.25, 'median': 0.5, 'upper_quartile': 0.75, 'most': 1}


class SplitStatistics:
    """Collects one image after the other; summary() returns what the reports show."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._pixels = np.zeros(len(names), np.int64)
        self._images = np.zeros(len(names), np.int64)
        self._void = 0
        self._stems: list[str] = []
        self._coverage: list[float] = []
        self._classes: list[int] = []
        self._sizes: Counter[tuple[int, int]] = Counter()

    def add_image(self, size: tuple[int, int]) -> None:
        """size: (H, W)."""
        self._sizes[size] += 1

    def add_label(self, stem: str, counts: np.ndarray) -> None:
        """counts: float32 (256,), pixels of each value; values that are not classes count as void."""
        pixels = counts[:len(self._names)].astype(np.int64)
        total = int(counts.sum(dtype=np.int64))
        self._pixels += pixels
        self._images += pixels > 0
        self._void += total - int(pixels.sum())
        self._stems.append(stem)
        self._coverage.append(pixels.sum() / total)
        self._classes.append(np.count_nonzero(pixels))

    def summary(self) -> dict[str, Any]:
        """Plain numbers for JSON. Shares are those of the labelled pixels and of the labelled images.

        rare: classes below RARE_PIXELS or RARE_IMAGES that occur; absent: those that do not. Both are empty if nothing
        is labelled. median_image: the image whose share of labelled pixels is the (lower) median.
        """
        labelled, count = int(self._pixels.sum()), len(self._stems)
        classes = {}
        for name, pixels, images in zip(self._names, self._pixels.tolist(), self._images.tolist()):
            share, image_share = pixels / max(labelled, 1), images / max(count, 1)
            classes[name] = {'pixels': pixels, 'share': share, 'images': images, 'image_share': image_share,
                             'rare': images > 0 and (share < RARE_PIXELS or image_share < RARE_IMAGES)}
        coverage = np.array(self._coverage)
        return {
            'sizes': {f'{height}x{width}': n for (height, width), n in self._sizes.most_common()},
            'median_size': self._median_size(),
            'labelled_pixels': labelled,
            'void_pixels': self._void,
            'classes': classes,
            'rare': [name for name, entry in classes.items() if entry['rare']],
            'absent': [name for name, entry in classes.items() if labelled and not entry['images']],
            'coverage': self._quantiles(coverage),
            'coverage_histogram': np.histogram(coverage, BINS, (0, 1))[0].tolist(),
            'empty_labels': int((coverage == 0).sum()),
            'median_image': self._stems[int(np.argsort(coverage, kind='stable')[(count - 1) // 2])] if count else None,
            'median_classes': float(np.median(self._classes)) if count else None,
        }

    def _median_size(self) -> list[float] | None:
        if not self._sizes:
            return None
        sizes, numbers = zip(*self._sizes.items())
        return np.median(np.repeat(sizes, numbers, axis=0), axis=0).tolist()

    def _quantiles(self, coverage: np.ndarray) -> dict[str, float] | None:
        if not coverage.size:
            return None
        labelled = int(self._pixels.sum())
        return {'pixels': labelled / (labelled + self._void),
                **dict(zip(QUANTILES, np.quantile(coverage, list(QUANTILES.values())).tolist()))}
