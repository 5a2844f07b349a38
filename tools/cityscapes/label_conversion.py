"""Label ids to train ids, for many images: what the scripts that prepare Cityscapes share."""
import io
import os
import struct
import sys
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

from common.atomic_io import write_atomically
from common.errors import FileError, UserError
from datasets.labels import IGNORE_INDEX
from tools.shared.workers import DiskFull, results_of

CONVERTED, UP_TO_DATE = 'converted', 'up to date'
MAX_PIXELS = 1 << 26  # 32 times a Cityscapes image: nothing that is decoded takes more memory than that
_PNG_START, _PNG_END = b'\x89PNG\r\n\x1a\n', b'\x00\x00\x00\x00IEND\xaeB`\x82'


def read_label_ids(path, highest, label_set=None):
    """As decode_label_ids(), of a file."""
    return decode_label_ids(Path(path).read_bytes(), path, highest, label_set)


def decode_label_ids(data, path, highest, label_set=None):
    """uint8 (H, W) label ids of an 8-bit single channel image: grey values or palette indices.

    data: bytes of the file. path: its name for errors. highest: the largest label id there is; 255 is valid too (void,
    or the license plate's -1). label_set: with it, an image that seems to hold train ids is refused. Raises ValueError
    or OSError, with a text of one line, for bytes that are not such an image.
    """
    expected = f'{path}: expected an 8-bit single channel image of label ids'
    again = 'extract this file again from its archive'
    try:
        labels = _decode(data)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise FileError(f'{expected}, found a file that cannot be read ({error}); {again}') from error
    except ValueError as error:
        raise UserError(f'{expected}, found {error}; {again}') from error
    check = label_set is not None and label_set.label_ids
    top = int(cv2.minMaxLoc(labels)[1])
    if top <= highest and not (check and top < label_set.num_classes):
        return labels  # nearly always: the histogram takes 20 times as long
    counts = cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel()
    impossible = np.flatnonzero(counts[highest + 1:IGNORE_INDEX])
    if len(impossible):
        raise UserError(f'{expected} (0..{highest} or {IGNORE_INDEX}), found the value {highest + 1 + impossible[0]}; '
                         f'no class has it: {again}')
    if check and seem_train_ids(counts, label_set):
        raise UserError(f'{expected}, found what seems to be train ids (nothing of {label_set.num_classes}..'
                         f'{highest}, and much that would be void); {again}')
    return labels


def seem_train_ids(counts, label_set):
    """Whether a histogram (256,) is one of train ids, where label ids are expected.

    Train ids never reach the upper label ids, while hardly an annotated street is without them (of Cityscapes': sign,
    vegetation, sky, people, vehicles). And read as label ids, the most frequent train ids (road, building, sky, void)
    are no classes at all. So: none of the upper ids, five or more different values that are no class, and these on a
    third of the image; the dummies of Cityscapes' test split have four, an annotated image has them on a tenth.
    """
    no_class = np.ones(256, bool)
    no_class[list(label_set.label_ids)] = False
    return (not counts[label_set.num_classes:IGNORE_INDEX].any() and np.count_nonzero(counts[no_class]) >= 5
            and counts[no_class].sum() >= counts.sum() / 3)


def _decode(data):
    """uint8 (H, W). OpenCV takes 3/4 of Pillow's time and checks more, but would turn palette indices into colours."""
    png, (width, height) = data[:8] == _PNG_START, struct.unpack('>II', data[16:24].ljust(8, b'\0'))
    if png and width * height > MAX_PIXELS:
        raise FileError(f'{width} x {height} pixels')
    grey = png and data[24:26] == b'\x08\x00'  # bits, type of colour
    if grey and is_whole_png(data):  # of others OpenCV would print what it thinks
        labels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if labels is not None and labels.ndim == 2:
            return labels
    with Image.open(io.BytesIO(data)) as image:
        if image.mode not in ('L', 'P'):
            raise UserError(f'mode {image.mode}')
        pixels = np.array(image)
    if grey and cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) is None:
        raise FileError('damaged PNG data')  # which Pillow forgives
    return pixels


