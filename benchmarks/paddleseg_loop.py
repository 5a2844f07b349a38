"""Images per second of training and evaluation with PaddleSeg's configs, here and in PaddleSeg's own loop.

    python -m benchmarks.paddleseg_loop --paddleseg CHECKOUT --theirs PYTHON [--only segformer] [--threads 2]

CHECKOUT is PaddleSeg's repository at tag v2.8.0, PYTHON the interpreter of an environment in which its training loop
runs: PaddleSeg 2.8.0 with Paddle 2.5.2 and NumPy 1.24, where the build for GPUs computes on the CPU, too:

    python3.11 -m venv theirs && theirs/bin/pip install paddleseg==2.8.0 paddlepaddle-gpu==2.5.2 numpy==1.24.4 \\
        protobuf==3.20.2 && theirs/bin/pip uninstall -y opencv-python && theirs/bin/pip install --no-deps \\
        opencv-python-headless==4.8.1.78

Every config trains ITERATIONS steps on drawn images, in both with the same resolved config, the same number of threads
and no workers, because that is PaddleSeg's default (`--num_workers` for another), one after the other, twice. The rates
are those that each prints, the best of its lines behind the first. Evaluation is at scale 1 on whole images, the second
of two after another, PaddleSeg's helped along: where it joins sums without an axis, which Paddle 2.5 refuses, they are
stacked. In brackets: the share of the time spent on reading images. The last line is the table as JSON.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from common import cli
from common.errors import FileError

CONFIGS = {'ocrnet': 'ocrnet/ocrnet_hrnetw18_cityscapes_1024x512_160k.yml',
           'bisenet': 'bisenet/bisenet_cityscapes_1024x1024_160k.yml',
           'pp_liteseg': 'pp_liteseg/pp_liteseg_stdc1_cityscapes_1024x512_scale1.0_160k.yml',
           'segformer': 'segformer/segformer_b0_cityscapes_1024x512_160k.yml'}
SIZE, CROP = (256, 512), [256, 256]  # (H, W) of an image; (w, h)
TRAINING, VALIDATION, BATCH = 16, 8, 2
ITERATIONS, LINE = 24, 4  # steps, and steps per line of the log
ROUNDS = 2
EVAL_LINE = re.compile(r'\[EVAL\] ([\d.e-]+) ([\d.e-]+)$', re.M)
TRAIN_LINE = re.compile(r'\[TRAIN\].*batch_cost: ([\d.]+), reader_cost: ([\d.]+), ips: ([\d.]+)')
# What tools/train.py of PaddleSeg does with a config, on the CPU.
THEIRS = '''
import sys
import cv2, paddle
paddle.set_device('cpu')
from paddleseg.core import train
from paddleseg.cvlibs import Config, SegBuilder
cfg = Config(sys.argv[1])
built = SegBuilder(cfg)
train(built.model, built.train_dataset, optimizer=built.optimizer, losses=built.loss, iters=cfg.iters,
      batch_size=cfg.batch_size, save_dir=sys.argv[2], save_interval=10 ** 6, log_iters=int(sys.argv[3]),
      num_workers=int(sys.argv[4]))
import time
from paddleseg.core import evaluate
concat = paddle.concat
paddle.concat = lambda x, axis=0, name=None: concat(x, axis) if x[0].ndim else paddle.stack(x, axis)
dataset, read = built.val_dataset, 0.
class Timed(paddle.io.Dataset):
    def __getattr__(self, name):
        return getattr(dataset, name)
    def __len__(self):
        return len(dataset)
    def __getitem__(self, index):
        global read
        start = time.perf_counter()
        sample = dataset[index]
        read += time.perf_counter() - start
        return sample
for _ in range(2):
    read, start = 0., time.perf_counter()
    evaluate(built.model, Timed(), num_workers=0, print_detail=False)
    seconds = time.perf_counter() - start
print('[EVAL]', len(dataset) / seconds, read / seconds)
'''


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--paddleseg', default=os.environ.get('PADDLESEG'), help='checkout; default: $PADDLESEG')
    parser.add_argument('--theirs', metavar='PYTHON', help="of PaddleSeg's environment; without it, ours alone")
    parser.add_argument('--only', nargs='+', choices=CONFIGS, default=list(CONFIGS), help='default: all four')
    parser.add_argument('--threads', type=int, default=2, help='default: 2')
    parser.add_argument('--num_workers', type=int, default=0, help='default: 0')
    parser.add_argument('--part', nargs=2, metavar=('CONFIG', 'WEIGHTS'), help=argparse.SUPPRESS)
    cli.add_debug_flag(parser)
    args = parser.parse_args(argv)
    if not args.part and not (args.paddleseg and (Path(args.paddleseg) / 'configs').is_dir()):
        raise FileError(f'--paddleseg {args.paddleseg}: expected a checkout of PaddleSeg 2.8, found no folder configs '
                        'there; fetch tag v2.8.0')
    return args


def small_config(checkout: str, config: str, data: Path, folder: Path) -> Path:
    """The config in one file, with small crops, these data and no pretrained weights."""
    from tests.zoo import resolved

    dic: dict[str, Any] = resolved(Path(checkout) / 'configs' / config)
    dic.update(batch_size=BATCH, iters=ITERATIONS)
    dic.pop('test_config', None)
    dic['model'].pop('pretrained', None)
    dic['model'].get('backbone', {}).pop('pretrained', None)
    for section in ('train_dataset', 'val_dataset'):
        dic[section]['dataset_root'] = str(data)
    for transform in dic['train_dataset']['transforms']:
        if 'crop_size' in transform:
            transform['crop_size'] = CROP
    file = folder / f'{Path(config).stem}.yml'
    file.write_text(yaml.safe_dump(dic, sort_keys=False))
    return file


def evaluate_here(config: str, weights: str) -> None:
    """The same for this repository, in a process of its own."""
    cli.start_paddle()
    from common.builder import Builder
    from common.config import Config
    from inference import backends
    from inference.evaluator import evaluate
    from inference.predictor import Predictor

    builder = Builder(Config(config))
    dataset, read = builder.val_dataset, 0.
    own = dataset.__getitem__

    def timed(index: int) -> Any:
        nonlocal read
        start = time.perf_counter()
        sample = own(index)
        read += time.perf_counter() - start
        return sample

    type(dataset).__getitem__ = lambda self, index: timed(index)
    predict = Predictor(backends.create(builder, weights, backend='paddle'))
    for _ in range(2):
        read, start = 0., time.perf_counter()
        evaluate(predict, dataset)
        seconds = time.perf_counter() - start
    print('[EVAL]', len(dataset) / seconds, read / seconds)


def output_of(command: Sequence[str | Path], threads: int) -> str:
    environment = {**os.environ, 'OMP_NUM_THREADS': str(threads), 'MKL_NUM_THREADS': str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    text = done.stdout + done.stderr
    if done.returncode:
        raise FileError(f'{command[0]}: expected status 0, found {done.returncode}: {text.strip().splitlines()[-1]}')
    return text


def rates(text: str) -> dict[str, tuple[float, float]]:
    """{part: (images per second, share of the time spent on reading)}; of training the fastest line but the first."""
    found: dict[str, tuple[float, float]] = {}
    if lines := [tuple(map(float, line)) for line in TRAIN_LINE.findall(text)][1:]:
        cost, waited, rate = max(lines, key=lambda line: line[2])
        found['training'] = rate, waited / cost
    if line := EVAL_LINE.search(text):
        found['evaluation'] = float(line[1]), float(line[2])
    return found


def measure(config: Path, folder: Path, args: argparse.Namespace) -> dict[str, dict[str, tuple[float, float]]]:
    """{'PaddleSeg' or 'here': {part: (images per second, share of reading)}}, the best of ROUNDS."""
    best: dict[str, dict[str, tuple[float, float]]] = {}
    for number in range(ROUNDS):
        run, workers = folder / f'here{number}', str(args.num_workers)
        commands: list[tuple[str, list[str | Path]]] = [
            ('here', [sys.executable, 'train.py', '--config', config, '--save_dir', run, '--log_iters', str(LINE),
                      '--num_workers', workers, '--save_interval', str(ITERATIONS)]),
            ('here', [sys.executable, '-m', 'benchmarks.paddleseg_loop', '--part', config,
                      run / f'iter_{ITERATIONS}/model.pdparams'])]
        if args.theirs:
            commands.insert(0, ('PaddleSeg', [args.theirs, '-c', THEIRS, config, folder / f'theirs{number}', str(LINE),
                                              workers]))
        for name, command in commands:
            kept = best.setdefault(name, {})
            for part, rate in rates(output_of(command, args.threads)).items():
                kept[part] = max(rate, kept.get(part, rate))
    return best


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    if args.part:
        return evaluate_here(*args.part)
    from tools import convert_cityscapes
    from tools.make_toy_cityscapes import make_toy

    rows = {}
    print('images per second (share of reading)')
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_toy(folder / 'data', SIZE, TRAINING, VALIDATION, 0, seed=1)
        convert_cityscapes.main(['--cityscapes_path', str(folder / 'data'), '--num_workers', '1'])
        for key in args.only:
            work = folder / key
            work.mkdir()
            found = rows[key] = measure(small_config(args.paddleseg, CONFIGS[key], folder / 'data', work), work, args)
            for part in ('training', 'evaluation'):
                cells = [f'{name} {found[name][part][0]:6.2f} ({found[name][part][1]:4.0%})' for name in found]
                ratio = f'{found["here"][part][0] / found["PaddleSeg"][part][0]:5.2f}x' if args.theirs else ''
                print(f'{key:11} {part:10}  {"  ".join(cells)}  {ratio}', flush=True)
    print(json.dumps(rows))


if __name__ == '__main__':
    cli.run(main)
