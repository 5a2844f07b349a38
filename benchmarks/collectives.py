"""What GPUs tell each other in a training step: how often, how many bytes, and what that costs beside the arithmetic.

    python -m benchmarks.collectives [--config configs/mscale_ocr_cityscapes_autolabel_mapillary.yml]

Counted on two CPU processes under the launcher, whose log has every all-reduce of Paddle's DataParallel: with
--accum_steps 2 as train.py does it (gradients exchanged once per step) and with every micro-batch exchanged; the
gradients of both are compared. Batch norm's exchanges and the multiply-adds are counted in a forward pass; Paddle has
no SyncBatchNorm on CPUs. Times are computed from these counts with the rates below, which are assumptions: nothing is
measured on a GPU here. The last line is the table as JSON.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

CONFIG = 'configs/mscale_ocr_cityscapes_autolabel_mapillary.yml'
CROP, SMALL = (1024, 2048), (64, 128)  # the recipe's, and what is run here
GB, MB = 1e9, 1e6
MARK = '=== '
# GPUs; bytes per second and GPU that NCCL's all-reduce reaches; seconds for one of a few kilobytes. Assumed.
LINKS: Mapping[str, tuple[int, float, float]] = {
    'NVLink (8 GPUs)': (8, 230 * GB, 25e-6), 'PCIe 4.0 x16 (8 GPUs)': (8, 15 * GB, 40e-6),
    '200 Gbit/s per GPU (64 GPUs)': (64, 20 * GB, 60e-6), '200 Gbit/s per GPU (512 GPUs)': (512, 20 * GB, 100e-6)}
CARDS = {'V100, fp32': 15.7e12 * 0.6, 'A100, bf16': 312e12 * 0.35}  # operations per second that a step may reach
BACKWARD = 3  # a training step has three times the operations of its forward pass


def build(config: str, opts: list[str]) -> tuple[Any, Any]:
    """(network in training mode, losses)."""
    from common.builder import Builder
    from common.config import Config

    builder = Builder(Config(config, [*opts, 'model.pretrained=null', 'loss.types.4.min_K=64']))
    return builder.model, builder.loss


def batch(seed: int) -> dict[str, Any]:
    import paddle

    random = np.random.default_rng([seed, paddle.distributed.get_rank()])
    return {'img': paddle.to_tensor(random.standard_normal((1, 3, *SMALL), np.float32)),
            'label': paddle.to_tensor(random.integers(0, 19, (1, *SMALL)))}


def worker(config: str, opts: list[str], folder: str) -> None:
    """One of two processes: a step of two micro-batches, as train.py exchanges it and with an exchange after each."""
    import paddle

    from common import cli
    from training.gradient_step import GradientStep

    cli.start_paddle()
    model, losses = build(config, opts)
    for layer in model.sublayers():
        if isinstance(layer, paddle.nn.Dropout | paddle.nn.Dropout2D):
            layer.p = 0.0  # both steps have to compute the same
    optimizer = paddle.optimizer.SGD(0.0, parameters=model.parameters())
    step = GradientStep(model, losses, optimizer)
    found = []
    for name, parts in (('once', [[batch(1), batch(2)]]), ('each', [[batch(1)], [batch(2)]])):
        os.write(2, f'{MARK}{name}\n'.encode())
        for part in parts:
            step.backward(part)
        os.write(2, f'{MARK}end\n'.encode())
        found.append(np.concatenate([p.grad.numpy().ravel() for p in model.parameters() if p.grad is not None])
                     / len(parts))
        optimizer.clear_grad()
    if paddle.distributed.get_rank() == 0:
        Path(folder, 'difference.json').write_text(json.dumps(
            float(np.abs(found[0] - found[1]).max() / np.abs(found[0]).max())))


def exchanged(config: str, opts: list[str]) -> tuple[dict[str, int], float]:
    """({'once', 'each': all-reduces of a step of two micro-batches}, largest difference of their gradients)."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, 'step.py')  # the launcher starts files; beside this one, training.py hides a package
        script.write_text(f'from benchmarks.collectives import worker\nworker({config!r}, {opts!r}, {folder!r})\n')
        command = [sys.executable, '-m', 'paddle.distributed.launch', '--nproc_per_node', '2', '--log_dir', folder,
                   str(script)]
        result = subprocess.run(command, capture_output=True, text=True, check=False, env={
            **os.environ, 'CUDA_VISIBLE_DEVICES': '-1,-1', 'PADDLE_DISTRI_BACKEND': 'gloo', 'OMP_NUM_THREADS': '1',
            'GLOG_vmodule': 'reducer=4', 'PYTHONPATH': str(Path(__file__).parents[1])})
        log = Path(folder, 'workerlog.0').read_text(errors='replace')
        if result.returncode:
            sys.exit(f'the launcher ended with status {result.returncode}: {log[-2000:]}')
        counts, section = Counter[str](), 'end'
        for line in log.splitlines():
            section = line.removeprefix(MARK) if line.startswith(MARK) else section
            counts[section] += len(re.findall(r'group \[\d+\] start fused_allreduce', line))
        return {name: counts[name] for name in ('once', 'each')}, json.loads(
            Path(folder, 'difference.json').read_text())


