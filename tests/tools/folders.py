"""Folders of drawn images and masks, and what tools/prepare_folder.py makes of them: what its tests share."""
import cv2
import numpy as np
import pytest
from PIL import Image

from tools import prepare_folder

SIZE = 24, 40  # H, W
VALUES = '3: road\n0: lane marking\n9: void\n7: road\n'
COLORS = "128 64 128: road\n'#ffcc00': lane marking\n[0, 0, 0]: void\n1, 2, 3: road\n"
RGB = {3: (128, 64, 128), 0: (255, 204, 0), 9: (0, 0, 0), 7: (1, 2, 3)}
TRAIN_ID = {3: 0, 0: 1, 9: 255, 7: 0}


def draw(path, seed=0, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = cv2.resize(np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8), size[::-1])
    Image.fromarray(pixels).save(path, 'JPEG' if path.suffix.lower() in ('.jpg', '.jpeg') else None)
    return path


def values(seed=0, size=SIZE):
    return np.random.default_rng([7, seed]).choice(np.array([0, 3, 7, 9], np.uint8), size)


def save(path, pixels, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette)
    image.save(path)
    return path


def table(entries):
    result = np.full((256, *np.shape(entries[0])), 77, np.uint8)
    for value, entry in entries.items():
        result[value] = entry
    return result


NAMES = ('one', 'drive/two', 'drive/three', 'drive/deep/four', 'città/東京 [1]', 'five', 'six', 'seven')
FILES = dict(zip(NAMES, ('.jpg', '.png', '.JPEG', '.jpg', '.jpg', '.bmp', '.jpg', '.jpg')))


def run(folder, *more, split=('train=0.5', 'val=0.5')):
    return prepare_folder.main(['--images', str(folder / 'images'), '--masks', str(folder / 'masks'), '--mapping',
                                str(folder / 'classes.yml'), '--out', str(folder / 'out'), '--num_workers', '1',
                                *(['--split', *split] if split else []), *map(str, more)])


def refusal(folder, *more, **kwargs):
    before = {path for path in folder.rglob('*')}
    with pytest.raises((ValueError, OSError)) as error:
        run(folder, *more, **kwargs)
    assert '\n' not in str(error.value)
    assert {path for path in folder.rglob('*')} == before, 'something was written'
    return str(error.value)


def written(folder):
    return {path.relative_to(folder / 'out').as_posix(): path for path in (folder / 'out').rglob('*') if path.is_file()}


def label(folder, name, split='*'):
    found, = (folder / 'out/gtFine').glob(f'{split}/{name}_gtFine_labelTrainIds.png')
    with Image.open(found) as image:
        assert image.mode == 'L'
        return np.array(image)


def check_labels(folder):
    for i, name in enumerate(NAMES):
        city, _, stem = name.rpartition('/')
        expected = np.vectorize(TRAIN_ID.get)(values(i))
        found = label(folder, f'{city.replace("/", "_") or "images"}/{stem}'.replace('[', '[[]'))
        np.testing.assert_array_equal(found, expected)
