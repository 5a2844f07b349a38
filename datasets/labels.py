"""Label sets: the classes a network is trained on, their colours and the ignore value.

Everything else (models, losses, metrics, pictures, reports) takes them from the dataset's label set: Cityscapes' is
defined here, any other dataset's in its dataset.yml (datasets.description).
"""
import colorsys
import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

Color = tuple[int, ...]  # R, G, B of 0-255

IGNORE_INDEX = 255  # train id of void pixels: excluded from every loss and metric


@dataclass(frozen=True)
class LabelSet:
    """The classes of a dataset, in the order of their train ids.

    names: one name per class. palette: one RGB colour (0-255) per class. ignore_index: the value of void pixels.
    label_ids: the id of each class in the dataset's own label images (Cityscapes: labelIds), or () where label images
    already hold train ids. categories: the group of each class, or () where there are no groups.
    """
    names: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_index: int = IGNORE_INDEX
    label_ids: tuple[int, ...] = ()
    categories: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.names)

    def label_id_to_train_id(self) -> np.ndarray:
        """uint8 (256,) lookup table from label id to train id; every id that is not a class becomes ignore_index.

        Without label_ids the two ids are the same.
        """
        table = np.full(256, self.ignore_index, np.uint8)
        table[list(self.label_ids or range(self.num_classes))] = np.arange(self.num_classes, dtype=np.uint8)
        return table

    def train_id_to_label_id(self, void: int | None = None) -> np.ndarray:
        """uint8 (256,) lookup table from train id to label id; ignore_index and unused ids become `void`.

        void: default 0 (Cityscapes: unlabeled), or ignore_index where train ids and label ids are the same or 0 is a
        class.
        """
        if void is None:
            void = 0 if self.label_ids and 0 not in self.label_ids else self.ignore_index
        table = np.full(256, void, np.uint8)
        table[:self.num_classes] = self.label_ids or range(self.num_classes)
        return table

    def color_table(self) -> np.ndarray:
        """uint8 (256, 3) RGB lookup table from train id to colour; void and unused ids are black."""
        table = np.zeros((256, 3), np.uint8)
        table[:self.num_classes] = self.palette
        return table


def distinct_colors(count: int, taken: Collection[Color] = ()) -> list[Color]:
    """`count` different RGB colours that are not in `taken`: around the hue circle, in three brightnesses."""
    def candidates() -> Iterator[Color]:
        for i in itertools.count():  # steps of the golden ratio: neighbours in the list lie far apart on the circle
            color = colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.75, (0.9, 0.65, 0.4)[i % 3])
            yield tuple(round(255 * value) for value in color)

    used = set(taken)
    colors: list[Color] = []
    for color in candidates():
        if len(colors) == count:
            break
        if color not in used:
            used.add(color)
            colors.append(color)
    return colors


# (name, label id, RGB colour, category) in train-id order, as defined by the Cityscapes benchmark (Cordts et al., CVPR
# 2016).
_CITYSCAPES = (
    ('road', 7, (128, 64, 128), 'flat'),
    ('sidewalk', 8, (244, 35, 232), 'flat'),
    ('building', 11, (70, 70, 70), 'construction'),
    ('wall', 12, (102, 102, 156), 'construction'),
    ('fence', 13, (190, 153, 153), 'construction'),
    ('pole', 17, (153, 153, 153), 'object'),
    ('traffic light', 19, (250, 170, 30), 'object'),
    ('traffic sign', 20, (220, 220, 0), 'object'),
    ('vegetation', 21, (107, 142, 35), 'nature'),
    ('terrain', 22, (152, 251, 152), 'nature'),
    ('sky', 23, (70, 130, 180), 'sky'),
    ('person', 24, (220, 20, 60), 'human'),
    ('rider', 25, (255, 0, 0), 'human'),
    ('car', 26, (0, 0, 142), 'vehicle'),
    ('truck', 27, (0, 0, 70), 'vehicle'),
    ('bus', 28, (0, 60, 100), 'vehicle'),
    ('train', 31, (0, 80, 100), 'vehicle'),
    ('motorcycle', 32, (0, 0, 230), 'vehicle'),
    ('bicycle', 33, (119, 11, 32), 'vehicle'),
)

CITYSCAPES = LabelSet(
    names=tuple(name for name, _, _, _ in _CITYSCAPES),
    label_ids=tuple(label_id for _, label_id, _, _ in _CITYSCAPES),
    palette=tuple(color for _, _, color, _ in _CITYSCAPES),
    categories=tuple(category for _, _, _, category in _CITYSCAPES))
