"""PaddleSeg's own datasets (Dataset, Cityscapes, ADE20K, ...) in the form that training and evaluation here expect."""
import copy
import inspect
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import paddle
import paddleseg.datasets
from paddleseg.transforms import GenerateInstanceTargets

from common.errors import UserError
from datasets.cityscapes_autolabeling import CityscapesAutolabeling, seeded_transforms
from datasets.class_uniform import ClassUniformOrder, centroid_records, with_centroid_crop
from datasets.edges import class_edges
from datasets.labels import CITYSCAPES, LabelSet, distinct_colors
from datasets.normalization import compact_image, compact_label, expanded, put_off
from datasets.pairing import FINE, find_pairs

_TRANSFORMS = 6  # second word of the seed: keeps the random numbers apart from those of other streams
# How PaddleSeg reads a sample with one list of transforms and nothing after it.
_ONE_COMPOSE = (paddleseg.datasets.Dataset.__getitem__, paddleseg.datasets.ADE20K.__getitem__)
MOST_CLASSES = 255  # train ids are stored in 8 bits, one value is void


def adapted(component: Any, class_uniform: float = 0) -> Any:
    """What a config's builder has built: a dataset that is not ours in a PaddleSegDataset, all else as it is."""
    if isinstance(component, paddle.io.Dataset) and not isinstance(component, CityscapesAutolabeling):
        return PaddleSegDataset(component, class_uniform=class_uniform)
    return component


def takes_class_uniform(component: Any) -> bool:
    """Whether a component is a dataset of PaddleSeg, to which the key class_uniform is added here."""
    return inspect.isclass(component) and issubclass(component, paddle.io.Dataset) and not issubclass(
        component, CityscapesAutolabeling)


def check_folder(dataset_class: Any, cfg: Mapping[str, Any]) -> None:
    """UserError where the folder of one of PaddleSeg's datasets is missing, which it would download, or, of Cityscapes,
    where images and labels do not match: PaddleSeg pairs the two sorted lists."""
    if not takes_class_uniform(dataset_class):
        return
    name = dataset_class.__name__
    for key in ('dataset_root', 'imagenet_root', 'pssl_root'):
        if key not in inspect.signature(dataset_class).parameters:
            continue
        root = cfg.get(key)
        if root is None:
            raise UserError(f"{name}: expected its key '{key}', the folder of the data, found none; add it: nothing is "
                            'downloaded here')
        if not os.path.isdir(root):
            found = 'a file' if os.path.exists(root) else 'nothing'
            raise UserError(f'{root}: expected the folder of {name}, found {found}; correct {key}, or put the data '
                            'there: nothing is downloaded here')
    if dataset_class is paddleseg.datasets.Cityscapes:
        find_pairs(cfg['dataset_root'], replace(FINE, image_suffixes=('_leftImg8bit.png',)), cfg.get('mode', 'train'))


def label_set(dataset_class: type, num_classes: int) -> LabelSet:
    """The LabelSet of one of PaddleSeg's datasets: Cityscapes' own, else generic names and distinct colours."""
    if dataset_class.__name__ == 'Cityscapes' and num_classes == CITYSCAPES.num_classes:
        return CITYSCAPES
    return LabelSet(names=tuple(f'class {i}' for i in range(num_classes)), palette=tuple(distinct_colors(num_classes)))


class _OtherSize(Exception):
    """A label that is not of its image's size."""


class _Start:
    """First of the transforms. It compares the sizes of image and label, which a crop would make equal, whatever they
    show, and hands on the `centroid` (y, x) that the crop must contain, if it is set."""
    centroid: tuple[int, int] | None = None

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        image, label = data['img'], data.get('label')
        if isinstance(label, np.ndarray) and label.shape[-2:] != image.shape[:2] and label.ndim == 2:
            raise _OtherSize(f"expected a label of its image's size, {image.shape[:2]} (height, width), found "
                             f'{label.shape}')
        if self.centroid is not None:
            data['centroid'] = [(i + 0.5) / length for i, length in zip(self.centroid, image.shape)]
        return data


