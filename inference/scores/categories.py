"""IoU of groups of classes, as in the official Cityscapes evaluation (getIouScoreForCategory)."""
from typing import Any

import numpy as np

from datasets.labels import LabelSet
from inference.scores.base import mean


def grouped(matrix: np.ndarray, labels: LabelSet) -> tuple[list[str], np.ndarray]:
    """The categories in the order of their first class, and the confusion matrix (C, C) of categories."""
    names = list(dict.fromkeys(labels.categories))
    member = np.array([[category == name for category in labels.categories] for name in names], np.int64)
    return names, member @ matrix @ member.T


def category_iou(matrix: np.ndarray, labels: LabelSet) -> dict[str, Any]:
    """{'iou': {category: float, NaN where it occurs nowhere}, 'mean': float}."""
    names, counts = grouped(matrix, labels)
    iou = {}
    for i, name in enumerate(names):
        union = int(counts[i].sum() + counts[:, i].sum() - counts[i, i])
        iou[name] = int(counts[i, i]) / union if union else float('nan')
    return {'iou': iou, 'mean': mean(list(iou.values()))}
