"""The result of an evaluation as JSON, CSV and text."""
import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.numbers import finite_or_none
from datasets.labels import LabelSet
from inference import metrics
from inference.scores.base import Score, sparse

FORMATS = ('.json', '.csv')


def document(result: Mapping[str, Any], labels: LabelSet, scores: Sequence[Score] = ()) -> dict[str, Any]:
    """The result of inference.evaluator.evaluate in plain types, NaN as None; docs/evaluation.md lists its keys.

    With the images' scores, where the result has them: {'index', 'name', 'miou', 'accuracy', 'iou': [K],
    'confusion': rows [class, predicted class, pixels]}.
    """
    extra = {key: _plain(result[key]) for key in ('categories', *(score.key for score in scores)) if key in result}
    plain = {**metrics.as_json(result, labels.names), **extra, 'matrix': result['matrix'].tolist()}
    if 'images' in result:
        plain['images'] = [{**_plain({key: image[key] for key in ('index', 'name', 'miou', 'accuracy', 'iou')}),
                            'confusion': sparse(image['matrix']).tolist()} for image in result['images']]
    return plain


def to_json(data: Mapping[str, Any]) -> bytes:
    """JSON that people can read, too: rows of the matrix and images on a line each."""
    def lines(value: Any) -> str:
        if isinstance(value, list) and value and isinstance(value[0], list | dict):
            return '[\n' + ',\n'.join(f'  {json.dumps(item)}' for item in value) + '\n ]'
        if isinstance(value, dict) and any(isinstance(item, dict) for item in value.values()):
            entries = [f'  {json.dumps(key)}: {json.dumps(item)}' for key, item in value.items()]
            return '{\n' + ',\n'.join(entries) + '\n }'
        return json.dumps(value)

    return ('{\n' + ',\n'.join(f' {json.dumps(key)}: {lines(value)}' for key, value in data.items()) + '\n}\n').encode()


def classes_csv(data: Mapping[str, Any]) -> bytes:
    """A document's scores of classes, one line each, then the means and the categories; empty where undefined."""
    table: dict[str, dict[str, Any]] = {name: dict(values) for name, values in data['classes'].items()}
    for key, total in data.items():
        for name, values in total['classes'].items() if isinstance(total, dict) and 'classes' in total else ():
            for column, value in values.items():
                cells = dict(zip(total['pixels'], value)) if isinstance(value, list) else {'': value}
                table[name] |= {f'{key} {column} {at}'.strip(): cell for at, cell in cells.items()}
    rows = [['kind', 'name', *next(iter(table.values()))]]
    rows += [['class', name, *map(_cell, values.values())] for name, values in table.items()]
    rows.append(['mean', 'miou', _cell(data['miou'])])
    rows.append(['mean', 'accuracy', _cell(data['accuracy'])])
    if 'categories' in data:
        rows += [['category', name, _cell(value)] for name, value in data['categories']['iou'].items()]
        rows.append(['mean', 'category iou', _cell(data['categories']['mean'])])
    return _csv(rows)


def images_file(path: str | Path, data: Mapping[str, Any]) -> bytes:
    """Content of --per_image: the images of a document as JSON, or one line each as CSV, by the suffix of `path`.

    The column confusion of the CSV holds class:predicted class:pixels, separated by blanks.
    """
    if Path(path).suffix == '.json':
        return to_json({'classes': list(data['classes']), 'images': data['images']})
    rows = [['index', 'name', 'miou', 'accuracy', *(f'iou {name}' for name in data['classes']), 'confusion']]
    rows += [[image['index'], image['name'], *map(_cell, (image['miou'], image['accuracy'], *image['iou'])),
              ' '.join(':'.join(map(str, row)) for row in image['confusion'])] for image in data['images']]
    return _csv(rows)


def check_format(flag: str, path: str | Path) -> None:
    """UserError, which names the flag, for a path whose suffix is no format."""
    if Path(path).suffix not in FORMATS:
        raise UserError(f'{flag} {path}: expected a file name that ends in {" or ".join(FORMATS)}, found '
                        f'{Path(path).suffix or "no suffix"!r}; rename it')


def text(result: Mapping[str, Any], labels: LabelSet, scores: Sequence[Score] = ()) -> str:
    """The result as lines for the terminal; a dash where a value is undefined."""
    parts = [metrics.table(result, labels.names)]
    if 'categories' in result and not any(score.key == 'official' for score in scores):  # which prints them, too
        parts.append(metrics.columns(result['categories']['iou'], {'IoU': list(result['categories']['iou'].values())},
                                     'category'))
    parts += [score.text(result[score.key]) for score in scores]
    return '\n\n'.join(parts)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return finite_or_none(float(value))
    return value.item() if isinstance(value, np.generic) else value


def _cell(value: float | None) -> Any:
    return '' if value is None or math.isnan(value) else value


def _csv(rows: Sequence[Sequence[Any]]) -> bytes:
    file = io.StringIO()
    csv.writer(file, lineterminator='\n').writerows(rows)
    return file.getvalue().encode()
