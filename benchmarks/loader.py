"""Shared memory and time of training samples: in 8 bits, normalised on the device, against float32 from the workers.

    python -m benchmarks.loader [--size 1024 2048] [--num_workers 5] [--batch_size 1]

Draws a few images and reads them with the transforms of the recipe's config, cropped to --size. `shared memory` is what
the data workers of one training process hold in /dev/shm once all that may wait is waiting. `sample` is the least
processor time of one sample in a worker, on average over the images, `device` that of completing a batch. The images
are compared bit by bit. The last line is the table as JSON.
"""
import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).parents[1] / 'configs/mscale_ocr_cityscapes_autolabel_mapillary.yml'
IMAGES = 3
SETTLED = 10.0  # seconds without a change in /dev/shm


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', nargs=2, type=int, default=[1024, 2048], metavar=('H', 'W'))
    parser.add_argument('--num_workers', type=int, default=5)
    parser.add_argument('--batch_size', type=int, default=1)
    parser.add_argument('--repeat', type=int, default=5)
    return parser.parse_args(argv)


def datasets(root: Path, size: list[int]) -> dict[str, Any]:
    """The dataset of the recipe, and one whose samples are whole when they leave the worker."""
    import paddle
    import paddleseg.transforms as T

    from common.builder import Builder
    from common.config import Config
    from tools import convert_cityscapes
    from tools.make_toy_cityscapes import make_toy

    class InWorkers(T.Normalize):
        """Another class than PaddleSeg's, and so not put off."""

    class Whole(paddle.io.Dataset):
        """Without the method `compact`."""

        def __init__(self, dataset: Any) -> None:
            super().__init__()
            self._dataset = dataset

        def __len__(self) -> int:
            return len(self._dataset)

        def __getitem__(self, index: Any) -> dict[str, Any]:
            return self._dataset[index]

    make_toy(root, (size[0], size[1]), IMAGES, 1, 0, seed=1)
    convert_cityscapes.main(['--cityscapes_path', str(root), '--num_workers', '1'])

    def build() -> Any:
        return Builder(Config(CONFIG, opts=[
            f'train_dataset.dataset_root={root}', 'train_dataset.coarse_multiple=0',
            f'train_dataset.transforms.1.crop_size=[{size[1]},{size[0]}]', 'model.pretrained=null'])).train_dataset

    ours, whole = build(), build()
    whole.transforms.transforms.append(InWorkers([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    whole.normalization = None
    return {'float32': Whole(whole), 'ours': ours}


def best(function: Callable[[], Any], repeat: int) -> float:
    times = []
    for _ in range(repeat):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def shared_memory(dataset: Any, args: argparse.Namespace) -> int:
    """Bytes that the workers hold in /dev/shm while the training takes its time."""
    import psutil

    from datasets.sampling import EpochStream
    from training.loader import training_batches

    def workers() -> set[int]:
        return {child.pid for child in psutil.Process().children(recursive=True)}

    def held() -> int:
        pids = workers() - earlier
        return sum(path.stat().st_size for pid in pids for path in Path('/dev/shm').glob(f'paddle_{pid}_*'))

    earlier = workers()  # Paddle keeps those of the last loader
    batches = training_batches(dataset, EpochStream(dataset, args.batch_size, 1000), args.num_workers)
    first = next(batches)
    most, since = held(), time.monotonic()
    while time.monotonic() - since < SETTLED:
        time.sleep(0.1)
        if (now := held()) > most:
            most, since = now, time.monotonic()
    batches.close()
    del first
    return most


def measure(name: str, dataset: Any, args: argparse.Namespace) -> dict[str, Any]:
    import numpy as np
    import paddle

    read = getattr(dataset, 'compact', dataset.__getitem__)
    indices = [(0, index) for index in range(IMAGES)]
    seconds = best(lambda: [read(index) for index in indices], args.repeat) / IMAGES
    device = 0.0
    if name == 'ours':
        images = paddle.to_tensor(np.stack([read(indices[0])['img']] * args.batch_size))
        device = best(lambda: dataset.normalization.on_device(images), args.repeat)
    return {'configuration': name, 'shared_memory': shared_memory(dataset, args), 'sample': seconds, 'device': device,
            'images': [dataset[index]['img'].tobytes() for index in indices]}


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    os.environ['OMP_NUM_THREADS'] = '1'
    import cv2
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(name, dataset, args) for name, dataset in datasets(Path(folder) / 'toy', args.size).items()]
    same = rows[0].pop('images') == rows[1].pop('images')
    print(f'{args.size[0]}x{args.size[1]}, batch {args.batch_size}, {args.num_workers} workers, the images '
          f'{"have the same bits" if same else "DIFFER"}')
    print('configuration   shared memory  ratio      sample  ratio    device')
    for row in rows:
        print(f'{row["configuration"]:13} {row["shared_memory"] / 1e6:12.1f} MB '
              f'{rows[0]["shared_memory"] / row["shared_memory"]:5.2f}x {row["sample"]:10.3f} s '
              f'{rows[0]["sample"] / row["sample"]:5.2f}x {row["device"]:8.3f} s')
    print(json.dumps({'same': same, 'rows': rows}))


if __name__ == '__main__':
    main(sys.argv[1:])
