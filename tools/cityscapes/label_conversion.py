"""Converting label ids to train ids, for many images in parallel."""
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import name2label
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from tqdm import tqdm

from common.atomic_io import write_atomically
from common.errors import UserError
from datasets.labels import LabelSet
from tools.shared.label_ids import highest_id, read_label_ids
from tools.shared.png import encode_png, is_whole_png_file
from tools.shared.workers import DiskFull, check_num_workers, results_of

CONVERTED, UP_TO_DATE = 'converted', 'up to date'
Job: TypeAlias = tuple[Path, Path | None, Path]  # label ids image, polygons JSON or None, train ids image to write


def draw_label_ids(path: str | os.PathLike) -> np.ndarray:
    """uint8 (H, W) label ids drawn by cityscapesscripts from a polygons JSON file. Raises UserError for a bad file."""
    annotation = Annotation()
    try:
        annotation.fromJsonText(Path(path).read_text())
        for item in annotation.objects:  # createLabelImage() would exit the process at an unknown name
            if item.label not in name2label and item.label.removesuffix('group') not in name2label:
                raise UserError(f'unknown label "{item.label}"')
        return np.array(createLabelImage(annotation, 'ids'))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path}: expected the polygons of a Cityscapes image, found {type(error).__name__}: {error}; '
                         f'extract this file again from its archive') from error


def convert(job: Job, label_set: LabelSet) -> str:
    """Write one train ids image; the function that the worker processes run.

    A missing label ids image is drawn from the polygons first. A whole train ids image that is not older than its
    source is left alone. Returns CONVERTED, UP_TO_DATE, or a one-line message that says what is wrong with this file.
    Raises DiskFull.
    """
    source, polygons, target = job
    try:
        if polygons is None or source.exists():
            origin, drawn = source, False
        else:
            origin, drawn = polygons, True
        if target.exists() and target.stat().st_mtime >= origin.stat().st_mtime and is_whole_png_file(target):
            return UP_TO_DATE
        if drawn:
            labels = draw_label_ids(origin)
            _write(source, encode_png(labels), flush=True)  # the next run cannot tell a half-written one from yours
        else:
            labels = read_label_ids(source, highest_id(label_set), label_set)
        _write(target, train_id_png(labels, label_set))
        return CONVERTED
    except DiskFull:
        raise
    except (ValueError, OSError) as error:
        return str(error)


def convert_all(jobs: Sequence[Job], label_set: LabelSet, num_workers: int) -> int:
    """Convert many images independently: bad ones are reported on standard error, and the others are still converted.

    num_workers: processes; 0 or 1: the calling process does the work. Prints a summary line. Returns the exit status:
    1 if any file could not be converted, else 0.
    """
    check_num_workers(num_workers)
    counts = {CONVERTED: 0, UP_TO_DATE: 0}
    failed = 0
    with closing(results_of(partial(convert, label_set=label_set), jobs, num_workers)) as results:
        try:
            for result in tqdm(results, total=len(jobs), desc='converting', unit='image', disable=None):
                if result in counts:
                    counts[result] += 1
                else:
                    failed += 1
                    tqdm.write(f'error: {result}', file=sys.stderr)
        except DiskFull as error:
            failed += 1
            print(f'error: {error}', file=sys.stderr)
    print(f'{counts[CONVERTED]} converted, {counts[UP_TO_DATE]} already up to date, {failed} failed')
    return int(failed > 0)


def train_id_png(labels: np.ndarray, label_set: LabelSet) -> bytes:
    """Bytes of a PNG of train ids, made from uint8 (H, W) label ids."""
    return encode_png(cv2.LUT(labels, label_set.label_id_to_train_id()))


def _write(path: Path, data: bytes, flush: bool = False) -> None:
    try:
        write_atomically(path, data, flush)  # if it is not flushed, the next run checks that it is whole
    except OSError as error:
        DiskFull.check(error, path)
        raise
