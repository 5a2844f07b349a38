"""Check a dataset before days of training are spent on it, and count what is in it.

    python tools/verify_dataset.py --dataset_root data/cityscapes

Decodes every image and label of train, val, test and train_extra: do they exist, are they whole, in pairs, of the same
size, and in train ids? Reports what is wrong and how to fix it, and writes dataset_report.html (with class frequencies,
label coverage and pictures) and dataset_report.json into the dataset. Changes nothing else: it can be stopped at any
time; the next run starts from the beginning. Exit status: 0 if training can begin, 1 if something is wrong.
"""
import json
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

if __name__ == '__main__':
    from shared import repository
    repository.import_from_root()

import cv2
import numpy as np
from tqdm import tqdm

from common import cli
from common.atomic_io import write_atomically
from common.errors import FileError
from datasets.description import OFFICIAL, SPLITS, Description, describe
from datasets.labels import LabelSet
from datasets.reading import examine_label
from inference import pictures
from tools.report.page import to_html
from tools.report.scan import Job, Split, scan
from tools.report.screen import say, say_report
from tools.shared.label_ids import seem_train_ids
from tools.shared.workers import add_num_workers_flag, available_cores, check_num_workers, results_of

PICTURES = 8  # per split in the report
PICTURE_SIDE = 400  # pixels
# (H, W) of the image or None, float32 (256,) pixels of each label value or None, (kind, path, what was found) of each
# problem, bytes of a JPEG or None
Result: TypeAlias = tuple[tuple[int, int] | None, np.ndarray | None, list[tuple[str, str, str]], bytes | None]


def verify(root: str | os.PathLike, num_workers: int | None = None, report_dir: str | os.PathLike | None = None) -> int:
    """Check the dataset in folder `root`, print the findings, write dataset_report.json and dataset_report.html.

    num_workers: processes; None: one per core; 0 or 1: the calling process does the work. report_dir: folder of the
    reports, default `root`. Returns the exit status, 0 or 1: everything wrong with the files is reported, and the other
    files are still checked. Raises UserError or FileError if it cannot start: no such folder, a bad dataset.yml, or no
    way to write the reports.
    """
    root = os.fspath(root)
    folder = os.fspath(report_dir or root)
    if num_workers is not None:
        check_num_workers(num_workers)
    if not os.path.isdir(root):
        raise FileError(f'--dataset_root {root}: expected the folder of a dataset, found '
                                f'{"a file" if os.path.exists(root) else "nothing"}; correct the path')
    description = describe(root)
    _check_writable(folder)
    splits = [scan(root, split, description) for split in SPLITS]
    shown = _check_files(splits, description.labels, available_cores() if num_workers is None else num_workers)
    report = _report(root, description, splits)
    write_atomically(Path(folder) / 'dataset_report.json', (json.dumps(report, indent=1) + '\n').encode())
    write_atomically(Path(folder) / 'dataset_report.html', to_html(report, description.labels, shown).encode())
    say_report(report, folder)
    return int(not report['fine'])


# ---------------------------------------------------------------- one image and its label, in a worker process

def check(job: Job, label_set: LabelSet) -> Result:
    """Decode an image and its label; the function that the worker processes run. Raises nothing."""
    try:
        return _check(*job, label_set)
    except Exception as error:
        return None, None, [('error', job.image, f'{type(error).__name__}: {error}')], None


def _check(image_path: str, label_path: str | None, source: str | None, wanted: bool, label_set: LabelSet) -> Result:
    problems: list[tuple[str, str, str]] = []
    size, label, counts = None, None, None
    image, wrong = _decode(image_path)
    if image is None:
        problems.append(('image', image_path, wrong))
    else:
        height, width = image.shape[:2]
        size = height, width
    if label_path is not None:
        wrong = _fault_of_file(label_path)
        if wrong:
            problems.append(('undecodable', label_path, wrong))
        else:
            label, counts, fault = examine_label(label_path, size, label_set)
            if fault:
                problems.append((fault.kind, label_path, f'{fault.found}; expected {fault.expected}'))
            elif source is not None and counts is not None and _made_from_train_ids(counts, source, label_set):
                problems.append(('train_ids', source, f'{label_set.ignore_index} and train ids; as label ids they '
                                                      'make most of the image void'))
    picture = None
    if wanted and image is not None and (label is not None or label_path is None):
        picture = _picture(image, label, label_set.color_table())
    return size, counts, problems, picture


