"""Instance-level IoU (iIoU) of the official Cityscapes evaluation (cityscapesscripts, evalPixelLevelSemanticLabeling).

Each pixel of an object counts with the ratio of its class's mean object size to the size of the object, so that a far
away car is worth as much as a near one: iIoU = iTP / (iTP + FP + iFN) (Cordts et al., CVPR 2016). FP is not
weighted: predictions have no objects. The objects are those of gtFine's instanceIds.
"""
import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from common.errors import FileError, UserError
from datasets.labels import CITYSCAPES, LabelSet
from inference import metrics
from inference.scores.base import ScoredImage, mean
from inference.scores.categories import category_iou, grouped

# Mean pixels of an object in Cityscapes' training set, as the official evaluation has them.
MEAN_SIZE = {'person': 3462.4756337644, 'rider': 3930.4788056518, 'car': 12794.0202738185, 'truck': 27855.1264367816,
             'bus': 35732.1511111111, 'train': 67583.7075812274, 'motorcycle': 6298.7200839748,
             'bicycle': 4672.3249222261}
PER_CLASS = 1000  # instance id = label id * 1000 + number of the object; below that the pixel belongs to no object
LABEL, INSTANCES = '_gtFine_labelTrainIds.png', '_gtFine_instanceIds.png'


class Instances:
    """Element: a row [train id, pixels, pixels predicted as it, pixels predicted as its category] for every object, in
    the order of the instance ids: in which the official evaluation adds them.

    labels: Cityscapes'. files: (image, label) of every image, beside whose label lies the image of instance ids.
    UserError for other classes, FileError if there are no instance ids.
    """
    key = 'official'
    needs_confidence = False

    def __init__(self, labels: LabelSet, files: Sequence[Sequence[str]]) -> None:
        if (labels.names, labels.label_ids) != (CITYSCAPES.names, CITYSCAPES.label_ids):
            raise UserError(f'--official: expected the {len(CITYSCAPES.names)} classes of Cityscapes, found '
                            f'{len(labels.names)} others; leave it out')
        self.labels = labels
        self.paths = [entry[1].removesuffix(LABEL) + INSTANCES for entry in files]
        missing = [path for path in self.paths if not os.path.isfile(path)]
        if missing:
            raise FileError(f'{missing[0]}: expected the instance ids of --official, found none for {len(missing)} of '
                            f'{len(self.paths)} images; unpack gtFine_trainvaltest.zip again, or leave --official out')
        self.settings: dict[str, Any] = {}

    def measure(self, image: ScoredImage) -> np.ndarray:
        path = self.paths[image.index]
        ids = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        if ids is None or ids.dtype != np.uint16 or ids.shape != image.classes.shape:
            found = 'none that can be decoded' if ids is None else f'{ids.dtype} {ids.shape}'
            raise UserError(f'{path}: expected a 16 bit image of instance ids of the size {image.classes.shape}, found '
                            f'{found}; unpack the file from its archive again')
        inside = ids > PER_CLASS
        classes = image.classes[inside]
        objects, belongs, pixels = np.unique(ids[inside], return_inverse=True, return_counts=True)
        label_ids = objects.astype(np.int64) // PER_CLASS
        if label_ids.max(initial=0) > max(self.labels.label_ids):
            raise UserError(f'{path}: expected label id * {PER_CLASS} + number, found {objects.max()}; unpack the file '
                            'from its archive again')
        train_ids = self.labels.label_id_to_train_id()[label_ids].astype(np.int64)
        group = {name: number for number, name in enumerate(dict.fromkeys(self.labels.categories))}
        groups = np.full(256, -1)
        groups[:self.labels.num_classes] = [group[name] for name in self.labels.categories]
        right = np.bincount(belongs[classes == train_ids[belongs]], minlength=len(objects))
        near = np.bincount(belongs[groups[classes] == groups[train_ids][belongs]], minlength=len(objects))
        # Caravans and trailers have objects, too, but are void in the evaluation.
        return np.stack([train_ids, pixels, right, near], axis=1)[train_ids != self.labels.ignore_index]

    def total(self, elements: Sequence[np.ndarray], matrix: np.ndarray) -> dict[str, Any]:
        """{'classes': {name: {'iou', 'iiou'}}, 'categories': {name: {'iou', 'iiou'}}, 'mean': {'iou', 'iiou',
        'category_iou', 'category_iiou'}}; iiou is NaN for what has no instances."""
        names = self.labels.names
        categories, counts = grouped(matrix, self.labels)
        whole = [name for name in categories if all(
            name != category or class_name in MEAN_SIZE
            for class_name, category in zip(names, self.labels.categories))]
        weighted = {name: [0.0, 0.0] for name in (*MEAN_SIZE, *whole)}  # [right, wrong]
        for train_id, pixels, right, near in np.concatenate(elements).tolist():
            name, category = names[train_id], self.labels.categories[train_id]
            weight = MEAN_SIZE[name] / pixels
            for key, hits in ((name, right), (category, near)):
                weighted[key][0] += hits * weight
                weighted[key][1] += (pixels - hits) * weight

        def iiou(name: str, matrix: np.ndarray, i: int) -> float:
            if name not in weighted:
                return float('nan')
            right, wrong = weighted[name]
            union = right + int(matrix[:, i].sum() - matrix[i, i]) + wrong
            return right / union if union else float('nan')

        iou = metrics.scores(matrix)['iou'].tolist()
        category = category_iou(matrix, self.labels)['iou']
        classes = {name: {'iou': iou[i], 'iiou': iiou(name, matrix, i)} for i, name in enumerate(names)}
        groups = {name: {'iou': category[name], 'iiou': iiou(name, counts, i)} for i, name in enumerate(categories)}
        means = {prefix + key: mean([entry[key] for entry in entries.values()])
                 for prefix, entries in (('', classes), ('category_', groups)) for key in ('iou', 'iiou')}
        return {'classes': classes, 'categories': groups, 'mean': means}

    def text(self, total: dict[str, Any]) -> str:
        parts = []
        for head, key, prefix in (('class', 'classes', ''), ('category', 'categories', 'category_')):
            rows = {**total[key], 'mean': {name: total['mean'][prefix + name] for name in ('iou', 'iiou')}}
            parts.append(metrics.columns(rows, {title: [row[name] for row in rows.values()] for title, name in
                                                (('IoU', 'iou'), ('iIoU', 'iiou'))}, f'official {head}'))
        return '\n\n'.join(parts)
