"""Exported networks against predict.py's: size, time, memory, equal classes.

    python -m benchmarks.export [--size 1024 2048] [--scales 0.5 1 2] [--threads 2] [--only openvino onnx]

One image through MscaleOCRNet on HRNet-W48, with weights as of benchmarks.inference, each row in its own process:
`predict` is the network of predict.py (--backend auto), the others are files of export.py, run as its check runs them:
ONNX by ONNX Runtime, all on the CPU and in fp32 arithmetic, int8 apart, which is calibrated on the image itself. `MB`
is the size of the network's files, `s` the best of --repeat rounds after one to warm up, `CPU s` the processor time,
which other processes disturb less, `x CPU` the same relative to `predict`, `peak` the peak of resident memory with the
image and without the writing, `equal` the share of pixels with the class that `predict` gives. The last line is the
table as JSON.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import inference as of_inference
from common.export_table import FORMATS

# Row: format and precision, and whether the size is fixed.
ROWS = {'predict': None, **{f'{name}{suffix}': (name, precision, fixed) for name, entry in FORMATS.items()
                            for precision in entry.precisions
                            for fixed in (False, True) if fixed or entry.any_size if not (fixed and precision == 'int8')
                            for suffix in [f' {precision}' * (precision != 'fp32') + ' fixed' * fixed]}}
DEFAULT = ('predict', *(name if entry.any_size else f'{name} fixed' for name, entry in FORMATS.items()))


def write(row: str, folder: Path, args: argparse.Namespace) -> None:
    """The files of a row."""
    import importlib

    from common import cli
    cli.start_paddle()
    from inference.export.whole import Settings
    from models.weights import load_weights
    name, precision, fixed = ROWS[row] or ('', '', False)
    model = of_inference.network(args)
    load_weights(model, folder / 'model.pdparams')
    model.eval()
    target = folder / row
    target.mkdir()
    settings = Settings(tuple(args.size) if fixed else None, precision=precision)
    images = [[np.load(folder / 'image.npy')]] if precision == 'int8' else []  # to calibrate on
    importlib.import_module(FORMATS[name].module).write(model, settings, {}, target, *images)


def measure(row: str, folder: Path, args: argparse.Namespace) -> None:
    """Print time and memory of a row as JSON; save its classes."""
    import importlib

    from common import cli
    from common.resident_memory import resident_mb
    cli.start_paddle()
    import paddle
    image = np.load(folder / 'image.npy')
    if row == 'predict':
        os.environ['MSCALE_CACHE'] = str(folder / 'cache')
        from inference import backends
        from inference.predictor import Predictor
        builder: Any = SimpleNamespace(model=of_inference.network(args), release_model=lambda: None)
        predict = Predictor(backends.create(builder, folder / 'model.pdparams'))

        def run(array: np.ndarray) -> np.ndarray:
            return predict({'img': array[0]})
    else:
        run = importlib.import_module(FORMATS[ROWS[row][0]].module).load(folder / row)  # type: ignore[index]
    rounds = []
    for _ in range(args.repeat + 1):
        start, cpu = time.perf_counter(), time.process_time()
        classes = run(image)
        rounds.append((time.perf_counter() - start, time.process_time() - cpu))
    seconds, cpu = map(min, zip(*rounds[1:]))
    np.save(folder / f'{row}.npy', classes.reshape(image.shape[2:]))
    print(json.dumps({'seconds': seconds, 'cpu': cpu, 'peak_gb': resident_mb('VmHWM') / 1024,
                      'paddle': paddle.__version__}))


def compare(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measure the rows and print them."""
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        of_inference.prepare(folder, args)
        print(f'{args.backbone}, {args.size[0]}x{args.size[1]}, scales {args.scales}, {args.threads} threads')
        print(f'{"":20} {"MB":>8} {"s":>8} {"CPU s":>8} {"x CPU":>7} {"peak GB":>8} {"equal":>9}', flush=True)
        for row in dict.fromkeys(['predict', *args.only]):
            for step in ('write', 'measure') if row != 'predict' else ('measure',):
                done = subprocess.run(
                    [sys.executable, '-W', 'ignore', '-m', 'benchmarks.export', *sys.argv[1:], '--step', step, row,
                     str(folder)], env={**os.environ, 'OMP_NUM_THREADS': str(args.threads)}, capture_output=True,
                    text=True)
                if done.returncode:
                    break
            if done.returncode:
                print(f'{row:20} not measured: {(done.stderr.strip().splitlines() or ["no message"])[-1]}', flush=True)
                continue
            found = rows[row] = json.loads(done.stdout.splitlines()[-1])
            files = (folder / row).glob('*') if row != 'predict' else [folder / 'model.pdparams']
            found['mb'] = sum(path.stat().st_size for path in files) / 1e6
            found['times'] = found['cpu'] / rows['predict']['cpu']
            found['equal'] = float((np.load(folder / 'predict.npy') == np.load(folder / f'{row}.npy')).mean())
            print(f'{row:20} {found["mb"]:8.1f} {found["seconds"]:8.2f} {found["cpu"]:8.2f} {found["times"]:7.2f} '
                  f'{found["peak_gb"]:8.2f} {found["equal"]:9.4%}', flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--size', type=int, nargs=2, default=(1024, 2048), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--scales', type=float, nargs='+', default=[0.5, 1.0, 2.0])
    parser.add_argument('--backbone', default='HRNet_W48_NV', help='name of a backbone in models/hrnet.py')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeat', type=int, default=1, help='rounds after the one to warm up')
    parser.add_argument('--only', nargs='+', choices=tuple(ROWS), default=DEFAULT, help='measure these beside predict')
    parser.add_argument('--step', nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.config = None
    if args.step:
        {'write': write, 'measure': measure}[args.step[0]](args.step[1], Path(args.step[2]), args)
        return
    print(json.dumps(compare(args)))


if __name__ == '__main__':
    main()
