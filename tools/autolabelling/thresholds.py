"""Which pixels of a prediction become a label: confidences in 1/255, thresholds per class, and what they leave.

A histogram is int64 (K, 256): pixels predicted as class i (row, train id) with confidence v/255 (column v, rounded
down). A level is the smallest v that a class keeps; its effective threshold is level / 255.
"""
import difflib
import math

import numpy as np

from common.errors import UserError
from inference import metrics


def class_thresholds(items, names):
    """{name: threshold} of flags NAME=THRESHOLD. ValueError for an unknown name or a number that is none of 0..1."""
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


def check_share(flag, value, item=None):
    """The value, if it is in 0..1; else ValueError that names the flag."""
    if not 0 <= value <= 1:
        raise UserError(f'--{flag} {value if item is None else item}: expected a number of 0..1, found '
                         f'{value if item is None else item.rpartition("=")[2]}; 0.9 is usual for thresholds')
    return value


def levels(threshold, by_class, names):
    """int (K,): the level of each class. Confidences were rounded down, so none below the threshold reaches it."""
    return np.array([math.ceil(by_class.get(name, threshold) * 255) for name in names])


def lowered_to_budget(level, histogram, share):
    """The levels, each lowered as far as is needed to keep `share` (0..1) of the pixels predicted as that class.

    Class by class: min(level, the largest v with sum(histogram[v:]) >= share * sum(histogram)); classes that were never
    predicted keep theirs. A quantile per class is how class-balanced self-training (Zou et al., ECCV 2018) chooses
    pseudo-labels; unlike there, no threshold is raised.
    """
    at_least = histogram[:, ::-1].cumsum(axis=1)[:, ::-1]  # non-increasing along a row
    enough = at_least >= share * at_least[:, :1] - 1e-6
    largest = 255 - np.argmax(enough[:, ::-1], axis=1)
    return np.where(at_least[:, 0] > 0, np.minimum(level, largest), level)


def summary(histogram, level, names, everything=None, kept=None):
    """Plain numbers for autolabel.json and table().

    everything, kept: int64 (K, K) confusion matrices against ground truth, of all pixels and of those kept.
    Returns {'pixels', 'kept', 'classes': {name: {'predicted', 'threshold', 'kept'}}}: predicted is the share of all
    pixels, kept that of the pixels predicted as the class. With matrices also, over pixels with ground truth:
    'agreement' (share of kept pixels whose label is right; of a class: its precision), 'coverage' (share that is kept;
    of a class: of its true pixels), 'iou' or 'miou' of the kept pixels, and 'agreement_of_all' and 'miou_of_all' before
    thresholds. None where undefined.
    """
    predicted = histogram.sum(axis=1)
    left = np.array([row[v:].sum() for row, v in zip(histogram, level)])
    result = {'pixels': int(predicted.sum()), 'kept': _ratio(left.sum(), predicted.sum()), 'classes': {
        name: {'predicted': _ratio(predicted[i], predicted.sum()), 'threshold': level[i] / 255,
               'kept': _ratio(left[i], predicted[i])} for i, name in enumerate(names)}}
    if everything is not None:
        scores, before = metrics.scores(kept), metrics.scores(everything)
        result.update(pixels_with_ground_truth=int(everything.sum()), agreement=_plain(scores['accuracy']),
                      miou=_plain(scores['miou']), coverage=_ratio(kept.sum(), everything.sum()),
                      agreement_of_all=_plain(before['accuracy']), miou_of_all=_plain(before['miou']))
        for i, name in enumerate(names):
            result['classes'][name].update(
                agreement=_plain(scores['precision'][i]), iou=_plain(scores['iou'][i]),
                coverage=_ratio(kept[i].sum(), everything[i].sum()))
    return result


def table(result):
    """A summary as text: a line per class and one of all; a dash where there is nothing to divide by."""
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


def _ratio(part, whole):
    return float(part / whole) if whole else None


def _plain(value):
    return float(value) if np.isfinite(value) else None
