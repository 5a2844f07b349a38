"""Cityscapes with its fine labels and, for training, the automatically labelled images of train_extra."""
import os
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import paddle
from paddleseg.transforms import Compose

from common.errors import UserError
from datasets.class_uniform import ClassUniformOrder, centroid_records, with_centroid_crop
from datasets.description import describe
from datasets.labels import CITYSCAPES, IGNORE_INDEX
from datasets.normalization import compact_image, compact_label, expanded, put_off
from datasets.pairing import COARSE, find_images, find_pairs, fine_layout
from datasets.reading import read_image, read_label

# Second word of the seed: separates these random streams from each other and from the sampler's.
_COARSE_ORDER = 2
_TRANSFORMS = 3


class CityscapesAutolabeling(paddle.io.Dataset):
    """Cityscapes: finely labelled images, and in training a share of the coarse set with automatic labels.

    Files under dataset_root:
        leftImg8bit/<mode>/<city>/<stem>_leftImg8bit.png (or .jpg)
        gtFine/<mode>/<city>/<stem>_gtFine_labelTrainIds.png
        leftImg8bit_trainextra/leftImg8bit/train_extra/<city>/<stem>_leftImg8bit.png
        convert_autolabelled/<city>/<stem>_leftImg8bit.png
        dataset.yml (optional: other classes than Cityscapes', see datasets.description)

    An epoch holds every fine image (index < len(file_list)), then int(coarse_multiple * fine images) coarse ones. These
    are taken from one random permutation of the coarse set that continues across epochs, so that all of them are seen
    before any repeats.

    With class_uniform = s > 0, a share s of the fine samples are crops around the centroids of each class in turn, from
    any fine image; the others cycle through all fine images, a share 1 - s of them per epoch (datasets.class_uniform).
    The number of samples and the coarse samples do not change: fine labels are the more accurate on rare classes.

    dataset[(epoch, index)] depends on (seed, epoch, index) alone, including the transforms' random numbers, in whatever
    process or worker. dataset[index] takes the epoch of set_epoch(), which does not reach a DataLoader's running
    workers: give them tuples (datasets.sampling.EpochStream). A sample is a dict:
        train: 'img' float32 (3, H, W), 'label' int64 (H, W)
        val: the same and 'trans_info'; 'label' as in the file, untransformed
        test: 'img', 'trans_info'
    dataset.compact(index) is the same sample in a quarter of the bytes, see there.

    Args:
        transforms (list): PaddleSeg transforms; they receive the image as RGB float32 (H, W, 3), 0..255.
        dataset_root (str): the folder above.
        mode (str): 'train', 'val' or 'test'.
        coarse_multiple (float): coarse images per fine image; 0 needs no coarse files. For training only.
        add_val (bool): train on the fine images of val, too.
        class_uniform (float): share of class-uniform crops among the fine samples, 0..1; 0.5 in the papers. Needs a
            RandomPaddingCrop with nothing but resizing and changes of colour before it, and reads all fine labels the
            first time. For training only.
        seed (int): non-negative; can be set later.

    Raises UserError for missing files (all files are looked up here) and, when a sample is read, for a file that
    cannot be decoded or an invalid label; the text names the file, what was expected, and the fix.
    """
    NUM_CLASSES = CITYSCAPES.num_classes  # PaddleSeg reads these of the class; an instance has those of its root
    IGNORE_INDEX = CITYSCAPES.ignore_index
    IMG_CHANNELS = 3

    def __init__(self, transforms: Sequence[Any], dataset_root: str, mode: str = 'train', coarse_multiple: float = 1,
                 add_val: bool = False, seed: int = 0, class_uniform: float = 0) -> None:
        if mode not in ('train', 'val', 'test'):
            raise UserError(f'mode: expected train, val or test; found {mode}')
        if not 0 <= coarse_multiple < float('inf'):
            raise UserError(f'coarse_multiple: expected a number of at least 0; found {coarse_multiple}')
        if not 0 <= class_uniform <= 1:
            raise UserError(f'class_uniform: expected a share of 0..1; found {class_uniform}')
        self.class_uniform = class_uniform if mode == 'train' else 0
        if self.class_uniform:
            transforms = with_centroid_crop(transforms)
        transforms, self.normalization = put_off(transforms)
        self.transforms = Compose(transforms)
        self.dataset_root = dataset_root
        self.mode = mode
        self.labels = describe(dataset_root).labels
        self.num_classes = self.labels.num_classes
        self.ignore_index = self.labels.ignore_index
        self.epoch = 0

        fine = self._fine = fine_layout(self.labels)
        self.file_list: Sequence[tuple[str, str | None]]
        self.coarse_list: list[tuple[str, str]] = []
        if mode == 'test':
            pairs = []
            self.file_list = [(image, None) for image in find_images(dataset_root, fine, mode)]
        else:
            self.file_list = pairs = find_pairs(dataset_root, fine, mode)
        if mode == 'train':
            if add_val:
                pairs += find_pairs(dataset_root, fine, 'val')
            if coarse_multiple > 0:
                self.coarse_list = find_pairs(dataset_root, COARSE, 'train')
        self.coarse_per_epoch = int(coarse_multiple * len(self.file_list)) if self.coarse_list else 0
        if self.class_uniform:
            self._records = centroid_records(pairs, self.labels, dataset_root,
                                             fine.label_fix.format(root=dataset_root))
        self.seed = seed

    @property
    def seed(self) -> int:
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        if seed < 0:
            raise UserError(f'seed: expected at least 0; found {seed}')
        self._seed = seed
        self._coarse_order = np.random.default_rng([seed, _COARSE_ORDER]).permutation(len(self.coarse_list))
        if self.class_uniform:
            self._fine_order = ClassUniformOrder(self._records, len(self.file_list), self.class_uniform, seed)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of dataset[index]."""
        self.epoch = epoch

    def files(self, epoch: int, index: int) -> tuple[str, str | None]:
        """(image path, label path) of a sample; the label path is None in test mode."""
        return self._draw(epoch, index)[0]

    def _draw(self, epoch: int, index: int) -> tuple[tuple[str, str | None], tuple[int, int] | None]:
        """The files of a sample, and the (y, x) its crop must contain or None."""
        position = index - len(self.file_list)
        if position < 0:
            image, centroid = self._fine_order(epoch, index) if self.class_uniform else (index, None)
            return self.file_list[image], centroid
        position += epoch * self.coarse_per_epoch
        return self.coarse_list[self._coarse_order[position % len(self.coarse_list)]], None

    def __len__(self) -> int:
        return len(self.file_list) + self.coarse_per_epoch

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        return expanded(self.compact(index), self.normalization)

    def compact(self, index: int | tuple[int, int]) -> dict[str, Any]:
        """A sample as it is sent: 'img' uint8 before the last Normalize, where its values are integers then, with what
        is left to do in `normalization`; 'label' uint8. datasets.normalization.expanded makes dataset[index] of it.
        """
        epoch, index = index if isinstance(index, tuple) else (self.epoch, index)
        if not 0 <= index < len(self):
            raise IndexError(f'index: expected 0..{len(self) - 1}; found {index}')
        (image_path, label_path), centroid = self._draw(epoch, index)
        data: dict[str, Any] = {'img': read_image(image_path), 'gt_fields': []}
        label: Any = None  # an array, except in test mode
        if label_path is not None:
            fix = (self._fine if index < len(self.file_list) else COARSE).label_fix.format(root=self.dataset_root)
            label = read_label(label_path, data['img'].shape[:2], self.labels, fix)
        if centroid is not None:
            data['centroid'] = [(i + 0.5) / length for i, length in zip(centroid, data['img'].shape)]
        data['img'] = data['img'].astype(np.float32)
        if self.mode == 'train':
            # PaddleSeg's transforms pad labels with 255 and treat it as void, whatever the dataset's own value is.
            label[label == self.ignore_index] = IGNORE_INDEX
            data.update(label=label, gt_fields=['label'])
        with seeded_transforms([self.seed, _TRANSFORMS, epoch, index]):
            data = self.transforms(data)
        sample = {'img': compact_image(data['img'], self.normalization)}
        if self.mode == 'train':
            label = np.array(data['label'], order='C')
            label[label == IGNORE_INDEX] = self.ignore_index
            return {**sample, 'label': compact_label(label)}
        if self.mode == 'val':
            sample['label'] = label
        sample['trans_info'] = data['trans_info']
        return sample


# PaddleSeg's transforms use the global random generators, so only one thread at a time may run them. One lock per
# process id: a worker forked while another thread holds a shared lock would wait for it forever.
_TRANSFORM_LOCKS: dict[int, threading.Lock] = {}


@contextmanager
def seeded_transforms(entropy: Sequence[int]) -> Iterator[None]:
    """Inside, global `random` and `np.random` are seeded from a list of ints; afterwards restored. Takes 0.3 ms."""
    words = np.random.SeedSequence(entropy).generate_state(4)
    with _TRANSFORM_LOCKS.setdefault(os.getpid(), threading.Lock()):
        states = random.getstate(), np.random.get_state()
        random.seed(words.tobytes())
        np.random.seed(words)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
