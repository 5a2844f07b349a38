"""Trained networks exported in fp32 and int8: mIoU on the validation set, equal classes, size, time.

    python -m benchmarks.quantisation --config configs/toy.yml --model_path output/demo/iter_320/model.pdparams

Each row is an export of export.py with --output logits, run as its check runs it: ONNX by ONNX Runtime, on the CPU.
Where the config resizes the images, the logits are resized back, as val.py does. `equal` is the share of pixels with
the class of the fp32 network of the same format, `x CPU` the processor time of the network relative to it, over the
validation images. The last line is the table as JSON.
"""
import argparse
import importlib
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--config', required=True)
    parser.add_argument('--model_path', required=True)
    parser.add_argument('--calibration_images', help='as of export.py')
    parser.add_argument('--calibration_count', default='32', help='as of export.py')
    parser.add_argument('--formats', nargs='+', default=('onnx', 'openvino'), choices=('onnx', 'openvino'))
    parser.add_argument('--opts', nargs='+', default=[])
    args = parser.parse_args()
    import export
    from common import cli
    cli.start_paddle()
    import paddle

    from common.builder import Builder
    from common.config import Config
    from common.export_table import FORMATS
    from inference import evaluator
    from inference.predictor import Predictor

    dataset = Builder(Config(args.config, args.opts, with_pretrained=False)).val_dataset
    images = ['--calibration_images', args.calibration_images] if args.calibration_images else []
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.formats:
            classes: dict[str, list[np.ndarray]] = {}
            for precision in ('fp32', 'int8'):
                folder = Path(temporary) / f'{name}_{precision}'
                export.main(['--config', args.config, '--model_path', args.model_path, '--save_dir', str(folder),
                             '--format', name, '--precision', precision, '--output', 'logits',
                             '--calibration_count', args.calibration_count,
                             *(images if precision == 'int8' else []), *(['--opts', *args.opts] if args.opts else [])])
                run, seconds = importlib.import_module(FORMATS[name].module).load(folder), 0.0
                run(dataset[0]['img'][None])
                found = classes.setdefault(precision, [])

                def network(x: Any, run: Any = run) -> list[Any]:
                    nonlocal seconds
                    start = time.process_time()
                    logits = run(x.numpy())
                    seconds += time.process_time() - start
                    return [paddle.to_tensor(logits)]

                predictor = Predictor(network)

                def predict(sample: Mapping[str, Any], found: list[np.ndarray] = found,
                            predictor: Predictor = predictor) -> np.ndarray:
                    found.append(predictor(sample))
                    return found[-1]

                miou = evaluator.evaluate(predict, dataset)['miou']
                size = sum(path.stat().st_size for path in folder.glob('model.*') if path.suffix != '.safetensors')
                first = rows.get(f'{name} fp32', {'seconds': seconds})
                rows[f'{name} {precision}'] = {
                    'miou': 100 * miou, 'mb': size / 1e6, 'seconds': seconds, 'times': seconds / first['seconds'],
                    'equal': float(np.mean([(a == b).mean() for a, b in zip(found, classes['fp32'])]))}
    print(f'{"":16} {"mIoU":>7} {"equal":>9} {"MB":>8} {"CPU s":>8} {"x CPU":>6}')
    for title, row in rows.items():
        print(f'{title:16} {row["miou"]:7.2f} {row["equal"]:9.2%} {row["mb"]:8.1f} '
              f'{row["seconds"] / len(dataset):8.3f} {row["times"]:6.2f}')
    print(json.dumps(rows))


if __name__ == '__main__':
    main()
