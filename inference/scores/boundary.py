"""How well the contours of classes are met: boundary F-score, and IoU in a narrow band around the contours (trimap).

A boundary pixel of a class belongs to it and has a 4-neighbour of another class; what touches void only is none, and
void pixels of the ground truth count nowhere, neither in it nor in the prediction.

Boundary F-score of a class in an image (Csurka, Larlus, Perronnin 2013, "What is a good evaluation measure for semantic
segmentation?"; the contour accuracy F of Perazzi et al. 2016, DAVIS, with exact distances in place of dilation):
precision is the share of the predicted boundary pixels that are at most d pixels (Euclidean) from one of the ground
truth, recall the opposite, F = 2 * precision * recall / (precision + recall). The score of a class is the mean over the
images where it has a boundary in ground truth or prediction.

Trimap IoU (Krähenbühl, Koltun 2011): the IoU of all pixels at most d pixels from a boundary pixel of the ground truth,
of the counts of all images.
"""
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from common.errors import UserError
from datasets.labels import LabelSet
from inference import metrics
from inference.scores.base import ScoredImage, dense, mean, sparse

PIXELS = (3, 5, 9, 12)  # as Takikawa et al. 2019 (Gated-SCNN) on Cityscapes
LARGEST = 1000


class Boundary:
    """Element: rows [number of the distance, class, column, pixels]; column 0: predicted boundary pixels, 1: those near
    the ground truth's, 2: the ground truth's, 3: those near predicted ones, 4 + j: band pixels predicted as class j.

    pixels: the distances d, at least 1.
    """
    key = 'boundary'
    needs_confidence = False

    def __init__(self, labels: LabelSet, pixels: Sequence[int] = PIXELS) -> None:
        if not pixels or sorted(set(pixels)) != list(pixels) or not 1 <= pixels[0] <= pixels[-1] <= LARGEST:
            raise UserError(f'--boundary: expected rising distances of 1 to {LARGEST} pixels, found '
                            f'{" ".join(map(str, pixels))}; for example --boundary 3 5 9 12')
        self.labels, self.pixels = labels, tuple(pixels)
        self.settings: dict[str, Any] = {'pixels': list(pixels)}

    def measure(self, image: ScoredImage) -> np.ndarray:
        ignore, num_classes = self.labels.ignore_index, self.labels.num_classes
        valid = image.label != ignore
        truth, guess = boundary_map(image.label, valid), boundary_map(image.classes, valid)
        table = np.zeros((len(self.pixels), num_classes, 4 + num_classes), np.int64)
        for i in np.union1d(image.label[truth], image.classes[guess]):
            ours, theirs = guess & (image.classes == i), truth & (image.label == i)
            for column, (of, to) in enumerate(((ours, theirs), (theirs, ours))):
                near = _distances(of, to, self.pixels[-1])
                table[:, i, 2 * column] = near.size
                table[:, i, 2 * column + 1] = [(near <= pixels).sum() for pixels in self.pixels]
        if truth.any():
            away = _to(truth)
            for row, pixels in zip(table, self.pixels):
                band = valid & (away <= pixels)
                row[:, 4:] = metrics.confusion_matrix(image.label[band], image.classes[band], num_classes, ignore)
        return sparse(table)

    def total(self, elements: Sequence[np.ndarray], matrix: np.ndarray) -> dict[str, Any]:
        """{'pixels': the distances, 'classes': {name: {'f': [...], 'trimap_iou': [...]}}, 'mean': {'f': [...],
        'trimap_iou': [...]}}, a value for every distance, NaN where a class has no boundary."""
        shape = len(self.pixels), self.labels.num_classes, 4 + self.labels.num_classes
        sums = np.zeros(shape, np.int64)
        scores: list[np.ndarray] = []
        for element in elements:
            table = dense(element, shape)
            sums += table
            scores.append(f_score(table[..., :4]))
        f = np.array([[mean([image[d, i].item() for image in scores]) for d in range(shape[0])]
                      for i in range(shape[1])])
        iou = np.array([metrics.scores(table[:, 4:])['iou'] for table in sums]).T
        means = {key: [mean(column.tolist()) for column in values.T] for key, values in (('f', f), ('trimap_iou', iou))}
        return {'pixels': list(self.pixels), 'mean': means, 'classes': {
            name: {'f': f[i].tolist(), 'trimap_iou': iou[i].tolist()} for i, name in enumerate(self.labels.names)}}

    def text(self, total: dict[str, Any]) -> str:
        rows = {**total['classes'], 'mean': total['mean']}
        return metrics.columns(rows, {f'{title} {pixels}px': [row[key][d] for row in rows.values()] for title, key in (
            ('F', 'f'), ('trimap', 'trimap_iou')) for d, pixels in enumerate(self.pixels)}, 'boundary')


def boundary_map(classes: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """bool (H, W): valid pixels with a valid 4-neighbour of another class. classes: integer (H, W); valid: bool."""
    result = np.zeros(classes.shape, bool)
    for a, b in (((slice(None, -1), slice(None)), (slice(1, None), slice(None))),
                 ((slice(None), slice(None, -1)), (slice(None), slice(1, None)))):
        differs = (classes[a] != classes[b]) & valid[a] & valid[b]
        result[a] |= differs
        result[b] |= differs
    return result


def f_score(counts: np.ndarray) -> np.ndarray:
    """float64 (...) of counts (..., 4) as in an element; NaN without any boundary, 0 if only one of both has some."""
    predicted, hit, actual, found = np.moveaxis(counts.astype(np.float64), -1, 0)
    precision, recall = hit / np.maximum(predicted, 1), found / np.maximum(actual, 1)
    both = precision + recall
    f = np.where(both > 0, 2 * precision * recall / np.where(both > 0, both, 1), 0)
    return np.where(predicted + actual > 0, f, np.nan)


def _distances(points: np.ndarray, targets: np.ndarray, most: int) -> np.ndarray:
    """Distances of each point to the nearest target, in pixels, exact up to `most`. Both bool (H, W)."""
    rows, columns = (np.flatnonzero(points.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return np.zeros(0)
    # Of the part of the image around the points: for most classes a small one.
    part = tuple(slice(max(0, int(at[0]) - most), int(at[-1]) + most + 1) for at in (rows, columns))
    return _to(targets[part])[points[part]] if targets[part].any() else np.full(int(points.sum()), np.inf)


def _to(targets: np.ndarray) -> np.ndarray:
    """float32 (H, W): Euclidean distance of every pixel to the nearest target, in pixels."""
    return cv2.distanceTransform((~targets).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
