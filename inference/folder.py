"""Many images with a Segmenter: read ahead, shared among processes, with a line for each that fails."""
import os
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from common.errors import UserError, is_expected
from datasets.sampling import shard
from inference import map_pictures, pictures
from inference.lanes import lanes
from inference.maps import Maps
from inference.prefetch import prefetch
from inference.processes import gather
from inference.report.report import ReportWriter
from inference.segmenter import Segmenter

Item = tuple[Path, Any]  # an image, and what its predictions are called
Consume = Callable[[Any, np.ndarray, np.ndarray, Maps | None], None]


def mine(items: Sequence[Item]) -> list[Item]:
    """This process's share."""
    return [items[i] for i in shard(len(items), paddle.distributed.get_rank(), paddle.distributed.get_world_size())]


def predict_each(segmenter: Segmenter, items: Sequence[Item], consume: Consume, num_workers: int,
                 with_maps: bool = False) -> list[str]:
    """Call consume(name, BGR image, train ids, Maps or None) for every item; returns a line for each that fails.

    UserError if the logits of the first image are not finite already, which is the weights' fault.
    """
    failed: list[str] = []
    rank, succeeded = paddle.distributed.get_rank(), 0
    several = None if with_maps else lanes(segmenter.predictor, len(items))
    predict = several or segmenter.predictor

    def predicted(read: tuple[Item, Any, Exception | None]) -> Any:
        _, loaded, error = read
        if error is not None:
            return None
        image, sample = loaded
        if with_maps:
            maps = segmenter.predictor.maps(sample)
            return image, maps.classes, maps
        return image, predict(sample), None

    read = prefetch(lambda item: segmenter.load(item[0]), items, num_workers)
    for ((path, name), _, error), found, fault in tqdm(
            prefetch(predicted, read, several.count if several else 0), total=len(items), desc='predict', unit='image',
            disable=True if rank else None):
        try:
            if fault is not None:
                raise fault
            if error is None:
                consume(name, *found)
                succeeded += 1
                continue
        except UserError as wrong:
            error = wrong
            if not succeeded:
                raise UserError(f'{path}: {wrong}') from wrong
        if not is_expected(error):
            raise error
        failed.append(str(error) if str(path) in str(error) else f'{path}: {error}')
    return failed


class Pictures:
    """The predictions of an image, a folder or a list as pictures in save_dir.

    kinds: of inference.map_pictures.KINDS, to be saved as well. skip_existing: only images that have not all of them.
    page: shows all images, too.
    """

    def __init__(self, image_path: str, save_dir: str | os.PathLike, kinds: Collection[str] = (),
                 skip_existing: bool = False, page: ReportWriter | None = None) -> None:
        self.save_dir, self.kinds, self.skip_existing, self.page = save_dir, kinds, skip_existing, page
        if page and skip_existing:
            raise UserError('--report: expected every image to be predicted, found --skip_existing; leave one of them '
                            'out')
        self.images = pictures.find_inputs(image_path, exclude=[save_dir, page.path if page else None])

    def run(self, segmenter: Segmenter, num_workers: int) -> tuple[list[str], str]:
        """(a line for each image that failed, a line that says what was done), of all processes."""
        if 'attention' in self.kinds and not segmenter.scales:
            raise UserError('--save_attention: expected a network that fuses scales (MscaleOCRNet), found another one; '
                            'leave it out')
        todo = mine(self.images)  # before a faster process writes predictions
        if self.skip_existing:
            more = map_pictures.folders(self.kinds, segmenter.scales)
            todo = [item for item in todo if not pictures.is_written(self.save_dir, item[1], more)]
        count = sum(gather(len(todo)))
        place = {name: i for i, (_, name) in enumerate(self.images)}
        page = self.page and self.page.start(segmenter.labels, segmenter.colors, num_workers)
        with pictures.Writer(self.save_dir, segmenter.colors, self.kinds) as writer, page or nullcontext():
            def consume(name: Path, image: np.ndarray, train_ids: np.ndarray, maps: Maps | None) -> None:
                if page and maps is not None:
                    page.add(place[name], name.as_posix(), image, maps)
                writer.write(name, image, train_ids, maps)

            failed = predict_each(segmenter, todo, consume, num_workers, bool(self.kinds or self.page))
        failed = sum(gather(failed), [])
        done = f'predicted {count - len(failed)} of {count} images'
        if count < len(self.images):
            done += f', {len(self.images) - count} of {len(self.images)} images have their predictions already'
        where = [*pictures.FOLDERS, *map_pictures.folders(self.kinds, segmenter.scales)]
        return failed, f'{done}; pictures in {", ".join(str(Path(self.save_dir) / folder) for folder in where)}'
