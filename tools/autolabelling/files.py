"""The files of auto-labelling: the names of an image's outputs, and the record of how a folder was made."""
from __future__ import annotations  # common.config imports Paddle, which the users of this module do not need

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from common.atomic_io import sha256_of, write_atomically
from common.errors import FileError, UserError
from datasets.labels import LabelSet
from inference import pictures, run_settings
from tools.shared.folders import describe_folder
from tools.shared.label_ids import highest_id, read_label_ids
from tools.shared.png import encode_png

if TYPE_CHECKING:
    from common.config import Config

SETTINGS = 'autolabel.json'
IMAGE = '_leftImg8bit'  # end of an image's stem in the layout that training reads
TRUTHS = ('_gtFine_labelIds.png', '_gtCoarse_labelIds.png', '_labelIds.png')
TRAIN_ID_TRUTHS = ('_gtFine_labelTrainIds.png',)  # for datasets whose label ids are train ids


class Job(NamedTuple):
    """One image and its outputs. name: path of the image in image_dir, without its suffix."""
    image: Path
    name: str
    label: Path
    prediction: Path
    confidence: Path

    @property
    def predicted(self) -> bool:
        return self.prediction.is_file() and self.confidence.is_file()


def find_jobs(image_dir: str | os.PathLike, save_dir: str | os.PathLike) -> list[Job]:
    """One job per image below image_dir, sorted. Raises UserError with one line for unusable folders or names."""
    images, save = Path(image_dir), Path(save_dir)
    if not images.is_dir():
        raise FileError(f'--image_dir {images}: expected a folder of images, found {describe_folder(images)}; '
                                'check the path')
    source, target = images.resolve(), save.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise UserError(f'--save_dir {save}: expected a folder apart from --image_dir {images}, found one inside the '
                         'other, where labels and images would mix; choose another')
    jobs: list[Job] = []
    owners: dict[Path, Path] = {}
    for image, relative in pictures.find_inputs(images, flag='--image_dir'):
        name = relative.as_posix()
        stem = save / name.removesuffix(IMAGE)
        job = Job(image, name, save / f'{name}.png', *(Path(f'{stem}_{kind}.png')
                                                       for kind in ('prediction', 'confidence')))
        for output in (job.label, job.prediction, job.confidence):
            if (other := owners.setdefault(output, image)) != image:
                raise UserError(f'--image_dir {images}: expected names that give different outputs, found {other} and '
                                 f'{image}, both with {output.name}; rename one')
        jobs.append(job)
    return jobs


def in_training_layout(job: Job) -> bool:
    """Whether the name of an image is one whose label tools/convert_cityscapes_autolabeling.py finds."""
    return job.name.count('/') == 1 and job.name.endswith(IMAGE)


def find_truths(folder: str | os.PathLike, jobs: Sequence[Job], label_set: LabelSet) -> dict[Job, Path]:
    """{job: its ground truth, in label ids} for the images that have one. Raises UserError if none has."""
    folder = Path(folder)
    suffixes = TRUTHS if label_set.label_ids else TRUTHS + TRAIN_ID_TRUTHS
    found = {}
    for job in jobs:
        stem = folder / job.name.removesuffix(IMAGE)
        paths = [folder / f'{job.name}.png', *(Path(f'{stem}{suffix}') for suffix in suffixes)]
        path = next((path for path in paths if path.is_file()), None)
        if path:
            found[job] = path
    if not found:
        wanted = jobs[0].name
        raise UserError(f'--ground_truth {folder}: expected label ids with the names of the images, like {wanted}.png '
                         f'or {wanted.removesuffix(IMAGE)}{TRUTHS[0]}, found {describe_folder(folder)}; check the path')
    return found


def read_truth(path: str | os.PathLike, size: tuple[int, ...], label_set: LabelSet) -> np.ndarray:
    """uint8 (H, W) train ids of a ground truth in label ids. Raises UserError if its size is not `size`, (H, W)."""
    ids = read_label_ids(path, highest_id(label_set))
    if ids.shape != size:
        raise UserError(f'{path}: expected the size of its image {size}, found {ids.shape} (height, width); it '
                         'belongs to another image')
    return label_set.label_id_to_train_id()[ids]


