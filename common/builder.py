"""The objects that a config describes."""
import os
import traceback
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import paddle
import paddleseg
import paddleseg.cvlibs
from paddleseg.utils import logger as paddleseg_logger

from common.atomic_io import write_atomically
from common.config import Config, pretrained_parts
from common.errors import UserError
from common.model_zoo import local_weights
from datasets.cityscapes_autolabeling import CityscapesAutolabeling
from datasets.description import describe
from datasets.labels import LabelSet
from datasets.paddleseg_dataset import adapted, check_folder, label_set, takes_class_uniform


class Builder(paddleseg.cvlibs.SegBuilder):
    """PaddleSeg's builder of model, datasets, losses, optimizer and schedule, with the cause of a failure unwrapped."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        paddleseg_logger.log_level = 0  # it prints every component it builds

    def build_component(self, cfg: dict[str, Any]) -> Any:
        try:
            component = self.load_component_class(cfg['type'])
            check_folder(component, cfg)
            if takes_class_uniform(component):
                share = cfg.get('class_uniform', 0)
                cfg = {key: value for key, value in cfg.items() if key != 'class_uniform'}
                return adapted(super().build_component(cfg), share)
            return super().build_component(cfg)
        except (RuntimeError, UserError) as error:
            cause: BaseException = error
            while cause.__context__ is not None and not isinstance(cause, UserError):
                cause = cause.__context__
            if isinstance(cause, UserError):
                if '/' not in str(cause).partition(': ')[0]:  # a key, not a file
                    raise UserError(f'{self.config.path}: {cause}') from None
                raise cause from None
            if isinstance(cause, FileNotFoundError) and cause.filename:
                raise UserError(f'{cause.filename}: expected a file that {cfg["type"]} reads, found nothing; check its '
                                'folder and lists') from error
            text = ' '.join(str(cause).split())
            if isinstance(cause, (ValueError, OSError, AssertionError)) or type(cause) in (RuntimeError, Exception):
                raise UserError(f'{self.config.path}: {cfg["type"]}: {text}') from error
            if _within_paddleseg(cause):
                raise UserError(f'{self.config.path}: {cfg["type"]}: expected values that fit together, found some '
                                f'that do not ({type(cause).__name__}: {text}); see its parameters, or --debug'
                                ) from error
            raise

    def _with_labels(self, dataset_class: type, section: str) -> type:
        """The dataset's class with the label set of its folder, if it is one of ours: PaddleSeg reads it of the class.

        If that folder is missing (weights used on another machine), the dataset.yml beside a run's config is used;
        without one, the other section's folder.
        """
        sections = [section, *{'train_dataset', 'val_dataset'} - {section}]
        root, other = (self.config.dic.get(name, {}).get('dataset_root') for name in sections)
        if not issubclass(dataset_class, CityscapesAutolabeling) or root is None:
            return dataset_class
        beside = os.path.dirname(self.config.path)
        if not os.path.isdir(root):
            root = beside if os.path.isfile(os.path.join(beside, 'dataset.yml')) else other or root
        labels = describe(root).labels
        return type(dataset_class.__name__, (dataset_class,), {
            'LABELS': labels, 'NUM_CLASSES': labels.num_classes, 'IGNORE_INDEX': labels.ignore_index})

    @cached_property
    def train_dataset_class(self) -> type:
        return self._with_labels(super().train_dataset_class, 'train_dataset')

    @cached_property
    def val_dataset_class(self) -> type:
        return self._with_labels(super().val_dataset_class, 'val_dataset')

    @property
    def val_dataset(self) -> Any:
        if 'val_dataset' not in self.config.dic:
            raise UserError(f"{self.config.path}: key 'val_dataset': expected a dataset to evaluate on, found none; "
                            'add it, or train without --do_eval')
        return super().val_dataset

    @cached_property
    def model(self) -> paddle.nn.Layer:
        self._check_classes()
        for key, part in pretrained_parts(self.config.dic['model']):
            try:
                part['pretrained'] = str(local_weights(part['pretrained']))
            except UserError as error:
                raise UserError(f'{error}; to train from random weights: --opts {key}=null') from error
        return super().model

    def release_model(self) -> None:
        """Drop the reference to the model, so that its memory can be freed."""
        self.__dict__.pop('model', None)

    @property
    def labels(self) -> LabelSet:
        """The LabelSet of the validation dataset; generic names and no colours for PaddleSeg's own datasets."""
        dataset_class: Any = self.val_dataset_class if 'val_dataset' in self.config.dic else self.train_dataset_class
        if hasattr(dataset_class, 'LABELS'):
            return dataset_class.LABELS
        cfg = self.config.val_dataset_cfg or self.config.train_dataset_cfg
        num_classes = cfg.get('num_classes') or dataset_class.NUM_CLASSES
        return label_set(dataset_class, num_classes)

    def save_description(self, folder: str | os.PathLike) -> None:
        """Copy the training data's dataset.yml, if any, beside the run's config, for use on other machines."""
        root = self.config.dic['train_dataset'].get('dataset_root')
        if hasattr(self.train_dataset_class, 'LABELS') and (path := Path(root) / 'dataset.yml').is_file():
            write_atomically(Path(folder) / 'dataset.yml', path.read_bytes())

    def check_weights(self, folder: str | os.PathLike) -> None:
        """UserError if the run folder of the weights has a dataset.yml with other classes than the config's.

        Comparing only their number is not enough: the same classes in another order give wrong results silently.
        """
        path = Path(folder) / 'dataset.yml'
        if not path.is_file() or not hasattr(self.train_dataset_class, 'LABELS'):
            return  # PaddleSeg's own datasets do not name their classes
        if (found := describe(folder).labels.names) != self.labels.names:
            raise UserError(f'{path}: expected the {_listed(self.labels.names)} of {self.config.path}, found '
                             f'{_listed(found)}; use the config.yml in that folder, or train anew')

    def _check_classes(self) -> None:
        """model.num_classes, training and validation data must agree, by names if the datasets have them."""
        def names(dataset_class: Any) -> tuple[str, ...] | None:
            return dataset_class.LABELS.names if hasattr(dataset_class, 'LABELS') else None

        config = self.config
        train: Any = self.train_dataset_class
        train_names, val_names = names(train), None
        if train_names is None:
            return
        root = config.dic['train_dataset']['dataset_root']
        stated = config.dic['model'].get('num_classes', train.NUM_CLASSES)
        if stated != train.NUM_CLASSES:
            raise UserError(f"{config.path}: key 'model.num_classes': expected {train.NUM_CLASSES}, the classes of "
                             f'train_dataset.dataset_root {root}, found {stated}; remove the key or correct the folder')
        if 'val_dataset' in config.dic:
            val_names = names(self.val_dataset_class)
        if val_names is not None and val_names != train_names:
            val_root = config.dic['val_dataset']['dataset_root']
            raise UserError(f"{config.path}: key 'val_dataset.dataset_root': expected the classes of the training "
                             f'data in {root} ({_listed(train_names)}), found {val_root} '
                             f'({_listed(val_names)}); compare their dataset.yml')

    @cached_property
    def loss(self) -> dict[str, Any]:
        expected = getattr(self.train_dataset_class, 'IGNORE_INDEX', None)
        for i, cfg in enumerate(self.config.loss_cfg['types']):
            for part in cfg.get('losses', [cfg]):  # of a MixedLoss
                found = part.get('ignore_index', expected)
                if None not in (found, expected) and found != expected:
                    raise UserError(f"{self.config.path}: key 'loss.types.{i}.ignore_index': expected {expected}, as "
                                     f'the training data have it, found {found}; remove the key')
        return super().loss


def _within_paddleseg(error: BaseException) -> bool:
    """Whether PaddleSeg's code has failed, and not ours that it has called."""
    own, used = (f'{module.__path__[0]}{os.sep}' for module in (paddleseg, paddle))
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return next((name.startswith(own) for name in reversed(files) if not name.startswith(used)), False)


def _listed(names: Sequence[str]) -> str:
    return f'{len(names)} classes {", ".join(names[:4])}{", ..." if len(names) > 4 else ""}'
