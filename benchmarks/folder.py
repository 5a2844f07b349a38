"""What predict.py gains by decoding the next image and writing the last one while the network is at work.

    python benchmarks/folder.py [--images 12] [--size 1024 2048] [--seconds 0 0.1 0.3 1] [--repeat 2]

In place of the network: a wait of so many seconds for each image, in which the cores are free. A network on the CPU
leaves none free; this says nothing of it. The images are toy scenes with noise, so that they do not decode faster than
a photograph would. `overlapped` is predict.py as it is, `serial` the same with
--num_workers 0 and each prediction written before the next image is read. Both make the same files, which is checked;
they take turns, and the ratio is that of the best rounds. The last line is the table as JSON.
"""
import argparse
import contextlib
import io
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CONFIG = Path(__file__).resolve().parents[1] / 'configs/toy.yml'


def make(folder, count, size):
    """Toy scenes with noise, folder/images/*.png; what the stand-in predicts, uint8 (H, W)."""
    import cv2
    import numpy as np

    from tools.toy.scene import compose
    (folder / 'images').mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        picture, _ = compose(tuple(size), rng)
        picture = np.asarray(picture, float)
        image = picture[..., ::-1] + rng.normal(0, 4, (*size, 1))
        cv2.imwrite(str(folder / f'images/{i}.png'), image.clip(0, 255).astype(np.uint8))
    return (picture[..., 0] // 14).astype(np.uint8)


def timed(folder, way, seconds, train_ids):
    """Seconds of predict.py's loop, and the files that it wrote."""
    import predict
    from inference import backends, pictures, predictor, prefetch
    started, loop = [], prefetch.prefetch

    def stand_in(sample):
        time.sleep(seconds)
        return train_ids

    def start(*args):
        started.append(time.perf_counter())
        yield from loop(*args)

    def write(self, name, image, found):
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--images', type=int, default=12)
    parser.add_argument('--size', type=int, nargs=2, default=[1024, 2048], metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--seconds', type=float, nargs='+', default=[0, 0.1, 0.3, 1], help='of the network, an image')
    parser.add_argument('--repeat', type=int, default=2)
    args = parser.parse_args()
    logging.disable(logging.INFO)
    table = []
    print(f'{"network s":>10}{"serial s":>10}{"overlapped s":>14}{"x faster":>10}')
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        train_ids = make(folder, args.images, args.size)
        for seconds in args.seconds:
            best, files = {'serial': float('inf'), 'overlapped': float('inf')}, {}
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
