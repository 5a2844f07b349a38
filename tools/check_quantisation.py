"""What 8 bits cost and save: the validation images in fp32, bf16 and int8, side by side.

    python tools/check_quantisation.py --config configs/... --model_path .../model.pdparams

Prints IoU per class and mIoU in each precision, the share of pixels with the class of the first one, seconds per image
of the network, and the peak of resident memory. A precision that the processor does not have is left out. --layers says
instead which layers cost the most: on windows of the validation images, what is won with each of them in float32.
"""
import argparse
import contextlib
import json
import logging
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == '__main__':
    from shared import repository
    repository.import_from_root()

import numpy as np

from common import cli, flags
from common.atomic_io import write_atomically
from common.errors import UserError
from common.numbers import finite_or_none
from common.resident_memory import reset_peak, resident_mb

COMPARED = ('fp32', 'bf16', 'int8')

logger = logging.getLogger('check_quantisation')


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    flags.add_inference_flags(parser, '--aug_eval')
    parser.set_defaults(precision=None)
    parser.add_argument('--save', metavar='FILE', help='write the table as .json, too')
    parser.add_argument('--layers', action='store_true', help='which layers cost the most in int8, instead')
    cli.add_debug_flag(parser)
    return parser.parse_args(argv)


def measure(builder: Any, args: argparse.Namespace, precision: str, options: Mapping[str, Any],
            first: list[bytes]) -> dict[str, Any]:
    """The row of a precision. first: the classes of the first precision, compressed, filled by it."""
    from inference import backends
    from inference.evaluator import evaluate
    from inference.predictor import Predictor

    dataset = builder.val_dataset
    network = backends.create(builder, args.model_path, **{**flags.network_options(args), 'precision': precision})
    predict, fill = Predictor(network, **options), not first
    predict(dataset[0])  # warms up
    with contextlib.suppress(OSError):  # then it is the peak of the whole process
        reset_peak()
    seconds = 0.0
    equal: list[float] = []

    def timed(sample: Mapping[str, Any]) -> np.ndarray:
        nonlocal seconds
        start = time.perf_counter()
        classes = predict(sample)
        seconds += time.perf_counter() - start
        if fill:
            first.append(zlib.compress(classes.tobytes(), 1))
        wanted = np.frombuffer(zlib.decompress(first[len(equal)]), classes.dtype).reshape(classes.shape)
        equal.append(float((classes == wanted).mean()))
        return classes

    result = evaluate(timed, dataset, args.num_workers)
    return {'iou': result['iou'], 'miou': result['miou'], 'equal': float(np.mean(equal)),
            'seconds': seconds / len(dataset), 'peak_gb': resident_mb('VmHWM') / 1024}


def table(names: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A line per class that occurs and per score, a column per precision, with its difference from the first."""
    first, *others = rows
    width = max(map(len, [*names, 'seconds per image']))
    lines = [' ' * width + ''.join(f'{name:>16}' for name in rows)]

    def scored(title: str, values: Mapping[str, float]) -> None:
        if not np.isfinite(values[first]):  # a class that occurs nowhere
            return
        cells = [f'{100 * values[first]:16.2f}']
        cells += [f'{100 * values[name]:8.2f} ({100 * (values[name] - values[first]):+5.2f})' for name in others]
        lines.append(f'{title:{width}}' + ''.join(cells))

    for i, title in enumerate(names):
        scored(title, {name: row['iou'][i] for name, row in rows.items()})
    scored('mIoU', {name: row['miou'] for name, row in rows.items()})
    for title, key, form in (('equal classes', 'equal', '{:16.2%}'), ('seconds per image', 'seconds', '{:16.3f}'),
                             ('peak GB', 'peak_gb', '{:16.2f}')):
        lines.append(f'{title:{width}}' + ''.join(form.format(row[key]) for row in rows.values()))
    return '\n'.join(lines)


def of_layers(builder: Any, args: argparse.Namespace) -> None:
    """Print and save the table of tools.quantisation.layers."""
    from inference import backends
    from tools.quantisation import layers

    backend = backends.installed()[0] if args.backend == 'auto' else args.backend
    if backend == 'paddle' or not isinstance(builder.model, layers.MscaleOCRNet):
        raise UserError(f'--layers: expected a MscaleOCRNet and --backend openvino or onnxruntime, found {backend} and '
                        f'{type(builder.model).__name__}; leave it out')
    rows = layers.measure(builder, args.model_path, backend, flags.network_options(args)['calibration'])
    print(layers.table(rows))
    if args.save:
        write_atomically(args.save, (json.dumps([row._asdict() for row in rows], indent=1) + '\n').encode())


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    if args.precision:
        raise UserError(f'--precision {args.precision}: expected none, since {", ".join(COMPARED)} are compared; leave '
                        'it out')
    args.precision = 'int8'  # for which the images to calibrate on are
    if args.save and Path(args.save).suffix != '.json':
        raise UserError(f'--save {args.save}: expected a name that ends in .json; rename it')
    cli.start_paddle()
    from common.builder import Builder
    from common.config import Config
    from common.model_zoo import local_weights
    from inference import backends

    flags.check_calibration(args)
    config = Config(args.config, args.opts, with_pretrained=False)
    vars(args).update(flags.with_test_config(vars(args), config.test_config, augment=True))
    options = flags.predictor_options(vars(args))
    args.model_path = str(local_weights(args.model_path))
    builder = Builder(config)
    builder.check_weights(Path(args.model_path).parent.parent)
    if args.save:
        flags.check_writable(Path(args.save).parent)
    if args.layers:
        return of_layers(builder, args)
    first: list[bytes] = []
    rows: dict[str, dict[str, Any]] = {}
    backends.create(builder, args.model_path, **flags.network_options(args))  # what it refuses comes before the hours
    for precision in COMPARED:
        try:
            rows[precision] = measure(builder, args, precision, options, first)
        except UserError as error:
            if precision != 'bf16':
                raise
            logger.info('%s', error)
    print(table(builder.labels.names, rows))
    if args.save:
        plain = {name: {key: list(map(finite_or_none, value)) if key == 'iou' else finite_or_none(value)
                        for key, value in row.items()} for name, row in rows.items()}
        write_atomically(args.save, (json.dumps(plain, indent=1) + '\n').encode())


if __name__ == '__main__':
    cli.run(main)
