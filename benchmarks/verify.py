"""How much longer tools/verify_dataset.py takes than merely decoding the same files.

    python -m benchmarks.verify [--images 64] [--num_workers 2] [--repeat 3] [--dataset_root data/cityscapes]

Both decode all images (OpenCV) and labels (Pillow) in the same number of processes, in turns; verifying includes
finding the files and writing the reports. Without --dataset_root the data are toy scenes of 1024 x 2048, with noise
added to the images, so that they take as long to decode as photographs. The ratio is that of the best rounds.
"""
import argparse
import contextlib
import io
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datasets.description import SPLITS, describe
from datasets.pairing import FINE
from tools import convert_cityscapes
from tools.make_toy_cityscapes import make_toy
from tools.report.scan import scan
from tools.shared.workers import available_cores, results_of
from tools.verify_dataset import verify

DIFFERENT = 8


def make(root: Path, count: int) -> None:
    """Write a converted toy dataset of about `count` images, copies of a few different ones."""
    make_toy(root, (1024, 2048), train=DIFFERENT - 2, val=2, extra=0)
    convert_cityscapes.main(['--cityscapes_path', str(root)])
    rng = np.random.default_rng(0)
    for path in root.glob('leftImg8bit/*/*/*.png'):
        image = np.asarray(cv2.imread(str(path)), int) + rng.normal(0, 4, (1024, 2048, 1))
        cv2.imwrite(str(path), image.clip(0, 255).astype(np.uint8))
    copies = range((count - 2) // (DIFFERENT - 2) - 1)
    for source in sorted(root.glob('*/train/*/*_*.png')):
        if source.name.endswith(('_leftImg8bit.png', FINE.label_suffix)):
            for i in copies:
                shutil.copy(source, source.with_name(f'copy{i}_{source.name}'))
    count = (len(copies) + 1) * (DIFFERENT - 2)
    (root / 'dataset.yml').write_text(f'images: {{train: {count}, val: 2}}\n')


def decode(paths: tuple[str, str | None]) -> None:
    """Decode an image and its label, if it has one."""
    image, label = paths
    cv2.imread(image, cv2.IMREAD_COLOR)
    if label:
        with Image.open(label) as file:
            np.array(file)


def timed(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(root: str, num_workers: int, repeat: int, folder: str) -> None:
    """Print how long decoding and verifying take. folder: for the reports."""
    description = describe(root)
    pairs = [split.job(stem, False)[:2] for split in (scan(root, name, description) for name in SPLITS)
             for stem in split.images]
    times: dict[str, list[float]] = {'decoding': [], 'verifying': []}
    for _ in range(repeat):
        times['decoding'].append(timed(lambda: list(results_of(decode, pairs, num_workers))))
        with contextlib.redirect_stdout(io.StringIO()):
            times['verifying'].append(timed(lambda: verify(root, num_workers, folder)))
    best = {name: min(values) for name, values in times.items()}
    for name, seconds in best.items():
        print(f'{name}: {seconds:.2f} s, {len(pairs) / seconds:.1f} images/s, all {[round(t, 2) for t in times[name]]}')
    print(f'{len(pairs)} images, {num_workers} processes: ratio {best["verifying"] / best["decoding"]:.2f}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--dataset_root')
    parser.add_argument('--images', type=int, default=64, help=f'at least {DIFFERENT}')
    parser.add_argument('--num_workers', type=int, default=available_cores())
    parser.add_argument('--repeat', type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = args.dataset_root
        if root is None:
            root = f'{folder}/toy'
            make(Path(root), args.images)
        measure(root, args.num_workers, args.repeat, folder)


if __name__ == '__main__':
    main()
