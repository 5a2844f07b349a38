"""Time and memory of a training step and of its losses, compared with a literal implementation of the recipe.

    python -m benchmarks.training [--parts losses step] [--step_size 512 1024] [--backbone HRNet_W48_NV] [--threads 2]

`losses` is the forward and backward pass of the recipe's eight losses on four outputs, `step` a whole step with one
image: forward, losses, backward, update. The configurations, each in its own process:

    plain               the straightforward formulas with autograd: the losses as in tests/losses/plain.py, the whole
                        model at both scales
    ours                what train.py runs
    ours --recompute    the same with activation checkpointing
    paddleseg           PaddleSeg's loss layers (with --paddleseg; its dice is a different function, so gradients are
                        not compared)

Times are the best and the median of `--repeat` rounds after a warm-up round, with the processor time of the best one,
in case the machine is shared. `peak` is the peak of resident memory, including library and weights; `above` is the
part of it that came after the preparation: for the losses everything except the four logits and the library, so their
gradients are included; for the step everything except library and weights. The ratios are relative to the first row.
Gradients (of the first output, or of all parameters in the first round) are compared with plain's, as relative
difference in norm; those of the losses with float64, because the formulas themselves are inexact in float32. The last
line is the table as JSON.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import paddle
    from numpy.random import Generator

    from models.mscale_ocrnet import MscaleOCRNet

PARTS = {'losses': ('plain', 'ours', 'paddleseg', 'float64'), 'step': ('plain', 'ours', 'ours --recompute')}
TOLERANCE = 1e-4
COEFS = (1, 0.4, 0.05, 0.05)
NUM_CLASSES = 19
LOSS_TH = 0.05
Round: TypeAlias = tuple[Callable[[], None], Callable[[], list[np.ndarray]]]


def labels_in_blocks(rng: Generator, height: int, width: int) -> np.ndarray:
    """int64 (1, H, W) in blocks of 16 pixels, a tenth of them void."""
    labels = rng.integers(0, NUM_CLASSES, (1, -(-height // 16), -(-width // 16)))
    labels[rng.random(labels.shape) < 0.1] = 255
    return labels.repeat(16, 1).repeat(16, 2)[:, :height, :width]


def outputs_for(rng: Generator, labels: np.ndarray) -> list[paddle.Tensor]:
    """Four outputs, float32 (1, K, H, W), with the scale of a model in training: the right class wins at most pixels.
    """
    import paddle
    outputs = []
    for _ in range(4):
        logits = rng.standard_normal((1, NUM_CLASSES, *labels.shape[1:]), 'float32')
        ahead = np.where(rng.random(labels.shape) < 0.9, 12, 0).astype('float32')
        np.put_along_axis(logits, np.minimum(labels, NUM_CLASSES - 1)[:, None], ahead[:, None], 1)
        outputs.append(paddle.to_tensor(logits, stop_gradient=False))
    return outputs


def loss_function(configuration: str, min_K: int) -> Callable[[list[paddle.Tensor], paddle.Tensor], Any]:
    """A function (outputs, labels) -> weighted sum of the eight losses, or fewer if there are fewer outputs."""
    if configuration.startswith('ours'):
        from losses import BootstrappedCrossEntropyLoss, DiceLoss, weighted_losses
        spec = {'types': [DiceLoss()] * 4 + [BootstrappedCrossEntropyLoss(min_K, LOSS_TH)] * 4, 'coef': COEFS * 2}
        return lambda outputs, labels: weighted_losses(outputs, labels, spec)[0]
    if configuration == 'paddleseg':
        from paddleseg.models import losses
        bootstrapped = losses.BootstrappedCrossEntropyLoss(min_K, LOSS_TH)

        def dice(x: paddle.Tensor, y: paddle.Tensor) -> paddle.Tensor:
            return losses.DiceLoss()(x, y.clone())  # it overwrites the void labels
    else:
        from tests.losses import plain
        dice = plain.dice

        def bootstrapped(x: paddle.Tensor, y: paddle.Tensor) -> paddle.Tensor:
            return plain.bootstrapped_cross_entropy(x, y, min_K, LOSS_TH)
    kinds = dice, bootstrapped
    return lambda outputs, labels: sum(
        coef * kind(logits, labels) for kind in kinds for coef, logits in zip(COEFS, outputs))


def plain_forward(model: MscaleOCRNet, x: paddle.Tensor) -> list[paddle.Tensor]:
    """The published training forward pass, literally: logits, auxiliary logits and attention at both scales."""
    import paddle.nn.functional as F

    def at(scale: float) -> list[paddle.Tensor]:
        scaled = F.interpolate(x, [int(side * scale) for side in x.shape[2:]], mode='bilinear') if scale != 1 else x
        logits, aux, features = model.ocrnet(scaled)
        return [F.interpolate(y, scaled.shape[2:], mode='bilinear')
                for y in (logits, aux, model.scale_attn(features))]

    def enlarged(y: paddle.Tensor) -> paddle.Tensor:
        return F.interpolate(y, x.shape[2:], mode='bilinear')

    low, low_aux, attention = at(0.5)
    high, high_aux, _ = at(1.0)
    joint, joint_aux = (enlarged(attention * lower) + (1 - enlarged(attention)) * higher
                        for lower, higher in ((low, high), (low_aux, high_aux)))
    return [joint, joint_aux, enlarged(low), high]


def losses_round(configuration: str, args: argparse.Namespace) -> Round:
    """(function that runs one round, function that returns its gradients)."""
    import paddle
    rng = np.random.default_rng(0)
    blocks = labels_in_blocks(rng, *args.losses_size)
    outputs, labels = outputs_for(rng, blocks), paddle.to_tensor(blocks)
    if configuration == 'float64':  # the first output alone: all four take 15 GB
        outputs = [outputs[0].detach().astype('float64')]
        outputs[0].stop_gradient = False
    compute = loss_function(configuration, args.min_K)

    def run() -> None:
        for logits in outputs:
            logits.clear_gradient(set_to_zero=False)
        compute(outputs, labels).backward()

    def gradient() -> list[np.ndarray]:
        found = outputs[0].grad
        assert found is not None, 'a round has been run'
        return [found.numpy()]

    return run, gradient


def step_round(configuration: str, args: argparse.Namespace) -> Round:
    """The same for a training step; the gradients are those of the first round."""
    import paddle

    from models import hrnet
    from models.mscale_ocrnet import MscaleOCRNet
    paddle.seed(0)
    model = MscaleOCRNet(NUM_CLASSES, getattr(hrnet, args.backbone)(), [0],
                         recompute=configuration.endswith('--recompute'))
    model.train()
    forward = model if configuration.startswith('ours') else lambda x: plain_forward(model, x)
    compute = loss_function(configuration, args.min_K)
    optimizer = paddle.optimizer.Momentum(0.001, parameters=model.parameters())
    rng = np.random.default_rng(0)
    image = paddle.to_tensor(rng.standard_normal((1, 3, *args.step_size), 'float32'))
    labels = paddle.to_tensor(labels_in_blocks(rng, *args.step_size))
    first: list[np.ndarray] = []

    def run() -> None:
        paddle.seed(1)
        compute(forward(image), labels).backward()
        if not first:
            first.extend(p.grad.numpy() for p in model.parameters() if p.grad is not None)
        optimizer.step()
        optimizer.clear_grad()

    return run, lambda: first


def measure(part: str, configuration: str, args: argparse.Namespace) -> None:
    """Print time and memory of a configuration as JSON; save its gradients."""
    from common import cli
    from common.resident_memory import reset_peak, resident_mb
    cli.start_paddle()
    run, gradient = (losses_round if part == 'losses' else step_round)(configuration, args)
    before = resident_mb('VmRSS')
    reset_peak()
    rounds = []
    for _ in range(1 if configuration == 'float64' else args.repeat + 1):
        start, cpu = time.perf_counter(), time.process_time()
        run()
        rounds.append((time.perf_counter() - start, time.process_time() - cpu))
    peak = resident_mb('VmHWM')
    np.savez(args.gradient, *gradient())
    seconds, cpu = min(rounds[1:] or rounds)
    print(json.dumps({'seconds': seconds, 'median': statistics.median(s for s, _ in rounds[1:] or rounds), 'cpu': cpu,
                      'peak_mb': peak, 'above_mb': peak - before}))


def difference(folder: Path, found: str, expected: str) -> float:
    """|found - expected| / |expected| over all arrays of the saved gradients of two configurations."""
    files = {name: np.load(folder / f'{name}.npz') for name in (found, expected)}
    off, norm = 0.0, 0.0
    for name in files[expected].files:
        e = files[expected][name].astype('float64')
        off, norm = off + np.square(files[found][name] - e).sum(), norm + np.square(e).sum()
    return float(np.sqrt(off / norm))


def compare(part: str, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measure the configurations of a part and print a row for each; returns the rows."""
    names = [name for name in PARTS[part] if name != 'paddleseg' or args.paddleseg]
    if args.only:
        names = [name for name in names if name in ('plain', 'float64', args.only)]
    reference = 'float64' if part == 'losses' else 'plain'
    size = args.losses_size if part == 'losses' else args.step_size
    print(f'{part}: {"4 x 2 losses" if part == "losses" else args.backbone}, 1 image {size[0]}x{size[1]}, '
          f'{args.threads} threads, min_K {args.min_K}')
    print(f'{"":17} {"best s":>7} {"median":>7} {"CPU s":>7} {"ratio":>6} {"peak GB":>8} {"ratio":>6} {"above GB":>9} '
          f'{"ratio":>6} {"gradient":>9}')
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in sorted(names, key=lambda name: name != reference):
            command = [sys.executable, '-W', 'ignore', '-m', 'benchmarks.training', *sys.argv[1:],
                       '--measure', part, name, '--gradient', str(folder / f'{name}.npz')]
            done = subprocess.run(command, env={**os.environ, 'OMP_NUM_THREADS': str(args.threads)},
                                  capture_output=True, text=True)
            if done.returncode:
                sys.exit(f'{part} {name} failed: {(done.stderr.strip().splitlines() or ["no message"])[-1]}')
            if name == 'float64':
                continue
            row = rows[name] = json.loads(done.stdout.splitlines()[-1])
            base = rows['plain']
            ratios = [row[key] / base[key] for key in ('seconds', 'peak_mb', 'above_mb')]
            row['gradient'] = None if name == 'paddleseg' else difference(folder, name, reference)
            print(f'{name:17} {row["seconds"]:7.2f} {row["median"]:7.2f} {row["cpu"]:7.2f} {ratios[0]:6.2f} '
                  f'{row["peak_mb"] / 1024:8.2f} {ratios[1]:6.2f} {row["above_mb"] / 1024:9.2f} {ratios[2]:6.2f} '
                  f'{"" if row["gradient"] is None else format(row["gradient"], ".1e"):>9}', flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS))
    parser.add_argument('--step_size', type=int, nargs=2, default=(512, 1024), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--losses_size', type=int, nargs=2, default=(1024, 2048), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--backbone', default='HRNet_W48_NV', help='name of a backbone in models/hrnet.py')
    parser.add_argument('--min_K', type=int, default=100000)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeat', type=int, default=2, help='rounds after the one to warm up')
    parser.add_argument('--paddleseg', action='store_true', help="measure PaddleSeg's losses as well")
    parser.add_argument('--only', choices=('ours', 'ours --recompute'), help='compare this one with plain')
    parser.add_argument('--measure', nargs=2, help=argparse.SUPPRESS)
    parser.add_argument('--gradient', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        part, configuration = args.measure
        measure(part, configuration, args)
        return
    table = {part: compare(part, args) for part in args.parts}
    print(json.dumps(table))
    off = [name for rows in table.values() for name, row in rows.items() if (row['gradient'] or 0) > TOLERANCE]
    if off:
        sys.exit(f'gradients differ by more than {TOLERANCE}: {", ".join(off)}')


if __name__ == '__main__':
    main()
