"""Which of PaddleSeg's networks run in which backend, as a table: python -m tests.zoo_backends [NAME ...]

Every network of tests.paddleseg_models (or those named), as `val.py --backend` builds it, from random weights; its
classes are compared with those of Paddle for images of several sizes. `compared` does it for any config and weights.
"""
import argparse
import logging
import os
import tempfile
from pathlib import Path

import numpy as np
import paddle
import yaml

from common import cli
from common.builder import Builder
from common.config import Config
from common.errors import UserError
from inference import backends
from inference.predictor import Predictor
from tests.paddleseg_models import LOSSES, RUNS

SIZES = ((64, 128), (128, 96), (75, 106))
ENGINES = ('openvino', 'onnxruntime')


def compared(config, weights, backend, opts=(), sizes=SIZES, cache=False):
    """'yes' if a backend gives the classes of Paddle for a config and weights, else why not, in one line.

    config: path of a YAML file. sizes: (H, W) of the images, of which those are left out that fail in Paddle.
    Classes may differ where Paddle's two best logits are as close as rounding (1e-4 of the largest).
    """
    def network(name):
        return Predictor(backends.create(Builder(Config(config, opts, with_pretrained=False)), weights, name,
                                         cache=cache), flip_horizontal=True)

    try:
        paddles, other = network('paddle'), network(backend)
    except UserError as error:
        return str(error).partition(': ')[2]
    done = 0
    for seed, size in enumerate(sizes):
        image = paddle.to_tensor(np.random.default_rng(seed).standard_normal([1, 3, *size]).astype(np.float32))
        try:
            want = paddles.logits(image).numpy()
        except Exception:  # it wants sizes that are multiples of something
            continue
        found = other.logits(image).numpy()
        second, first = np.sort(want, axis=1)[:, -2:].transpose(1, 0, 2, 3)
        clear = first - second > 1e-4 * np.abs(want).max()
        if (wrong := (found.argmax(1) != want.argmax(1)) & clear).any():
            return f'{wrong.mean():.2%} of the classes differ for an image of {size[0]}x{size[1]}'
        done += 1
    return 'yes' if done else 'fails in Paddle'


def write(folder, name, num_classes=19):
    """(config, weights) of a network of RUNS in a folder, with random weights."""
    parameters, outputs = RUNS[name]
    data = {'type': 'Dataset', 'dataset_root': str(folder), 'num_classes': num_classes,
            'transforms': [{'type': 'Normalize'}]}
    config = {
        'batch_size': 1, 'iters': 1, 'model': {'type': name, 'num_classes': num_classes, **parameters},
        'train_dataset': {**data, 'train_path': 'train.txt', 'mode': 'train', 'edge': True},
        'val_dataset': {**data, 'val_path': 'val.txt', 'mode': 'val'}, 'optimizer': {'type': 'sgd'},
        'lr_scheduler': {'type': 'PolynomialDecay', 'learning_rate': 0.01},
        'loss': {'types': [loss if isinstance(loss, dict) else {'type': loss}
                           for loss in LOSSES.get(name, ['CrossEntropyLoss'])], 'coef': [1] * outputs}}
    path = Path(folder) / f'{name}.yml'
    path.write_text(yaml.safe_dump(config))
    paddle.seed(1)
    weights = path.with_suffix('.pdparams')
    paddle.save(Builder(Config(path)).model.state_dict(), str(weights))
    return path, weights


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('names', nargs='*', metavar='NAME')
    names = parser.parse_args().names or RUNS
    logging.disable(logging.INFO)
    cli.load_paddle()
    print(f'| network | {" | ".join(ENGINES)} |\n|---|{"---|" * len(ENGINES)}')
    good = dict.fromkeys(ENGINES, 0)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            config, weights = write(folder, name)
            found = {engine: compared(config, weights, engine) for engine in ENGINES if engine in backends.installed()}
        for engine, text in found.items():
            good[engine] += text == 'yes'
        print(f'| `{name}` | {" | ".join(found.get(engine, "not installed") for engine in ENGINES)} |', flush=True)
    print(f'Paddle {paddle.__version__}: ' + ', '.join(f'{engine} {n} of {len(names)}' for engine, n in good.items()),
          flush=True)
    os._exit(0)  # backends and Paddle may crash each other while they are freed


if __name__ == '__main__':
    main()
