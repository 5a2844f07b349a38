"""Which files a split has, which of them belong together, and how to fix each kind of problem."""
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from datasets.description import FILE, OFFICIAL, Description
from datasets.pairing import COARSE, CORRUPT, Layout, fine_layout
from inference.pictures import IMAGE_SUFFIXES
from tools.convert_cityscapes import SOURCE as FINE_SOURCE
from tools.convert_cityscapes_autolabeling import SOURCE as COARSE_SOURCE
from tools.report.statistics import SplitStatistics
from tools.shared.folders import describe_folder

OPTIONAL = {'test': 'only predictions for the benchmark need it',
            'train_extra': 'training needs it only with coarse_multiple > 0'}
KINDS = {  # in the order of the reports
    'split': 'split that is not there',
    'count': 'another number of images than expected',
    'twice': 'several files of one name',
    'unlabelled': 'image without label',
    'stray': 'label without image',
    'image': 'image that cannot be decoded',
    'undecodable': 'label that cannot be decoded',
    'mode': 'label that is not 8-bit single channel',
    'size': 'label of another size than its image',
    'label_ids': 'label ids where train ids belong',
    'values': 'label with values that are no train ids',
    'train_ids': 'train ids where label ids belong',
    'error': 'file that could not be checked',
}


class Job(NamedTuple):
    """An image to check. source: label ids that the label was made from. picture: whether the report shows it."""
    image: str
    label: str | None
    source: str | None
    picture: bool


