"""A zip file for the Cityscapes test server: label ids of every image of the test split, checked before and after."""
import contextlib
import io
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from PIL import Image

from common.atomic_io import FolderLock, write_atomically, written_beside
from common.errors import FileError, UserError
from datasets.labels import LabelSet
from datasets.pairing import find_images, fine_layout
from inference import folder, run_settings
from inference.processes import gather
from inference.segmenter import Segmenter

logger = logging.getLogger('predict')

OFFICIAL = 1525  # images of the test split of Cityscapes
# cityscapesscripts' evaluation finds predictions by <city>_<sequence>_<frame>*.png (getPrediction of
# evalPixelLevelSemanticLabeling.py), in whatever folder of the archive; this suffix is its own name for label ids.
STEM = re.compile(r'[a-zA-Z-]+_\d{6}_\d{6}')
SUFFIX = '_gtFine_labelIds.png'
DATE = (1980, 1, 1, 0, 0, 0)  # the same predictions give the same archive


class Submission:
    """The archive `path` of the test split below `root`.

    Predictions wait in the folder <path>.parts, so that a run that was interrupted continues with the same `settings`;
    it is removed when the archive is whole. Raises UserError for a split without images, names that the server would
    not recognise, and a dataset without label ids; FileError if the archive is there already.
    """

    def __init__(self, path: str | os.PathLike, root: str | os.PathLike, labels: LabelSet,
                 settings: Mapping[str, Any]) -> None:
        self.path, self.labels, self.settings = Path(path), labels, settings
        self.parts = self.path.with_name(f'{self.path.name}.parts')
        if self.path.exists():
            raise FileError(f'--submission {path}: expected a new file, found one; delete it, or choose another name')
        if not labels.label_ids:
            raise UserError(f'--submission: expected a dataset with the label ids of Cityscapes, found {root}, whose '
                            'dataset.yml has none; the server does not know its classes')
        self.images: dict[str, Path] = {}  # {name in the archive: image}
        for image in map(Path, find_images(root, fine_layout(labels), 'test')):
            stem = image.name.partition('_leftImg8bit')[0]
            if not STEM.fullmatch(stem):
                raise UserError(f'{image}: expected <city>_<sequence>_<frame>_leftImg8bit, six digits each, by which '
                                f'the server knows an image, found {image.name}; restore its name')
            if (other := self.images.setdefault(f'{stem}{SUFFIX}', image)) != image:
                raise UserError(f'{image}: expected a name of its own, found that of {other}; delete one of them')

    def run(self, segmenter: Segmenter, num_workers: int) -> tuple[list[str], str]:
        """(a line for each image that failed, a line that says what was done), of all processes."""
        main = paddle.distributed.get_rank() == 0
        with FolderLock(self.parts, '--submission') if main else contextlib.nullcontext():
            if main:
                run_settings.keep(self.parts, self.settings, f'--submission {self.path}')
            gather(None)
            items: Sequence[folder.Item] = [(image, name) for name, image in self.images.items()]
            todo = [item for item in folder.mine(items) if not (self.parts / item[1]).is_file()]
            left = sum(gather(len(todo)))
            if left < len(items):
                logger.info('%d of %d images have their predictions already', len(items) - left, len(items))
            failed: list[str] = sum(gather(folder.predict_each(segmenter, todo, self._write, num_workers)), [])
            if failed:
                return failed, f'{self.path} is not written: run this again when the images are whole'
            if main:
                self.finish()
        gather(None)
        done = f'{self.path}: {len(self.images)} images, checked'
        if len(self.images) != OFFICIAL:
            done += f'; its server would refuse it, for the test split of Cityscapes has {OFFICIAL}'
        return [], done

    def _write(self, name: str, image: np.ndarray, train_ids: np.ndarray, maps: Any) -> None:
        ids = self.labels.train_id_to_label_id()[train_ids]
        buffer = io.BytesIO()
        Image.fromarray(ids).save(buffer, 'PNG')
        write_atomically(self.parts / name, buffer.getvalue())

    def finish(self) -> None:
        """Put the predictions into the archive, open and check it, and give it its name.

        UserError, which names them, if predictions are missing or wrong; then there is no archive.
        """
        missing = [name for name in self.images if not (self.parts / name).is_file()]
        if missing:
            raise UserError(f'--submission {self.path}: expected {len(self.images)} predictions, found '
                            f'{len(self.images) - len(missing)}; missing: {", ".join(missing[:10])}'
                            f'{", ..." if len(missing) > 10 else ""}; run this again, it predicts those only')
        with written_beside(self.path) as temporary:
            with zipfile.ZipFile(temporary, 'w') as archive:  # PNGs are compressed already
                for name in sorted(self.images):
                    archive.writestr(zipfile.ZipInfo(name, DATE), (self.parts / name).read_bytes())
            check(temporary, self.images, self.labels)
        shutil.rmtree(self.parts)


def check(path: str | os.PathLike, images: Mapping[str, Path], labels: LabelSet) -> None:
    """UserError, which names the member, unless the archive has one 8-bit single-channel PNG of label ids for every
    {name: image}, of the size of that image, and nothing else.
    """
    with zipfile.ZipFile(path) as archive:
        found = archive.namelist()
        if wrong := sorted({*found} ^ {*images}) or [name for name in images if found.count(name) > 1]:
            raise UserError(f'{path}: expected one member for each of {len(images)} images, found {len(found)}; first '
                            f'that is missing or too many: {wrong[0]}; run this again')
        for name, image in images.items():
            fault = _fault(archive.read(name), image, labels)
            if fault:
                raise UserError(f'{path}: {name}: {fault}; delete it in the folder beside and run this again')


def _fault(content: bytes, image: Path, labels: LabelSet) -> str:
    """What is wrong with a prediction, or ''."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            ids, mode, kind = np.array(picture), picture.mode, picture.format
        with Image.open(image) as original:
            size = original.size
    except (OSError, SyntaxError) as error:
        return f'expected a PNG, found what cannot be decoded ({error})'
    if kind != 'PNG' or mode != 'L':
        return f'expected a single-channel 8-bit PNG, found {kind} of mode {mode}'
    if ids.shape[::-1] != size:
        return f'expected the size of its image, {size[0]}x{size[1]}, found {ids.shape[1]}x{ids.shape[0]}'
    unknown = np.setdiff1d(ids, labels.label_ids)
    return f'expected label ids of classes, found {unknown[:5].tolist()}' if unknown.size else ''
