"""How well the contours of classes are met: boundary F-score, and IoU in a narrow band around the contours (trimap).

A boundary pixel of a class belongs to it and has a 4-neighbour of another class; what touches void only is none, and
void pixels of the ground truth count nowhere, neither in it nor in the prediction.

Boundary F-score of a class in an image (Csurka, Larlus, Perronnin 2013, "What is a good evaluation measure for semantic
segmentation?"; the contour accuracy F of Perazzi et al. 2016, DAVIS): precision is the share of the predicted boundary
pixels that are at most d pixels (Euclidean) from one of the ground truth, recall the opposite, F = 2 * precision *
recall / (precision + recall). The score of a class is the mean over the images where it has a boundary in ground truth
or prediction.

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
LARGEST = 50  # the work grows with its square
NOWHERE = -1  # the class of what is no boundary pixel


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
        truth, guess = (np.where(boundary_map(classes, valid), classes.astype(np.int16), np.int16(NOWHERE))
                        for classes in (image.label, image.classes))
        table = np.zeros((len(self.pixels), num_classes, 4 + num_classes), np.int64)
        for column, (of, to) in enumerate(((guess, truth), (truth, guess))):
            table[:, :, 2 * column] = np.bincount(of[of != NOWHERE], minlength=num_classes)
            table[:, :, 2 * column + 1] = near(of, to, self.pixels, num_classes)
        for row, pixels in zip(table, self.pixels):
            band = valid & (cv2.dilate((truth != NOWHERE).view(np.uint8), disk(pixels).view(np.uint8)) > 0)
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


def disk(pixels: int) -> np.ndarray:
    """bool (2 * pixels + 1, 2 * pixels + 1): the offsets that are at most so many pixels long."""
    steps = np.arange(-pixels, pixels + 1) ** 2
    return steps[:, None] + steps <= pixels**2


def near(of: np.ndarray, to: np.ndarray, pixels: Sequence[int], num_classes: int) -> np.ndarray:
    """int64 (distances, K): points of `of` with a point of the same class in `to` at most so many pixels away.

    of, to: int16 (H, W), the class of a point, NOWHERE elsewhere. pixels: rising distances. Rings of growing distance
    are searched around the points that are still alone: most have company within a few steps, where a distance
    transform per class and map would visit every pixel.
    """
    most = pixels[-1]
    padded = np.pad(to, most, constant_values=NOWHERE).ravel()
    width = of.shape[1] + 2 * most
    rows, columns = np.nonzero(of != NOWHERE)
    classes, where = of[rows, columns], (rows + most) * width + columns + most
    found = np.zeros((len(pixels), num_classes), np.int64)
    steps = np.arange(-most, most + 1)
    squared = steps[:, None] ** 2 + steps**2
    for ring in np.unique(squared[squared <= most**2]):
        hit = np.zeros(len(where), bool)
        for dy, dx in (np.argwhere(squared == ring) - most).tolist():
            hit |= padded[where + (dy * width + dx)] == classes
        found[np.searchsorted(np.square(pixels), ring)] += np.bincount(classes[hit], minlength=num_classes)
        where, classes = where[~hit], classes[~hit]
    return found.cumsum(axis=0)