def forward_counts(model: Any) -> dict[str, Any]:
    """Of one forward pass in training: multiply-adds for one image of CROP, and channels of every batch norm's call."""
    import paddle
    import paddle.nn.functional as F

    channels: list[int] = []
    total = [0]
    for layer in model.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            note: Any = lambda layer, inputs, output: channels.append(int(output.shape[1]))  # noqa: E731
            layer.register_forward_post_hook(note)
    conv2d, matmul = F.conv2d, paddle.matmul

    def counted(x: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
        out = conv2d(x, weight, *args, **kwargs)
        total[0] += out.size * weight.size // weight.shape[0]
        return out

    def counted_matmul(x: Any, y: Any, transpose_x: bool = False, transpose_y: bool = False, **kwargs: Any) -> Any:
        out = matmul(x, y, transpose_x, transpose_y, **kwargs)
        total[0] += out.size * x.shape[-2 if transpose_x else -1]
        return out

    F.conv2d, paddle.matmul = counted, counted_matmul
    try:
        with paddle.no_grad():
            model(batch(0)['img'])
    finally:
        F.conv2d, paddle.matmul = conv2d, matmul
    area = CROP[0] * CROP[1] / (SMALL[0] * SMALL[1])
    return {'multiply_adds': total[0] * area, 'channels': channels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default=CONFIG)
    parser.add_argument('--opts', nargs='*', default=[])
    args = parser.parse_args()
    from common import cli

    cli.start_paddle()
    model, _ = build(args.config, args.opts)
    counts = forward_counts(model)
    gradient = 4 * sum(int(p.size) for p in model.parameters() if not p.stop_gradient)
    norms, channels = len(counts['channels']), sum(counts['channels'])
    reduced, difference = exchanged(args.config, args.opts)
    table: dict[str, Any] = {
        'gradient_bytes': gradient, 'all_reduces': reduced['once'], 'all_reduces_each_micro_batch': reduced['each'],
        'relative_difference': difference, 'batch_norm_exchanges': 2 * norms,
        'batch_norm_bytes': 2 * 4 * (2 * channels + norms), 'multiply_adds': counts['multiply_adds']}
    print(f'gradients: {gradient / MB:.1f} MB in {reduced["once"]} all-reduces per step')
    print(f'two micro-batches per step: {reduced["once"]} all-reduces, {reduced["each"]} if each is exchanged '
          f'({reduced["each"] / reduced["once"]:.2f} times as many); gradients differ by {difference:.1e} of '
          'the largest')
    print(f'SyncBatchNorm: {2 * norms} exchanges per micro-batch, {table["batch_norm_bytes"] / MB:.2f} MB in all')
    print(f'arithmetic: {counts["multiply_adds"] / 1e12:.2f} T multiply-adds forward per {CROP[0]}x{CROP[1]} image')
    seconds = {card: 2 * BACKWARD * counts['multiply_adds'] / rate for card, rate in CARDS.items()}
    print(f'\n{"link":32}{"gradients":>12}{"batch norm":>12}' + ''.join(f'{f"of {card}":>18}' for card in CARDS))
    table['links'] = {}
    for link, (gpus, rate, latency) in LINKS.items():
        ring = 2 * (gpus - 1) / gpus * gradient / rate + reduced['once'] * latency
        small = 2 * norms * latency + 2 * (gpus - 1) / gpus * table['batch_norm_bytes'] / rate
        table['links'][link] = {'gradients': ring, 'batch_norm': small}
        print(f'{link:32}{ring * 1e3:9.1f} ms{small * 1e3:9.1f} ms'
              + ''.join(f'{(ring + small) / of:17.0%} ' for of in seconds.values()))
    print('a step of one image: ' + ', '.join(f'{card} {of:.2f} s' for card, of in seconds.items()) + ' (computed)')
    print(json.dumps(table))


if __name__ == '__main__':
    main()
