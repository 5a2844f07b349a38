"""What a split holds, counted from the histograms of its labels: classes, label coverage, sizes."""
from collections import Counter

import numpy as np

RARE_PIXELS, RARE_IMAGES = 0.01, 0.1  # a class is rare below this share of the labelled pixels, or of the images
BINS = 20  # of the label coverage
QUANTILES = {'least': 0, 'lower_quartile': 0.25, 'median': 0.5, 'upper_quartile': 0.75, 'most': 1}


class SplitStatistics:
    """Takes one image after the other; summary() is what the reports show."""

    def __init__(self, names):
        self._names = names
        self._pixels = np.zeros(len(names), np.int64)
        self._images = np.zeros(len(names), np.int64)
        self._void = 0
        self._stems, self._coverage, self._classes = [], [], []
        self._sizes = Counter()

    def add_image(self, size):
        """size: (H, W)."""
        self._sizes[tuple(size)] += 1

    def add_label(self, stem, counts):
        """counts: (256,) pixels of every value; what is no class counts as void."""
        pixels = counts[:len(self._names)].astype(np.int64)
        total = int(counts.sum(dtype=np.int64))
        self._pixels += pixels
        self._images += pixels > 0
        self._void += total - int(pixels.sum())
        self._stems.append(stem)
        self._coverage.append(pixels.sum() / total)
        self._classes.append(np.count_nonzero(pixels))

    def summary(self):
        """Plain numbers for JSON. Shares of pixels are of the labelled ones, shares of images of those with a label.

        rare: classes below RARE_PIXELS or RARE_IMAGES that occur; absent: those that do not. Both are empty where
        nothing is labelled at all. median_image: the image whose share of labelled pixels is the (lower) median one.
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

    def _median_size(self):
        if not self._sizes:
            return None
        sizes, numbers = zip(*self._sizes.items())
        return np.median(np.repeat(sizes, numbers, axis=0), axis=0).tolist()

    def _quantiles(self, coverage):
        if not coverage.size:
            return None
        labelled = int(self._pixels.sum())
        return {'pixels': labelled / (labelled + self._void),
                **dict(zip(QUANTILES, np.quantile(coverage, list(QUANTILES.values())).tolist()))}