def _decode(path: str) -> tuple[np.ndarray | None, str]:
    """(uint8 (H, W, 3) BGR, '') or (None, what was found instead)."""
    wrong = _fault_of_file(path)
    if wrong:
        return None, wrong
    image = cv2.imread(path, cv2.IMREAD_COLOR)
    if image is None:
        return None, f'{os.path.getsize(path)} bytes that cannot be decoded'
    # OpenCV silently fills a truncated JPEG (whatever its file name) with grey.
    with open(path, 'rb') as file:
        if file.read(2) == b'\xff\xd8':
            file.seek(max(0, os.path.getsize(path) - 4096))
            if b'\xff\xd9' not in file.read():
                return None, 'a JPEG without its end'
    return image, ''


def _fault_of_file(path: str) -> str:
    """What is at a path instead of a file that is not empty, or ''."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return 'a name that is not UTF-8, at which OpenCV crashes (training too): rename it'
    if os.path.islink(path) and not os.path.exists(path):
        return f'a link to {os.readlink(path)}, where nothing is'
    if not os.path.isfile(path):
        return 'a folder' if os.path.isdir(path) else 'nothing'
    return '' if os.path.getsize(path) else 'an empty file'


def _made_from_train_ids(counts: np.ndarray, source: str, label_set: LabelSet) -> bool:
    """Whether `source`, which should hold label ids, is an image of train ids.

    The train ids made from such a file look valid: its train ids were taken for label ids, most of which are void. The
    second file is decoded only if the label could be the result of that.
    """
    table = label_set.label_id_to_train_id()
    possible = np.zeros(256, bool)
    possible[table[:label_set.num_classes]] = True
    if counts[:label_set.num_classes][~possible[:label_set.num_classes]].any() or not os.path.isfile(source):
        return False
    _, values, fault = examine_label(source, None, label_set)
    return not fault and values is not None and seem_train_ids(values, label_set)


def _picture(image: np.ndarray, label: np.ndarray | None, colors: np.ndarray) -> bytes:
    """JPEG of a reduced image, blended with its labels if there are any."""
    scale = min(1, PICTURE_SIDE / max(image.shape[:2]))
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if label is not None:
        image = pictures.overlay(image, cv2.resize(label, size, interpolation=cv2.INTER_NEAREST), colors, 0.45)
    return cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 82])[1].tobytes()


# ---------------------------------------------------------------- all of them

def _check_files(splits: Sequence[Split], label_set: LabelSet, num_workers: int) -> list[tuple[str, str, bytes]]:
    """Fill in the splits' problems and statistics. Returns [(split, stem, JPEG)] for the report."""
    entries: list[tuple[Split, str, Job]] = []
    for split in splits:
        chosen = set(np.linspace(0, max(len(split.images) - 1, 0), PICTURES).round().astype(int).tolist())
        entries += [(split, stem, split.job(stem, i in chosen)) for i, stem in enumerate(split.images)]
    num_workers = min(num_workers, len(entries))
    shown = []
    say(f'reading {len(entries)} images and their labels, {max(num_workers, 1)} at a time; nothing is changed, Ctrl-C '
        'stops it, the next run starts over')
    work = partial(check, label_set=label_set)
    with closing(results_of(work, [job for *_, job in entries], num_workers)) as results:
        bar = tqdm(results, total=len(entries), desc='verifying', unit='image', disable=None)
        for (split, stem, _), (size, counts, problems, picture) in zip(entries, bar):
            for kind, path, found in problems:
                split.add_problem(kind, path, found)
            if size is not None:
                split.statistics.add_image(size)
            if counts is not None:
                split.statistics.add_label(stem, counts)
            if picture is not None:
                shown.append((split.name, stem, picture))
    return shown


def _report(root: str, description: Description, splits: Sequence[Split]) -> dict[str, Any]:
    """Everything known about the dataset, for JSON."""
    for split in splits:
        split.finish()
    problems = [problem for split in splits for problem in split.problems]
    return {'name': description.name, 'root': os.path.abspath(root), 'checked': time.strftime('%Y-%m-%d %H:%M'),
            'own': description is not OFFICIAL, 'fine': not problems,
            'classes': list(description.labels.names),
            'splits': {split.name: split.summary for split in splits},
            'problems': problems, 'notes': [note for split in splits for note in split.notes]}


def _check_writable(folder: str) -> None:
    """Raise FileError now, rather than after an hour of checking, if the reports cannot be written."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FileError(f'{folder}: expected a folder where dataset_report.html and .json can be written, found '
                      f'"{error.strerror}"; give another one as --report_dir') from error


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--dataset_root', required=True, help='folder that holds leftImg8bit and gtFine')
    add_num_workers_flag(parser)
    parser.add_argument('--report_dir', help='folder of the reports (default: --dataset_root)')
    cli.add_debug_flag(parser)
    args = parser.parse_args(argv)
    return verify(args.dataset_root, args.num_workers, args.report_dir)


if __name__ == '__main__':
    cli.run(main)
