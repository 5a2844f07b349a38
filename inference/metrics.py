"""Scores computed as in the official Cityscapes evaluation (cityscapesscripts, evalPixelLevelSemanticLabeling)."""
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import paddle

from common.errors import UserError
from common.numbers import finite_or_none
from inference.scores.base import mean


def confusion_matrix(label: np.ndarray, prediction: np.ndarray, num_classes: int, ignore_index: int) -> np.ndarray:
    """int64 (num_classes, num_classes): pixels of class i (row, ground truth) that were predicted as j (column).

    label, prediction: integer arrays of the same shape, train ids. Pixels whose label is ignore_index do not count.
    """
    if label.shape != prediction.shape:
        raise UserError(f'expected a prediction of the size of the label {label.shape}, found {prediction.shape}')
    valid = label != ignore_index
    if prediction.size and not 0 <= prediction.min() <= prediction.max() < num_classes:
        raise UserError(f'expected predictions 0..{num_classes - 1}, found {prediction.min()} to {prediction.max()}; '
                        'predict train ids')
    pairs = label[valid].astype(np.int64) * num_classes + prediction[valid]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def check_label(label: np.ndarray, num_classes: int, ignore_index: int) -> None:
    """UserError for an integer label (H, W) with values that are neither a class nor ignore_index."""
    wrong = label[(label != ignore_index) & ((label < 0) | (label >= num_classes))]
    if wrong.size:
        raise UserError(f'expected train ids 0..{num_classes - 1} and {ignore_index}, found '
                        f'{", ".join(map(str, np.unique(wrong)[:8]))}; label ids must be converted to train ids first '
                        '(tools/convert_cityscapes.py)')


STRIP = 1 << 18  # pixels counted at once on a device, so that float32 holds every number


@paddle.no_grad()
def confusion_on_device(label: paddle.Tensor, prediction: paddle.Tensor, num_classes: int,
                        ignore_index: int) -> paddle.Tensor:
    """As `confusion_matrix` of two tensors, an int64 tensor; nothing is copied to the host.

    A product of one-hot matrices: Paddle's bincount on a GPU reads the range of its input back.
    """
    if label.shape != prediction.shape:
        raise UserError(f'expected a prediction of the size of the label {tuple(label.shape)}, found '
                        f'{tuple(prediction.shape)}')
    classes = paddle.arange(num_classes, dtype='int64')
    total = paddle.zeros([num_classes, num_classes], 'int64')
    label, prediction = label.flatten().astype('int64'), prediction.flatten().astype('int64')
    for start in range(0, label.shape[0], STRIP):
        rows, columns = label[start:start + STRIP], prediction[start:start + STRIP]
        valid = (rows != ignore_index).unsqueeze(0)
        actual = ((classes.unsqueeze(1) == rows.unsqueeze(0)) & valid).astype('float32')
        predicted = (classes.unsqueeze(0) == columns.unsqueeze(1)).astype('float32')
        total += paddle.matmul(actual, predicted).astype('int64')
    return total


def scores(matrix: np.ndarray) -> dict[str, Any]:
    """Per-class and mean scores of a confusion matrix, all in [0, 1].

    Returns a dict with 'iou', 'precision' and 'recall', float64 (K,), NaN where undefined (0 / 0), and the floats
    'miou' (mean over the classes that occur in prediction or ground truth) and 'accuracy' (of pixels).
    """
    true = np.diag(matrix).astype(np.float64)
    actual, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid='ignore', divide='ignore'):
        iou = true / (actual + predicted - true)
        precision, recall = true / predicted, true / actual
    return {'iou': iou, 'precision': precision, 'recall': recall,
            'miou': mean(iou.tolist()),
            'accuracy': float(true.sum() / matrix.sum()) if matrix.sum() else float('nan')}


def table(result: Mapping[str, Any], names: Sequence[str]) -> str:
    """The scores as text: one line per class, a dash where undefined."""
    return columns(names, {'IoU': result['iou'], 'precision': result['precision'], 'recall': result['recall']})


def columns(names: Iterable[str], values: Mapping[str, Sequence[float]], head: str = 'class') -> str:
    """Lines of named percentages, `values` by the column's title; a dash for NaN."""
    def percent(value: float, width: int) -> str:
        return f'{100 * value:{width}.2f}' if np.isfinite(value) else f'{"-":>{width}}'

    names = list(names)
    width = max(map(len, [head, *names]))
    widths = [max(9, len(title)) for title in values]
    lines = [f'{head:<{width}}  ' + ' '.join(f'{title:>{w}}' for title, w in zip(values, widths))]
    lines += [f'{name:<{width}}  ' + ' '.join(percent(column[i], w) for column, w in zip(values.values(), widths))
              for i, name in enumerate(names)]
    return '\n'.join(lines)


def as_json(result: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The scores in plain types: {'miou', 'accuracy', 'classes': {name: {'iou', 'precision', 'recall'}}}, NaN null."""
    return {'miou': finite_or_none(result['miou']), 'accuracy': finite_or_none(result['accuracy']),
            'classes': {name: {key: finite_or_none(result[key][i]) for key in ('iou', 'precision', 'recall')}
                        for i, name in enumerate(names)}}
