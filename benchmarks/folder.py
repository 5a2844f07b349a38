"""What predict.py gains by decoding the next image and writing the last one while the network is running.

    python -m benchmarks.folder [--images 12] [--size 1024 2048] [--seconds 0 0.1 0.3 1] [--repeat 2]

The network is replaced by a wait of that many seconds per image, during which the cores are free. A network on the CPU
leaves none free, so the results do not apply to it. The images are toy scenes with noise, so that decoding takes as
long as for a photograph. `overlapped` is predict.py as it is, `serial` the same with --num_workers 0 and with each
prediction written before the next image is read. Both write the same files, which is checked; they take turns, and the
ratio is that of the best rounds. The last line is the table as JSON.
"""
from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    import numpy as np

CONFIG = Path(__file__).resolve().parents[1] / 'configs/toy.yml'


def make(folder: Path, count: int, size: tuple[int, int]) -> np.ndarray:
    """Write toy scenes with noise as folder/images/*.png; returns the prediction of the stand-in, uint8 (H, W)."""
    import cv2
    import numpy as np

    from tools.toy.scene import compose
    (folder / 'images').mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        picture, _ = compose(size, rng)
        picture = np.asarray(picture, float)
        image = picture[..., ::-1] + rng.normal(0, 4, (*size, 1))
        cv2.imwrite(str(folder / f'images/{i}.png'), image.clip(0, 255).astype(np.uint8))
    return (picture[..., 0] // 14).astype(np.uint8)


def timed(folder: Path, way: str, seconds: float, train_ids: np.ndarray) -> tuple[float, dict[Path, bytes]]:
    """Seconds that predict.py's loop takes, and the files that it writes: {path: content}. way: serial or overlapped.

    seconds: time of the network for an image. train_ids: uint8 (H, W), its prediction.
    """
    import predict
    from inference import backends, pictures, predictor, prefetch
    started: list[float] = []
    loop = prefetch.prefetch

    def stand_in(sample: Any) -> np.ndarray:
        time.sleep(seconds)
        return train_ids

    def start(*args: Any) -> Iterator[Any]:
        started.append(time.perf_counter())
        yield from loop(*args)

    def write(self: Any, name: Any, image: np.ndarray, found: np.ndarray) -> None:
        pictures.write_prediction(self._save_dir, name, image, found, self._colors)

    out = folder / way
    argv = ['--config', str(CONFIG), '--model_path', str(folder / 'none/model.pdparams'), '--save_dir', str(out),
            '--image_path', str(folder / 'images')]
    with contextlib.ExitStack() as stack:
        for target, name, stub in ((backends, 'create', lambda *args, **kwargs: None),
                                   (predictor, 'Predictor', lambda *args, **kwargs: stand_in),
                                   (prefetch, 'prefetch', start)):
            stack.enter_context(mock.patch.object(target, name, stub))
        if way == 'serial':
            argv += ['--num_workers', '0']
            stack.enter_context(mock.patch.object(pictures.Writer, 'write', write))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        if predict.main(argv):
            raise SystemExit('predict.py failed')
        took = time.perf_counter() - started[0]
    return took, {path.relative_to(out): path.read_bytes() for path in out.rglob('*.png')}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--images', type=int, default=12)
    parser.add_argument('--size', type=int, nargs=2, default=[1024, 2048], metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--seconds', type=float, nargs='+', default=[0, 0.1, 0.3, 1], help='of the network, an image')
    parser.add_argument('--repeat', type=int, default=2)
    args = parser.parse_args()
    logging.disable(logging.INFO)
    table: list[dict[str, float]] = []
    print(f'{"network s":>10}{"serial s":>10}{"overlapped s":>14}{"x faster":>10}')
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        train_ids = make(folder, args.images, tuple(args.size))
        for seconds in args.seconds:
            best = {'serial': float('inf'), 'overlapped': float('inf')}
            files: dict[str, dict[Path, bytes]] = {}
            for _ in range(args.repeat):
                for way in best:
                    took, files[way] = timed(folder, way, seconds, train_ids)
                    best[way] = min(best[way], took / args.images)
            if files['serial'] != files['overlapped'] or len(files['serial']) != 2 * args.images:
                raise SystemExit('the two ways wrote different files')
            print(f'{seconds:10.2f}{best["serial"]:10.3f}{best["overlapped"]:14.3f}'
                  f'{best["serial"] / best["overlapped"]:10.2f}', flush=True)
            table.append({'network': seconds, **best})
    print(json.dumps(table))


if __name__ == '__main__':
    main()
