"""A toy Cityscapes: a few images of 32 x 64 in the folders of the real one."""
import os

import cv2
import numpy as np
import pytest

HEIGHT, WIDTH = 32, 64


class Toy:
    """Writes images and labels of random content under root; names are '<city>/<stem>'."""

    def __init__(self, root):
        self.root = str(root)
        self._rng = np.random.default_rng(0)

    def write(self, path, pixels):
        path = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        assert cv2.imwrite(path, pixels)
        return path

    def image(self, folder, name):
        return self.write(f'{folder}/{name}_leftImg8bit.png',
                          self._rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))

    def label(self, path):
        pixels = self._rng.integers(0, 19, (HEIGHT, WIDTH), dtype=np.uint8)
        pixels[:4] = 255
        return self.write(path, pixels)

    def fine(self, split, *names):
        for name in names:
            self.image(f'leftImg8bit/{split}', name)
            self.label(f'gtFine/{split}/{name}_gtFine_labelTrainIds.png')

    def coarse(self, *names):
        for name in names:
            self.image('leftImg8bit_trainextra/leftImg8bit/train_extra', name)
            self.label(f'convert_autolabelled/{name}_leftImg8bit.png')

    def path(self, *parts):
        return os.path.join(self.root, *parts)


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path)


@pytest.fixture
def cityscapes(toy):
    """4 fine training images in two cities, 2 in val, 1 without label in test, 7 coarse ones in two cities."""
    toy.fine('train', 'aachen/aachen_000000_000019', 'aachen/aachen_000001_000019', 'ulm/ulm_000000_000019',
             'ulm/ulm_000001_000019')
    toy.fine('val', 'munster/munster_000000_000019', 'munster/munster_000001_000019')
    toy.image('leftImg8bit/test', 'berlin/berlin_000000_000019')
    toy.coarse(*[f'bamberg/bamberg_000000_{i:06d}' for i in range(4)])
    toy.coarse(*[f'mainz/mainz_000000_{i:06d}' for i in range(3)])
    return toy
