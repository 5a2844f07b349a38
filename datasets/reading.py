"""Decoding of images and of label images, which are checked every time they are read."""
import os

import cv2
import numpy as np
from PIL import Image


def read_image(path):
    """Decode an image as BGR uint8 (H, W, 3). Raises ValueError if it cannot be decoded, OSError if it is gone."""
    image = cv2.imread(path, cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f'{path}: expected an image; found {os.path.getsize(path)} bytes that cannot be decoded; '
                         'unpack the file from its archive again')
    return image


def read_label(path, size, label_set, fix):
    """Decode a label image of train ids.

    path: a single-channel 8 bit image (grey values or palette indices). size: (H, W) of the image it belongs to.
    label_set: the LabelSet of its values. fix: how the user gets a proper file, the end of every error's text.
    Returns uint8 (H, W). Raises ValueError where the file cannot be decoded, has another size or type, or holds a value
    that is neither a train id nor label_set.ignore_index.
    """
    # Pillow takes 25 % longer than OpenCV, but OpenCV would turn a palette image into its colours.
    try:
        with Image.open(path) as image:
            label, mode = np.array(image), image.mode
    except (OSError, SyntaxError) as error:  # SyntaxError: Pillow's word for a broken PNG
        raise ValueError(f'{path}: expected a label image; found none that can be decoded ({error}); {fix}') from None
    if mode not in ('L', 'P'):
        raise ValueError(f'{path}: expected a single-channel 8 bit label; found mode {mode}, {label.dtype} '
                         f'{label.shape}; {fix}')
    if label.shape != size:
        raise ValueError(f'{path}: expected a label of its image\'s size {size}; found {label.shape} (height, width); '
                         f'{fix}')
    # A histogram of 1024 x 2048 pixels takes 2 ms next to 70 ms for decoding image and label; np.unique would take 40.
    values = np.flatnonzero(cv2.calcHist([label], [0], None, [256], [0, 256]))
    wrong = values[(values >= label_set.num_classes) & (values != label_set.ignore_index)]
    if wrong.size:
        looks_like_ids = wrong.max() <= max(label_set.label_ids, default=-1)
        raise ValueError(f'{path}: expected train ids 0..{label_set.num_classes - 1} and {label_set.ignore_index}; '
                         f'found {", ".join(map(str, wrong))}'
                         f'{" (label ids where train ids belong)" if looks_like_ids else ""}; {fix}')
    return label