class Split:
    """The files of a split and, filled in by the check, what is wrong with them.

    images, labels: {'<city>/<stem>': path}, sorted. problems: dicts with kind, split, file (relative to the root),
    found and fix. notes: lines worth knowing that are not problems.
    """

    def __init__(self, root: str, name: str, description: Description) -> None:
        self.root, self.name, self.layout = root, name, _layout(name, description)
        self.folder = self.layout.images.format(split=name)
        self.label_folder = self.layout.labels.format(split=name)
        self.expected = description.images.get(name)
        self.problems: list[dict[str, str]] = []
        self.notes: list[str] = []
        self.statistics = SplitStatistics(description.labels.names)
        self.summary: dict[str, Any] = {}
        self._fixes = _fixes(root, name, description)
        self._has_sources = bool(description.labels.label_ids) and name != 'test'  # labels of test are all void
        self._used: set[str] = set()
        self.images = self._find(self.folder, self.layout.image_suffixes)
        self.labels = self._find(self.label_folder, (self.layout.label_suffix,))

    def _find(self, folder: str, suffixes: Iterable[str]) -> dict[str, str]:
        """{'<city>/<stem>': path}, sorted; the same files as datasets.pairing finds. Empty if the folder is missing."""
        folder = os.path.join(self.root, folder)
        found: dict[str, str] = {}
        for city in _entries(folder):
            if city.name.startswith('.') or not city.is_dir():
                continue
            for file in _entries(city.path):
                suffix = next(filter(file.name.endswith, suffixes), None)
                if suffix and not file.name.startswith('.'):
                    self._used.add(file.path)
                    stem = f'{city.name}/{file.name[:-len(suffix)]}'
                    if stem in found:
                        self.add_problem('twice', file.path,
                                         f'a second file of this name beside {os.path.basename(found[stem])}')
                    else:
                        found[stem] = file.path
        return dict(sorted(found.items()))

    def others(self) -> list[str]:
        """Sorted paths of image files in the images' folder that are not used."""
        paths = [os.path.join(folder, name) for folder, _, names in os.walk(os.path.join(self.root, self.folder))
                 for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
        return sorted(path for path in paths if path not in self._used)

    def add_problem(self, kind: str, path: str, found: str) -> None:
        if self.layout is COARSE and os.path.basename(path).startswith(os.path.basename(CORRUPT)):
            found += ('; Cityscapes\' download page names this image as corrupt: delete it, and its label if there is '
                      'one')
        self.problems.append({'kind': kind, 'split': self.name, 'file': os.path.relpath(path, self.root),
                              'found': found, 'fix': self._fixes[kind]})

    def job(self, stem: str, picture: bool) -> Job:
        label, source = self.labels.get(stem), None
        if label is not None and self._has_sources:
            source = (os.path.join(self.root, COARSE_SOURCE, stem + self.layout.label_suffix)
                      if self.layout is COARSE else label.removesuffix(self.layout.label_suffix) + FINE_SOURCE)
        return Job(self.images[stem], label, source, picture)

    def finish(self) -> None:
        """Fill in `summary`, once every file has been checked."""
        counted = self.statistics.summary()
        if self.name != 'test':
            if counted['empty_labels']:
                self.notes.append(f'{self.name}: {counted["empty_labels"]} labels are void everywhere; nothing is '
                                  'learned from them')
            if counted['absent']:
                self.notes.append(f'{self.name}: no pixel of the classes {", ".join(counted["absent"])}')
        self.summary = {'images': len(self.images), 'expected': self.expected, 'labels': len(self.labels),
                        'problems': len(self.problems), **counted}


def scan(root: str, name: str, description: Description) -> Split:
    """The Split, with the problems that show without opening a file: missing, surplus and unpaired files."""
    split = Split(root, name, description)
    if split.images:
        _check_pairs(split)
        _check_count(split)
    elif name in OPTIONAL and (description is OFFICIAL or not split.expected):
        if split.labels and name != 'test':
            split.notes.append(f'{name}: {len(split.labels)} labels but no image in {split.folder}; {OPTIONAL[name]}')
        elif description is OFFICIAL:
            split.notes.append(f'{name}: not there; {OPTIONAL[name]}')
    elif split.expected != 0:
        wanted = f'; expected {split.expected}' if split.expected else ''
        split.add_problem('split', os.path.join(root, split.folder),
                          f'no file <city>/<stem>{split.layout.image_suffixes[0]}{wanted} (in {root}: '
                          f'{describe_folder(Path(root))})')
    others = split.others()
    if others:
        split.notes.append(f'{name}: {len(others)} other image files in {split.folder}, which are not used, like '
                           f'{os.path.relpath(others[0], root)}; expected names <city>/<stem>'
                           f'{split.layout.image_suffixes[0]}')
    return split


def _check_pairs(split: Split) -> None:
    missing = [stem for stem in split.images if stem not in split.labels]
    stray = [stem for stem in split.labels if stem not in split.images]
    if missing and not split.labels:
        if split.name != 'test':
            split.add_problem('unlabelled', os.path.join(split.root, split.label_folder),
                              f'no label at all <city>/<stem>{split.layout.label_suffix}')
        return
    # A missing label is most likely in the folder of another city.
    elsewhere = {os.path.basename(stem): stem for stem in stray}
    for stem in missing if split.name != 'test' else ():  # test needs none
        found = 'no label'
        if os.path.basename(stem) in elsewhere:
            found += f' in its folder, but {elsewhere[os.path.basename(stem)]}{split.layout.label_suffix}'
        split.add_problem('unlabelled', split.images[stem], found)
    for stem in stray:
        split.add_problem('stray', split.labels[stem],
                          f'no image {split.folder}/{stem}{split.layout.image_suffixes[0]}')


def _check_count(split: Split) -> None:
    found, expected = len(split.images), split.expected
    official = OFFICIAL.images['train_extra']
    if split.layout is COARSE and expected == official and found == official - 1 and CORRUPT not in split.images:
        split.notes.append(f'{split.name}: {os.path.basename(CORRUPT)}{split.layout.image_suffixes[0]} is not there, '
                           'which is as it should be: Cityscapes\' download page names it as corrupt')
    elif expected is not None and found != expected:
        split.add_problem('count', os.path.join(split.root, split.folder), f'{found} images; expected {expected}')


def _layout(name: str, description: Description) -> Layout:
    return COARSE if name == 'train_extra' else fine_layout(description.labels)


def _fixes(root: str, name: str, description: Description) -> dict[str, str]:
    """{kind of problem: how to fix it}."""
    layout, own = _layout(name, description), description is not OFFICIAL
    if layout is COARSE:
        make = f'run `python tools/convert_cityscapes_autolabeling.py --dataset_root {root}`'
    elif not description.labels.label_ids:
        make = f'run `python tools/prepare_folder.py ... --out {root}` again'
    else:
        make = f'run `python tools/convert_cityscapes.py --cityscapes_path {root}`'
    described = os.path.join(root, FILE)
    get_images = f'add the images, or correct `images` in {described}' if own else layout.image_fix.format(root=root)
    again = 'unpack them from their archive again'
    return {
        'split': get_images,
        'count': get_images if own else f'{get_images}; another dataset than Cityscapes says its own in {described}',
        'twice': 'delete all but one',
        'unlabelled': f'{make}, or delete these images' if own else layout.label_fix.format(root=root),
        'stray': f'delete these labels, or {get_images}',
        'image': 'replace these files by whole ones' if own else f'replace these files: {again}',
        **dict.fromkeys(('undecodable', 'mode', 'size', 'values', 'label_ids'), f'delete these labels and {make}'),
        'train_ids': f'replace these files by images of label ids ({again}), delete the labels made from them and '
                     f'{make}',
        'error': 'look at the file, replace it if it is broken, and run again',
    }


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []
