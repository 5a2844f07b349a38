"""Mistakes that people make with a dataset: each takes its root, and returns the path of the file to be named."""
import shutil

import cv2
import numpy as np
from PIL import Image

from datasets.labels import CITYSCAPES
from tests.tools.label_images import read, save


def labels(root, split='train'):
    return sorted(root.glob(f'gtFine/{split}/*/*_labelTrainIds.png'))


def images(root, split='train'):
    return sorted(root.glob(f'leftImg8bit/{split}/*/*.png'))


def label_ids(root):
    path = labels(root)[1]
    shutil.copy(str(path).replace('labelTrainIds', 'labelIds'), path)
    return path


def sixteen_bit(root):
    path = labels(root)[1]
    save(path, read(path).astype(np.uint16))
    return path


def colours(root):
    path = labels(root)[1]
    Image.open(path).convert('RGB').save(path)
    return path


def colours_and_alpha(root):
    path = labels(root)[1]
    Image.open(path).convert('RGBA').save(path)
    return path


def other_size(root):
    path = labels(root)[1]
    save(path, read(path)[:32])
    return path


def unknown_value(root):
    path = labels(root)[1]
    pixels = read(path)
    pixels[3, 4] = 77
    save(path, pixels)
    return path


def empty_label(root):
    labels(root)[1].write_bytes(b'')
    return labels(root)[1]


def truncated_label(root):
    path = labels(root)[1]
    path.write_bytes(path.read_bytes()[:-60])
    return path


def truncated_image(root):
    path = images(root)[1]
    path.write_bytes(path.read_bytes()[:2000])
    return path


def truncated_jpeg(root):
    path = images(root)[1]
    picture = path.with_suffix('.jpg')
    Image.open(path).save(picture)
    path.unlink()
    picture.write_bytes(picture.read_bytes()[:-200])
    assert cv2.imread(str(picture)) is not None, 'OpenCV sees nothing wrong'
    return picture


def empty_image(root):
    images(root)[1].write_bytes(b'')
    return images(root)[1]


def broken_link(root):
    path = images(root)[1]
    path.unlink()
    path.symlink_to('/nowhere/a.png')
    return path


def no_label(root):
    labels(root)[1].unlink()
    return images(root)[1]


def label_in_another_city(root):
    path = labels(root)[1]
    city = next(label.parent for label in labels(root) if label.parent != path.parent)
    path.rename(city / path.name)
    return images(root)[1]


def two_of_a_name(root):
    path = images(root)[1]
    Image.open(path).save(path.with_suffix('.jpg'))
    return path


def train_ids_as_label_ids(root):
    """As the conversion has left it that did not look: train ids taken for label ids."""
    path = labels(root)[1]
    source = path.with_name(path.name.replace('labelTrainIds', 'labelIds'))
    shutil.copy(path, source)
    save(path, CITYSCAPES.label_id_to_train_id()[read(source)])
    return source