def read_prediction(job: Job, label_set: LabelSet) -> tuple[np.ndarray, np.ndarray]:
    """(train ids, confidences), both uint8 (H, W), as write_prediction() wrote them. Raises UserError for others."""
    prediction, confidence = (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (job.prediction, job.confidence))
    if prediction is not None and confidence is not None and prediction.shape == confidence.shape \
            and prediction.ndim == 2 and prediction.dtype == confidence.dtype == np.uint8:
        train_ids = label_set.label_id_to_train_id()[prediction]
        if train_ids.max() < label_set.num_classes:
            return train_ids, confidence
    raise UserError(f'{job.prediction}: expected label ids and confidences of one size, as this tool writes them, '
                     f'found something else there or in {job.confidence.name}; delete both and run again')


def write_prediction(job: Job, train_ids: np.ndarray, confidence: np.ndarray, label_set: LabelSet) -> None:
    """Write both files of a prediction; an image whose files both exist is finished."""
    save(job.confidence, confidence)
    save(job.prediction, label_set.train_id_to_label_id()[train_ids])


def save(path: str | os.PathLike, image: np.ndarray) -> None:
    write_atomically(path, encode_png(image))


# ---------------------------------------------------------------- how a folder was made

def settings_of(config: Config, label_set: LabelSet, options: Mapping[str, Any], weights: str | os.PathLike,
                image_dir: str | os.PathLike, save_dir: str | os.PathLike) -> dict[str, Any]:
    """Everything that predictions depend on, in the form in which JSON returns it.

    options: those of inference.predictor.Predictor and the precision, but not the backend, which changes the last
    digits only. image_dir is stored relative to save_dir, so that both can be moved together.
    """
    if not Path(weights).is_file():
        raise FileError(f'--model_path {weights}: expected a weights file (.pdparams), found '
                                f'{describe_folder(Path(weights))}; check the path')
    test_time = {'scales': [1.0], 'flip_horizontal': False, 'flip_vertical': False, 'crop_size': None, 'stride': None}
    return json.loads(json.dumps({
        'image_dir': os.path.relpath(Path(image_dir).resolve(), Path(save_dir).resolve()),
        'weights_sha256': sha256_of(weights), 'model': config.dic['model'],
        'transforms': config.val_dataset_cfg.get('transforms'), 'test_time': {**test_time, **options},
        'classes': {'names': label_set.names, 'label_ids': label_set.label_ids, 'void': label_set.ignore_index}}))


def recall(folder: str | os.PathLike) -> dict[str, Any] | None:
    """The content of a folder's autolabel.json, None if there is none. Raises UserError if it has another format."""
    path = Path(folder) / SETTINGS
    if not path.is_file():
        return None
    try:
        dic = json.loads(path.read_bytes())
        return {**dic, 'settings': dict(dic['settings']), 'complete': bool(dic['complete'])}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f'{path}: expected what tools/autolabel.py writes, found something else '
                         f'({type(error).__name__}: {error}); choose another --save_dir') from error


def check_folder(save_dir: str | os.PathLike, settings: Mapping[str, Any]) -> None:
    """Raise UserError, with one line, for a folder with predictions of other settings or with unrelated files."""
    known = recall(save_dir)
    if known is None:
        names = sorted(os.listdir(save_dir)) if os.path.isdir(save_dir) else []
        if any(not name.startswith('.') for name in names):
            raise UserError(f'--save_dir {save_dir}: expected a new or empty folder or one with {SETTINGS}, found '
                             f'{describe_folder(Path(save_dir))}; choose another, nothing was overwritten')
        return
    other = run_settings.difference(known['settings'], settings)
    if other and any(Path(save_dir).rglob('*_prediction.png')):
        raise UserError(f'--save_dir {save_dir}: expected predictions made with the settings of this run, found in '
                         f'{SETTINGS} {other}; choose another --save_dir')


def remember(save_dir: str | os.PathLike, dic: Mapping[str, Any]) -> None:
    write_atomically(Path(save_dir) / SETTINGS, json.dumps(dic, indent=1, ensure_ascii=False).encode())
