"""--report of val.py and predict.py: from the first check of the folder to its index.html."""
import argparse
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from common.atomic_io import FolderLock
from common.config import Config
from datasets.labels import LabelSet
from inference import backends, pictures, records
from inference.maps import Maps
from inference.predictor import Predictor
from inference.processes import gather
from inference.report import folder, page
from inference.report.gallery import Gallery, drawn_images
from inference.report.look import printable


class ReportWriter:
    """Writes a report while images are predicted, by any number of processes. A context manager around the prediction.

    path: --report. FileError if the folder is another's or cannot be written, before the work starts.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        if paddle.distributed.get_rank() == 0:
            folder.check(path)

    def start(self, labels: LabelSet, colors: np.ndarray | None = None, threads: int = 1,
              keep: bool = False) -> 'ReportWriter':
        """Begin; an earlier report ends here. UserError if another run writes one into the folder.

        colors: uint8 (256, 3) RGB. threads: that write pictures. keep: go on with the pictures that are there.
        """
        if paddle.distributed.get_rank() == 0:
            self._lock = FolderLock(self.path, '--report')
            folder.clear(self.path, keep)
        gather(None)  # nobody writes into a folder that is being emptied
        self._labels, self._colors = labels, pictures.color_table(labels) if colors is None else colors
        self._gallery = Gallery(self.path, labels, self._colors, max(1, threads))
        return self

    def drawn(self) -> set[int]:
        """Indices of the images whose pictures are there."""
        return {record['index'] for record in drawn_images(self.path)}

    def add(self, index: int, name: str, image: np.ndarray, maps: Maps) -> None:
        """An image without ground truth, uint8 (H, W, 3) BGR."""
        self._gallery.add(index, name, lambda: image, maps)

    def watch(self, dataset: Any) -> Callable[[int, str, np.ndarray, Maps], None]:
        """What inference.evaluator.evaluate calls with each image of a dataset that has `file_list`."""
        def watch(index: int, name: str, label: np.ndarray, maps: Maps) -> None:
            path, _ = records.image_files(dataset, index)
            self._gallery.add(index, name, lambda: pictures.read_image(path), maps, label)
        return watch

    def __enter__(self) -> 'ReportWriter':
        self._gallery.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        self._gallery.__exit__(kind, *rest)
        if kind is None:
            gather(None)
        elif paddle.distributed.get_rank() == 0:
            self._lock.remove()

    def finish(self, title: str, facts: Sequence[tuple[str, str]], result: Mapping[str, Any] | None = None,
               run: str | os.PathLike | None = None) -> None:
        """Write the page, in the main process, and tell where it is.

        result: of evaluate(..., images=True), None without ground truth. run: folder of the training, whose
        metrics.jsonl is shown if it is there.
        """
        if paddle.distributed.get_rank() > 0:
            return
        images = self._images(result)
        log = page.read_log(Path(run) / 'metrics.jsonl') if run is not None else []
        report = page.Report(title, facts, self._labels, self._colors, images, result, log)
        index = folder.finish(self.path, page.to_html(report))
        self._lock.remove()
        logging.getLogger('report').info('open in a browser: %s', index)

    def _images(self, result: Mapping[str, Any] | None) -> list[dict[str, Any]]:
        """What is known of the images; pictures that an interrupted report of other images has left are removed."""
        images = drawn_images(self.path)
        if result is None:
            return images
        scored = {(record['index'], printable(record['name'])) for record in result['images']}
        for image in images:
            if (image['index'], image['name']) not in scored:
                shutil.rmtree(self.path / image['folder'])
        return [image for image in images if (image['index'], image['name']) in scored]


def facts(args: argparse.Namespace, config: Config, predict: Predictor, images: Any) -> list[tuple[str, str]]:
    """What a reader wants to know of how the predictions were made. args: with the flags of add_inference_flags."""
    flips = [name for axis, name in ((3, 'horizontal'), (2, 'vertical')) if any(axis in axes for axes in predict.flips)]
    test_time = [f'flips: {", ".join(flips)}' if flips else 'no flip']
    if list(predict.scales) != [1.0]:
        test_time.append(f'input scales {", ".join(f"{scale:g}" for scale in predict.scales)}')
    if predict.crop_size:
        test_time.append(f'window {predict.crop_size[0]} x {predict.crop_size[1]} (height x width)')
    found = [('Weights', args.model_path), ('Config', args.config), ('Options', ' '.join(args.opts)),
             ('Images', images),
             ('Network', f'scales {", ".join(map(str, config.model_cfg.get("n_scales") or ["1"]))}'),
             ('Test time', ', '.join(test_time)),
             ('Computed by', f'{backends.name_of(predict.model)}, {args.precision}'),
             ('Written', time.strftime('%Y-%m-%d %H:%M'))]
    return [(name, str(value)) for name, value in found if value]