def draw_label_ids(path):
    """uint8 (H, W) label ids drawn by cityscapesscripts from a polygons JSON file. Raises ValueError for a bad file."""
    annotation = Annotation()
    try:
        annotation.fromJsonText(Path(path).read_text())
        for item in annotation.objects:  # createLabelImage() would end the process at a name it does not know
            if item.label not in name2label and item.label.removesuffix('group') not in name2label:
                raise UserError(f'unknown label "{item.label}"')
        return np.array(createLabelImage(annotation, 'ids'))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path}: expected the polygons of a Cityscapes image, found {type(error).__name__}: {error}; '
                         f'extract this file again from its archive') from error


def convert(paths, label_set):
    """Writes one train id image; the function that the worker processes run.

    paths: (label ids image, polygons JSON or None, train ids image). Where the first is missing it is drawn from the
    second. A whole train ids image that is not older than its source is left alone.
    Returns CONVERTED, UP_TO_DATE, or the line of text that says what is wrong with this file. Raises DiskFull.
    """
    source, polygons, target = paths
    try:
        origin = source if polygons is None or source.exists() else polygons
        if target.exists() and target.stat().st_mtime >= origin.stat().st_mtime and ends_as_png(target):
            return UP_TO_DATE
        if origin == polygons:
            labels = draw_label_ids(polygons)
            _write(source, encode_png(labels), flush=True)  # nothing tells a half-written one from the user's
        else:
            labels = read_label_ids(source, highest_id(label_set), label_set)
        _write(target, train_id_png(labels, label_set))
        return CONVERTED
    except DiskFull:
        raise
    except (ValueError, OSError) as error:
        return str(error)


def convert_all(jobs, label_set, num_workers):
    """Converts many images, each on its own: a bad one is reported on standard error and the rest is done.

    jobs: list of `paths` of convert(). label_set: LabelSet. num_workers: processes; 0 or 1: this one.
    Prints a summary line. Returns the exit status: 1 if a file could not be converted, else 0.
    """
    if num_workers < 0:
        raise UserError(f'--num_workers: expected 0 or more, found {num_workers}')
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


def highest_id(label_set):
    """The largest value in label images of a LabelSet, 255 left aside: its ids or train ids, and void."""
    void = label_set.train_id_to_label_id()[label_set.ignore_index]
    return max({*(label_set.label_ids or range(label_set.num_classes)), int(void)} - {IGNORE_INDEX})


def train_id_png(labels, label_set):
    """Bytes of the train ids PNG of uint8 (H, W) label ids."""
    return encode_png(cv2.LUT(labels, label_set.label_id_to_train_id()))


def encode_png(image):
    """Bytes of a PNG of uint8 (H, W) labels.

    Rows as differences to the row above, in runs of one value: for labels as small as Pillow's in a sixth of the time.
    """
    settings = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    if hasattr(cv2, 'IMWRITE_PNG_FILTER'):  # older ones take the difference to the pixel before
        settings += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
    return cv2.imencode('.png', image, settings)[1].tobytes()


def is_whole_png(data):
    """Whether bytes begin and end as a PNG does: those of a file that was cut off do not."""
    return data[:8] == _PNG_START and data[-12:] == _PNG_END


def ends_as_png(path):
    """As is_whole_png(), of a file, of which it reads the end only."""
    with open(path, 'rb') as file:
        file.seek(-min(12, os.fstat(file.fileno()).st_size), os.SEEK_END)
        return file.read() == _PNG_END


def available_cores():
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def describe_folder(folder):
    """What is at a path, in a few words for an error message."""
    if not folder.is_dir():
        return 'a file' if folder.exists() else 'nothing'
    names = sorted(path.name for path in folder.iterdir())
    return ', '.join(names[:4]) + (', ...' if len(names) > 4 else '') if names else 'an empty folder'


def _write(path, data, flush=False):
    try:
        write_atomically(path, data, flush)  # if not flushed, the next run looks whether it is whole
    except OSError as error:
        DiskFull.check(error, path)
        raise
