"""Reading label images that hold label ids, and refusing what does not."""
import io
import os
import struct
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from common.errors import FileError, UserError
from datasets.labels import IGNORE_INDEX, LabelSet
from tools.shared.png import PNG_START, is_whole_png

MAX_PIXELS = 1 << 26  # 32 times a Cityscapes image: nothing that is decoded takes more memory than that


def read_label_ids(path: str | os.PathLike, highest: int, label_set: LabelSet | None = None) -> np.ndarray:
    """The same as decode_label_ids(), for a file."""
    return decode_label_ids(Path(path).read_bytes(), path, highest, label_set)


def decode_label_ids(data: bytes, path: str | os.PathLike, highest: int,
                     label_set: LabelSet | None = None) -> np.ndarray:
    """uint8 (H, W) label ids of an 8-bit single channel image: grey values or palette indices.

    data: content of the file. path: its name for error messages. highest: the largest valid label id; 255 is valid too
    (void, or the license plate's -1). label_set: if given, an image that seems to hold train ids is refused. Raises
    UserError or FileError, with a one-line message, for bytes that are not such an image.
    """
    expected = f'{path}: expected an 8-bit single channel image of label ids'
    again = 'extract this file again from its archive'
    try:
        labels = _decode(data)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise FileError(f'{expected}, found a file that cannot be read ({error}); {again}') from error
    except ValueError as error:
        raise UserError(f'{expected}, found {error}; {again}') from error
    checked = label_set if label_set is not None and label_set.label_ids else None
    top = int(cv2.minMaxLoc(labels)[1])
    if top <= highest and not (checked and top < checked.num_classes):
        return labels  # nearly always; the histogram below would take 20 times as long
    counts = cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel()
    impossible = np.flatnonzero(counts[highest + 1:IGNORE_INDEX])
    if len(impossible):
        raise UserError(f'{expected} (0..{highest} or {IGNORE_INDEX}), found the value {highest + 1 + impossible[0]}; '
                         f'no class has it: {again}')
    if checked and seem_train_ids(counts, checked):
        raise UserError(f'{expected}, found what seems to be train ids (nothing of {checked.num_classes}..'
                         f'{highest}, and much that would be void); {again}')
    return labels


def seem_train_ids(counts: np.ndarray, label_set: LabelSet) -> bool:
    """Whether a histogram, float32 (256,), seems to come from train ids although label ids are expected.

    Train ids never reach the upper label ids (in Cityscapes: sign, vegetation, sky, people, vehicles), which almost
    every annotated street contains. And read as label ids, the most frequent train ids (road, building, sky, void)
    are not classes at all. So the criteria are: none of the upper ids, at least five different values that are not
    classes, and these on at least a third of the image. The dummy labels of Cityscapes' test split have only four such
    values, and in annotated images they cover about a tenth.
    """
    no_class = np.ones(256, bool)
    no_class[list(label_set.label_ids)] = False
    return bool(not counts[label_set.num_classes:IGNORE_INDEX].any() and np.count_nonzero(counts[no_class]) >= 5
                and counts[no_class].sum() >= counts.sum() / 3)


def _decode(data: bytes) -> np.ndarray:
    """uint8 (H, W). OpenCV takes 3/4 of Pillow's time and checks more, but would turn palette indices into colours.

    Raises ValueError or what Pillow raises.
    """
    png, (width, height) = data[:8] == PNG_START, struct.unpack('>II', data[16:24].ljust(8, b'\0'))
    if png and width * height > MAX_PIXELS:
        raise FileError(f'{width} x {height} pixels')
    grey = png and data[24:26] == b'\x08\x00'  # bit depth, colour type
    if grey and is_whole_png(data):  # OpenCV would print warnings about truncated ones
        labels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if labels is not None and labels.ndim == 2:
            return labels
    with Image.open(io.BytesIO(data)) as image:
        if image.mode not in ('L', 'P'):
            raise UserError(f'mode {image.mode}')
        pixels = np.array(image)
    if grey and cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) is None:
        raise FileError('damaged PNG data')  # which Pillow tolerates
    return pixels


def highest_id(label_set: LabelSet) -> int:
    """The largest value in label images of a LabelSet other than 255: of its label ids or train ids, and void."""
    void = label_set.train_id_to_label_id()[label_set.ignore_index]
    return max({*(label_set.label_ids or range(label_set.num_classes)), int(void)} - {IGNORE_INDEX})
