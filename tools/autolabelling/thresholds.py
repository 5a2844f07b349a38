"""Which pixels of a prediction become labels: confidences in 1/255, thresholds per class, and the pixels they keep.

A histogram is int64 (K, 256): pixels predicted as class i (row, train id) with confidence v/255 (column v, rounded
down). A level is the smallest v that a class keeps; its effective threshold is level / 255.
"""
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from common.errors import UserError
from common.numbers import finite_or_none
from inference import metrics


def class_thresholds(items: Iterable[str], names: Sequence[str]) -> dict[str, float]:
    """{name: threshold} of flags NAME=THRESHOLD. Raises UserError for unknown names and numbers outside 0..1."""
    result = {}
    for item in items:
        name, equals, text = item.rpartition('=')
        if not equals:
            raise UserError(f'--class_thresholds {item}: expected NAME=THRESHOLD, found no "="; for example '
                             f'"{names[-1]}=0.7"')
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3)
            raise UserError(f'--class_thresholds {item}: expected the name of a class, found {name!r}; '
                             + (f'did you mean {" or ".join(near)}?' if near else f'valid names: {", ".join(names)}'))
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        result[name] = check_share('class_thresholds', value, item)
    return result


def check_share(flag: str, value: float, item: str | None = None) -> float:
    """The value, if it is in 0..1. Otherwise raises UserError, which names the flag and `item`, its text."""
    if not 0 <= value <= 1:
        raise UserError(f'--{flag} {value if item is None else item}: expected a number of 0..1, found '
                         f'{value if item is None else item.rpartition("=")[2]}; 0.9 is usual for thresholds')
    return value


def levels(threshold: float, by_class: Mapping[str, float], names: Sequence[str]) -> np.ndarray:
    """int64 (K,), the level of each class. As confidences are rounded down, none below the threshold reaches it."""
    return np.array([math.ceil(by_class.get(name, threshold) * 255) for name in names])


def lowered_to_budget(level: np.ndarray, histogram: np.ndarray, share: float) -> np.ndarray:
    """The levels, int64 (K,), each lowered as far as needed to keep `share` (0..1) of the pixels of its class.

    For each class: min(level, the largest v with sum(histogram[v:]) >= share * sum(histogram)); classes that were never
    predicted keep their level. Class-balanced self-training (Zou et al., ECCV 2018) also chooses pseudo-labels by a
    quantile per class; unlike there, thresholds are never raised.
    """
    at_least = histogram[:, ::-1].cumsum(axis=1)[:, ::-1]  # non-increasing along a row
    enough = at_least >= share * at_least[:, :1] - 1e-6
    largest = 255 - np.argmax(enough[:, ::-1], axis=1)
    return np.where(at_least[:, 0] > 0, np.minimum(level, largest), level)


def summary(histogram: np.ndarray, level: np.ndarray, names: Sequence[str], everything: np.ndarray | None = None,
            kept: np.ndarray | None = None) -> dict[str, Any]:
    """Plain numbers for autolabel.json and table().

    everything, kept: int64 (K, K) confusion matrices with ground truth, of all pixels and of those kept.
    Returns {'pixels', 'kept', 'classes': {name: {'predicted', 'threshold', 'kept'}}}: predicted is the share of all
    pixels, kept that of the pixels predicted as the class. With matrices also, for pixels with ground truth:
    'agreement' (share of kept pixels whose label is correct; of a class: its precision), 'coverage' (share of pixels
    that are kept; of a class: of its true pixels), 'iou' or 'miou' of the kept pixels, and 'agreement_of_all' and
    'miou_of_all' before thresholds. Undefined values are None.
    """
    predicted = histogram.sum(axis=1)
    left = np.array([row[v:].sum() for row, v in zip(histogram, level)])
    result: dict[str, Any] = {'pixels': int(predicted.sum()), 'kept': _ratio(left.sum(), predicted.sum()), 'classes': {
        name: {'predicted': _ratio(predicted[i], predicted.sum()), 'threshold': level[i] / 255,
               'kept': _ratio(left[i], predicted[i])} for i, name in enumerate(names)}}
    if everything is not None and kept is not None:
        scores, before = metrics.scores(kept), metrics.scores(everything)
        result.update(pixels_with_ground_truth=int(everything.sum()), agreement=finite_or_none(scores['accuracy']),
                      miou=finite_or_none(scores['miou']), coverage=_ratio(kept.sum(), everything.sum()),
                      agreement_of_all=finite_or_none(before['accuracy']), miou_of_all=finite_or_none(before['miou']))
        for i, name in enumerate(names):
            result['classes'][name].update(
                agreement=finite_or_none(scores['precision'][i]), iou=finite_or_none(scores['iou'][i]),
                coverage=_ratio(kept[i].sum(), everything[i].sum()))
    return result


def table(result: Mapping[str, Any]) -> str:
    """A summary as text: a line per class and one for all; undefined values are dashes."""
    columns = ['predicted', 'threshold', 'kept'] + ['agreement', 'iou', 'coverage'] * ('agreement' in result)
    titles = {'iou': 'IoU'}
    width = max(map(len, [*result['classes'], 'class']))
    lines = [f'{"class":<{width}}  ' + ' '.join(f'{titles.get(c, c):>9}' for c in columns)]
    whole = {**result, 'predicted': 1 if result['pixels'] else None, 'threshold': None, 'iou': result.get('miou')}
    for name, row in [*result['classes'].items(), ('all', whole)]:
        cells = (row[c] if row[c] is None or c == 'threshold' else 100 * row[c] for c in columns)
        lines.append(f'{name:<{width}}  ' + ' '.join(
            f'{"-":>9}' if cell is None else f'{cell:9.{4 if c == "threshold" else 2}f}'
            for c, cell in zip(columns, cells)))
    if 'agreement' in result and result['agreement_of_all'] is not None:
        lines.append(f'agreement and IoU: of the pixels kept; without thresholds {100 * result["agreement_of_all"]:.2f}'
                     f' and {100 * result["miou_of_all"]:.2f}. coverage: share of the true pixels that is kept')
    return '\n'.join(lines)


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