def _with_label(data: dict[str, Any]) -> dict[str, Any]:
    """First of the common_transforms of EG1800 and SUPERVISELY. Without it PaddleSeg 2.8 turns and shifts the images
    and not their labels, and stops at ScalePadding."""
    return {**data, 'gt_fields': ['label']}


class PaddleSegDataset(paddle.io.Dataset):
    """A dataset of PaddleSeg, whose samples depend on (seed, epoch, index) alone, whichever process asks for them.

    dataset[(epoch, index)], or dataset[index] of epoch 0, is a dict:
        train: 'img' float32 (C, H, W), 'label' int64 (H, W), and 'edge' uint8 (H, W), 1 at edges, if it has edge: True
        val: the same and 'trans_info', the list that the transforms leave; 'label' as in the file, untransformed
    What the transforms draw from Python's and NumPy's global generators is seeded for each sample.
    GenerateInstanceTargets is left out: losses.paddleseg_adapters.Masks makes the masks of the label.

    dataset: an object of PaddleSeg's interface: mode, num_classes, ignore_index, file_list of (image path, label path),
    integer index -> {'img', 'label' (H, W) or (1, H, W), 'trans_info'}. seed: non-negative; can be set later.
    class_uniform: share of the training samples that are cropped around each class in turn, as of
        CityscapesAutolabeling.

    Raises UserError where it has no samples, or more classes than 8 bits hold; and, when a sample is read, naming the
    file, where the image cannot be decoded or the label does not fit.
    """

    def __init__(self, dataset: Any, seed: int = 0, class_uniform: float = 0) -> None:
        name = type(dataset).__name__
        self.dataset = dataset
        self.normalization, self._edges = None, False
        self._start, self._records, self.class_uniform = _Start(), None, 0.0
        if type(dataset).__getitem__ in _ONE_COMPOSE:
            self.dataset = copy.copy(dataset)  # the caller's own still normalises
            self.dataset.transforms = copy.copy(dataset.transforms)
            steps = [step for step in dataset.transforms.transforms if not isinstance(step, GenerateInstanceTargets)]
            steps, self.normalization = put_off(steps)
            if class_uniform and dataset.mode == 'train':
                steps, self.class_uniform = with_centroid_crop(steps), class_uniform
            self.dataset.transforms.transforms = [self._start, *steps]
            self._edges = bool(getattr(dataset, 'edge', False)) and dataset.mode == 'train'
            self.dataset.edge = False  # class_edges gives the same
        elif hasattr(dataset, 'common_transforms'):
            self.dataset = copy.copy(dataset)
            self.dataset.common_transforms = copy.copy(dataset.common_transforms)
            self.dataset.common_transforms.transforms = [_with_label, *dataset.common_transforms.transforms]
        if type(dataset) is paddleseg.datasets.ADE20K:  # in the order of the file system
            self.dataset.file_list = sorted(dataset.file_list)
        self.mode: str = dataset.mode
        self.num_classes: int = dataset.num_classes
        self.ignore_index: int = dataset.ignore_index
        self.file_list: list = self.dataset.file_list
        if len(dataset) == 0:
            raise UserError(f'{name}: expected images of mode {self.mode} in {getattr(dataset, "dataset_root", "it")}, '
                            'found none; check dataset_root and the lists')
        if self.num_classes > MOST_CLASSES:
            raise UserError(f'{name}: expected at most {MOST_CLASSES} classes, found {self.num_classes}; train ids '
                            'have 8 bits here')
        if class_uniform and dataset.mode == 'train':
            self._records = self._centroids(name)
        self.seed = seed

    def _centroids(self, name: str) -> np.ndarray:
        if not self.class_uniform or type(self.dataset) is paddleseg.datasets.ADE20K:  # its files hold other ids
            raise UserError(f'{name}: expected a dataset whose label files hold the class ids, for class_uniform; set '
                            'class_uniform: 0')
        labels = LabelSet(names=tuple(f'class {i}' for i in range(self.num_classes)), ignore_index=self.ignore_index,
                          palette=tuple(distinct_colors(self.num_classes)))
        return centroid_records([tuple(pair[:2]) for pair in self.file_list], labels, self.dataset.dataset_root,
                                'correct the file')

    @property
    def seed(self) -> int:
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._seed = seed
        if self._records is not None:
            self._order = ClassUniformOrder(self._records, len(self.file_list), self.class_uniform, seed)

    def _draw(self, epoch: int, index: int) -> tuple[int, tuple[int, int] | None]:
        """The position in file_list of a sample, and the (y, x) that its crop must contain or None."""
        return (index, None) if self._records is None else self._order(epoch, index)

    def files(self, epoch: int, index: int) -> tuple[str, str | None]:
        """(image path, label path) of a sample."""
        image, label = self.file_list[self._draw(epoch, index)[0]][:2]
        return image, label

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        return expanded(self.compact(index), self.normalization)

    def compact(self, index: int | tuple[int, int]) -> dict[str, Any]:
        """A sample as it is sent, as of CityscapesAutolabeling."""
        epoch, index = index if isinstance(index, tuple) else (0, index)
        place, self._start.centroid = self._draw(epoch, index)
        image_path, label_path = self.file_list[place][:2]
        with seeded_transforms([self.seed, _TRANSFORMS, epoch, index]):
            try:
                data = self.dataset[place]
            except (AttributeError, TypeError) as error:  # PaddleSeg goes on with OpenCV's None
                if 'NoneType' not in str(error):
                    raise
                raise UserError(f'{image_path}: expected an image, found none that can be decoded or nothing at all; '
                                'check the file and the list that names it') from error
            except OSError as error:
                raise UserError(f'{label_path}: expected a label, found none that can be decoded or nothing at all; '
                                'check the file and the list that names it') from error
            except ValueError as error:  # how PaddleSeg's transforms refuse an image
                raise UserError(f'{image_path}: expected an image that fits the transforms, found one that does not '
                                f'({" ".join(str(error).split())}); correct {self.mode}_dataset.transforms') from error
            except _OtherSize as error:
                raise UserError(f'{label_path}: {error}; correct the file') from error
        sample = {'img': compact_image(data['img'], self.normalization)}
        if self.mode != 'test':
            sample['label'] = compact_label(self._label(data['label'], label_path))
        if self._edges:
            sample['edge'] = class_edges(sample['label'], self.num_classes)
        elif self.mode == 'train' and 'edge' in data:  # of a dataset that computes them itself
            sample['edge'] = np.asarray(data['edge'], np.uint8).reshape(sample['label'].shape)
        if self.mode == 'train':
            size = sample['img'].shape[1:]
            if sample['label'].shape != size:
                raise UserError(f'{label_path}: expected a label of its image\'s size, {size} (height, width) after '
                                f'the transforms, found {sample["label"].shape}; correct the file')
        else:
            sample['trans_info'] = data.get('trans_info', [])
        return sample

    def _label(self, label: Any, path: str | None) -> np.ndarray:
        """int64 (H, W), checked."""
        label = np.asarray(label)
        if label.ndim == 3 and label.shape[0] == 1:
            label = label[0]
        if label.ndim != 2:
            raise UserError(f'{path}: expected a label of one channel, found an array {label.shape}; convert it to '
                            'class ids')
        label = label.astype(np.int64)
        wrong = (label != self.ignore_index) & ((label < 0) | (label >= self.num_classes))
        if wrong.any():
            raise UserError(f'{path}: expected class ids 0..{self.num_classes - 1} and {self.ignore_index}, found '
                            f'{", ".join(map(str, np.unique(label[wrong])[:5]))}; convert the labels or correct '
                            'num_classes')
        return label
