"""The description of a dataset: `dataset.yml` in its root folder. Without that file it is Cityscapes.

    name: my streets
    ignore_index: 255            # optional
    classes:                     # optional: Cityscapes' 19. In the order of the train ids
      - {name: road, color: [128, 64, 128]}
      - {name: car, color: [0, 0, 142]}
        # for every class or for none: label_id: 26 (its id in the label images), category: vehicle (groups with an IoU)
    images: {train: 60, val: 12}              # optional: expected number of images per split

tools/prepare_folder.py and tools/make_toy_cityscapes.py write it; dataset, model, losses, metrics, pictures and reports
follow it.
"""
import os
import reprlib
from dataclasses import dataclass, field
from typing import Any

import yaml

from common.errors import UserError
from datasets.labels import CITYSCAPES, IGNORE_INDEX, LabelSet

FILE = 'dataset.yml'
SPLITS = ('train', 'val', 'test', 'train_extra')


@dataclass(frozen=True)
class Description:
    """name: for reports. labels: the LabelSet. images: {split: expected number of images}, of known splits only."""
    name: str
    labels: LabelSet
    images: dict[str, int] = field(default_factory=dict)

    def to_yaml(self) -> str:
        """Text of a dataset.yml with this description."""
        labels = self.labels
        classes: list[dict[str, Any]] = [
            {'name': name, 'color': [int(value) for value in color]}
            for name, color in zip(labels.names, labels.palette)]
        for entry, label_id in zip(classes, labels.label_ids):
            entry['label_id'] = label_id
        for entry, category in zip(classes, labels.categories):
            entry['category'] = category
        lines = [f'name: {_one_line(self.name)}', f'ignore_index: {labels.ignore_index}', 'classes:']
        lines += [f'  - {_one_line(entry)}' for entry in classes]
        return '\n'.join([*lines, f'images: {_one_line(self.images)}', ''])


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3

# Counts as on Cityscapes' download page. train_extra: one of its 19998 images is not there (datasets.pairing.COARSE).
OFFICIAL = Description('Cityscapes', CITYSCAPES, {'train': 2975, 'val': 500, 'test': 1525, 'train_extra': 19998})


def describe(root: str | os.PathLike) -> Description:
    """The Description of the dataset in folder `root`: its dataset.yml, or Cityscapes where there is none.

    Raises UserError, with one line that names the file and the key, for an invalid dataset.yml.
    """
    path = os.path.join(root, FILE)
    if not os.path.isfile(path):
        return OFFICIAL
    try:
        with open(path, encoding='utf-8') as file:
            dic = yaml.safe_load(file)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f'{path}: expected YAML, found {" ".join(str(error).split())}; see datasets/description.py') \
            from error
    if not isinstance(dic, dict):
        raise UserError(f'{path}: expected keys like name and classes, found {_short(dic)}; see '
                        'datasets/description.py')
    unknown = sorted(map(str, dic.keys() - {'name', 'ignore_index', 'classes', 'images'}))
    if unknown:
        raise UserError(f'{path}: expected name, ignore_index, classes, images, found {unknown[0]!r}; remove that key')
    images = dic.get('images') or {}
    if not isinstance(images, dict) or any(split not in SPLITS or not _is_int(n, 0) for split, n in images.items()):
        raise UserError(f'{path}: key images: expected numbers of {", ".join(SPLITS)}, found {_short(images)}; '
                         'correct it')
    if isinstance(name := dic.get('name', root), dict | list):
        raise UserError(f'{path}: key name: expected text, found {_short(name)}; correct it')
    return Description(str(name), _labels(path, dic), images)


def _labels(path: str, dic: dict[str, Any]) -> LabelSet:
    ignore = dic.get('ignore_index', IGNORE_INDEX)
    if 'classes' not in dic:
        if ignore != IGNORE_INDEX:
            raise UserError(f'{path}: key ignore_index: expected {IGNORE_INDEX} for Cityscapes\' classes, found '
                             f'{_short(ignore)}; remove it or state the classes')
        return CITYSCAPES
    classes = dic['classes']
    if not isinstance(classes, list) or not 1 <= len(classes) <= 255:
        raise UserError(f'{path}: key classes: expected a list of 1 to 255 classes, found {_short(classes)}; list them')
    for i, entry in enumerate(classes):
        if not isinstance(entry, dict) or not isinstance(entry.get('name'), str) or not _is_color(entry.get('color')) \
                or entry.keys() - {'name', 'color', 'label_id', 'category'} \
                or not _is_int(entry.get('label_id', 0), 0, 255) or not isinstance(entry.get('category', ''), str):
            raise UserError(f'{path}: key classes.{i}: expected {{name: text, color: [R, G, B]}} and perhaps '
                             f'label_id: 0-255, category: text, found {_short(entry)}; correct it')
    names = [entry['name'] for entry in classes]
    label_ids = [entry['label_id'] for entry in classes if 'label_id' in entry]
    for what, values in (('names', names), ('label ids', label_ids)):
        if len(set(values)) < len(values):
            raise UserError(f'{path}: key classes: expected different {what}, found {_short(values)}; correct it')
    categories = [entry['category'] for entry in classes if 'category' in entry]
    for what, values in (('label_id', label_ids), ('category', categories)):
        if 0 < len(values) < len(names):
            raise UserError(f'{path}: key classes: expected a {what} for every class or for none, found '
                             f'{len(values)} for {len(names)} classes; correct it')
    if not _is_int(ignore, len(names), 255):
        raise UserError(f'{path}: key ignore_index: expected {len(names)} to 255 (0 to {len(names) - 1} are classes), '
                         f'found {_short(ignore)}; 255 is usual')
    return LabelSet(names=tuple(names), palette=tuple(tuple(entry['color']) for entry in classes), ignore_index=ignore,
                    label_ids=tuple(label_ids), categories=tuple(categories))


def _short(value: Any) -> str:
    """A value in a few characters: the repr of YAML whose aliases stand for one another has no end."""
    return _SHORT.repr(value)[:80]


def _is_int(value: Any, low: float, high: float = float('inf')) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_color(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_int(v, 0, 255) for v in value)


def _one_line(value: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float('inf'),
                          allow_unicode=True).removesuffix('...\n').strip()
