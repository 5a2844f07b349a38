"""Label ids to train ids, for many images: what the two conversion scripts share."""
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import name2label
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from PIL import Image
from tqdm import tqdm

from datasets.labels import IGNORE_INDEX
from engine.files import write_atomically

CONVERTED, UP_TO_DATE = 'converted', 'up to date'


def read_label_ids(path, highest):
    """uint8 (H, W) label ids of an 8-bit single channel image.

    highest: the largest label id there is; 255 is valid too (void, or the license plate's -1). Raises ValueError or
    OSError, with a text of one line, for a file that is not such an image.
    """
    expected = f'{path}: expected an 8-bit single channel image of label ids'
    again = 'extract this file again from its archive'
    try:
        with Image.open(path) as image:
            if image.mode not in ('L', 'P'):
                raise ValueError(f'{expected}, found mode {image.mode}; {again}')
            labels = np.array(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise OSError(f'{expected}, found a file that cannot be read ({error}); {again}') from error
    counts = np.bincount(labels.ravel(), minlength=256)
    impossible = np.flatnonzero(counts[highest + 1:IGNORE_INDEX])
    if len(impossible):
        raise ValueError(f'{expected} (0..{highest} or {IGNORE_INDEX}), found the value {highest + 1 + impossible[0]}; '
                         f'this is no label image of Cityscapes: {again}')
    return labels


def draw_label_ids(path):
    """uint8 (H, W) label ids drawn by cityscapesscripts from a polygons JSON file. Raises ValueError for a bad file."""
    annotation = Annotation()
    try:
        annotation.fromJsonText(Path(path).read_text())
        for item in annotation.objects:  # createLabelImage() would end the process at a name it does not know
            if item.label not in name2label and item.label.removesuffix('group') not in name2label:
                raise ValueError(f'unknown label "{item.label}"')
        return np.array(createLabelImage(annotation, 'ids'))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path}: expected the polygons of a Cityscapes image, found {type(error).__name__}: {error}; '
                         f'extract this file again from its archive') from error


def convert(paths, lookup, highest):
    """Writes one train id image; the function that the worker processes run.

    paths: (label ids image, polygons JSON or None, train ids image). Where the first is missing it is drawn from the
    second. A train ids image that is not older than its source is left alone.
    Returns CONVERTED, UP_TO_DATE, or the line of text that says what is wrong with this file.
    """
    source, polygons, target = paths
    try:
        origin = source if polygons is None or source.exists() else polygons
        if target.exists() and target.stat().st_mtime >= origin.stat().st_mtime:
            return UP_TO_DATE
        if origin == polygons:
            labels = draw_label_ids(polygons)
            write_atomically(source, _png(labels))
        else:
            labels = read_label_ids(source, highest)
        write_atomically(target, _png(lookup[labels]))
        return CONVERTED
    except (ValueError, OSError) as error:
        return str(error)


def convert_all(jobs, label_set, num_workers):
    """Converts many images, each on its own: a bad one is reported on standard error and the rest is done.

    jobs: list of `paths` of convert(). label_set: LabelSet with label_ids. num_workers: processes; 0 or 1: this one.
    Prints a summary line. Returns the exit status: 1 if a file could not be converted, else 0.
    """
    if num_workers < 0:
        raise ValueError(f'--num_workers: expected 0 or more, found {num_workers}')
    work = partial(convert, lookup=label_set.label_id_to_train_id(), highest=max(label_set.label_ids))
    counts = {CONVERTED: 0, UP_TO_DATE: 0}
    failed = 0
    with closing(_map(work, jobs, min(num_workers, len(jobs)))) as results:
        for result in tqdm(results, total=len(jobs), desc='converting', unit='image', disable=None):
            if result in counts:
                counts[result] += 1
            else:
                failed += 1
                tqdm.write(f'error: {result}', file=sys.stderr)
    print(f'{counts[CONVERTED]} converted, {counts[UP_TO_DATE]} already up to date, {failed} failed')
    return int(failed > 0)


def available_cores():
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def describe_folder(folder):
    """What is at a path, in a few words for an error message."""
    if not folder.is_dir():
        return 'a file' if folder.exists() else 'nothing'
    names = sorted(path.name for path in folder.iterdir())
    return ', '.join(names[:4]) + (', ...' if len(names) > 4 else '') if names else 'an empty folder'


def _map(work, jobs, num_workers):
    """Generator of the results in order; closing it early gives up the jobs that have not begun."""
    if num_workers < 2:
        yield from map(work, jobs)
        return
    pool = ProcessPoolExecutor(num_workers, initializer=_leave_interrupts_to_parent)
    try:
        yield from pool.map(work, jobs, chunksize=8)
    finally:
        pool.shutdown(cancel_futures=True)


def _png(image):
    return cv2.imencode('.png', image)[1].tobytes()


def _leave_interrupts_to_parent():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
