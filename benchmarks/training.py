"""Time and memory of a training step and of its losses, against a plain reading of the recipe.

    python benchmarks/training.py [--parts losses step] [--step_size 512 1024] [--backbone HRNet_W48_NV] [--threads 2]

`losses` is the forward and backward pass of the recipe's eight losses on four outputs, `step` a whole step with one
image: forward, losses, backward, update. The configurations, each in a process of its own:

    plain               the straightforward formulas under autograd: the losses as in tests/losses/plain.py, all of the
                        model at both scales
    ours                what train.py runs
    ours --recompute    the same with activation checkpointing
    paddleseg           PaddleSeg's loss layers (with --paddleseg; its dice is another function: gradients not compared)

Times are the best and the median of `--repeat` rounds after one to warm up, with the processor time of the best beside
them, in case the machine is shared. `peak` is the peak of resident memory, library and weights included; `above` what
of it came after the preparation: of the losses, everything but the four logits and the library, so their gradients
too; of the step, everything but library and weights. The ratios are to the first row. Gradients (of the first output,
of all parameters in the first round) are compared with plain's, as relative difference in norm; the losses' with those
of float64, because in float32 the formulas themselves are off. The last line is the table as JSON.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PARTS = {'losses': ('plain', 'ours', 'paddleseg', 'float64'), 'step': ('plain', 'ours', 'ours --recompute')}
TOLERANCE = 1e-4
COEFS = (1, 0.4, 0.05, 0.05)
NUM_CLASSES = 19
LOSS_TH = 0.05


def labels_in_blocks(rng, height, width):
    """(1, H, W) int64 in blocks of 16 pixels, a tenth of them void."""
    labels = rng.integers(0, NUM_CLASSES, (1, -(-height // 16), -(-width // 16)))
    labels[rng.random(labels.shape) < 0.1] = 255
    return labels.repeat(16, 1).repeat(16, 2)[:, :height, :width]


def outputs_for(rng, labels):
    """Four outputs (1, C, H, W) with the scale of a model in training: the right class ahead at most pixels."""
    import paddle
    outputs = []
    for _ in range(4):
        logits = rng.standard_normal((1, NUM_CLASSES, *labels.shape[1:]), 'float32')
        ahead = np.where(rng.random(labels.shape) < 0.9, 12, 0).astype('float32')
        np.put_along_axis(logits, np.minimum(labels, NUM_CLASSES - 1)[:, None], ahead[:, None], 1)
        outputs.append(paddle.to_tensor(logits, stop_gradient=False))
    return outputs


def loss_function(configuration, min_K):
    """A function (outputs, labels) -> the weighted sum of the eight losses (of fewer outputs: of theirs)."""
    if configuration.startswith('ours'):
        from losses import BootstrappedCrossEntropyLoss, DiceLoss, weighted_losses
        spec = {'types': [DiceLoss()] * 4 + [BootstrappedCrossEntropyLoss(min_K, LOSS_TH)] * 4, 'coef': COEFS * 2}
        return lambda outputs, labels: weighted_losses(outputs, labels, spec)[0]
    if configuration == 'paddleseg':
        from paddleseg.models.losses import BootstrappedCrossEntropyLoss, DiceLoss
        # Its dice overwrites the void labels.
        kinds = (lambda x, y: DiceLoss()(x, y.clone())), BootstrappedCrossEntropyLoss(min_K, LOSS_TH)
    else:
        from tests.losses import plain
        kinds = plain.dice, lambda x, y: plain.bootstrapped_cross_entropy(x, y, min_K, LOSS_TH)
    return lambda outputs, labels: sum(
        coef * kind(logits, labels) for kind in kinds for coef, logits in zip(COEFS, outputs))


def plain_forward(model, x):
    """The published training forward pass as it reads: logits, auxiliary logits and attention at both scales."""
    import paddle.nn.functional as F

    def at(scale):
        scaled = F.interpolate(x, [int(side * scale) for side in x.shape[2:]], mode='bilinear') if scale != 1 else x
        logits, aux, features = model.ocrnet(scaled)
        return [F.interpolate(y, scaled.shape[2:], mode='bilinear')
                for y in (logits, aux, model.scale_attn(features))]

    def enlarged(y):
        return F.interpolate(y, x.shape[2:], mode='bilinear')

    low, low_aux, attention = at(0.5)
    high, high_aux, _ = at(1.0)
    joint, joint_aux = (enlarged(attention * lower) + (1 - enlarged(attention)) * higher
                        for lower, higher in ((low, high), (low_aux, high_aux)))
    return [joint, joint_aux, enlarged(low), high]


def losses_round(configuration, args):
    """(one round -> None, gradient after it -> list of arrays)"""
    import paddle
    rng = np.random.default_rng(0)
    labels = labels_in_blocks(rng, *args.losses_size)
    outputs = outputs_for(rng, labels)
    labels = paddle.to_tensor(labels)
    if configuration == 'float64':  # the first output alone: all four take 15 GB
        outputs = [outputs[0].detach().astype('float64')]
        outputs[0].stop_gradient = False
    compute = loss_function(configuration, args.min_K)

    def run():
        for logits in outputs:
            logits.clear_gradient(set_to_zero=False)
        compute(outputs, labels).backward()

    return run, lambda: [outputs[0].grad.numpy()]


def step_round(configuration, args):
    """As `losses_round`; the gradient is that of the first round."""
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
    first = []

    def run():
        paddle.seed(1)
        compute(forward(image), labels).backward()
        if not first:
            first.extend(p.grad.numpy() for p in model.parameters() if p.grad is not None)
        optimizer.step()
        optimizer.clear_grad()

    return run, lambda: first


def resident_mb(field):
    """VmRSS (now) or VmHWM (peak) of this process."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(field + ':'):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def measure(part, configuration, args):
    """Print what a configuration takes, as JSON; save its gradient."""
    from common import cli
    cli.start_paddle()
    run, gradient = (losses_round if part == 'losses' else step_round)(configuration, args)
    before = resident_mb('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')  # resets the peak to what is resident now
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


def difference(folder, found, expected):
    """|found - expected| / |expected| over all arrays of two saved gradients."""
    found, expected = (np.load(folder / f'{name}.npz') for name in (found, expected))
    off, norm = 0.0, 0.0
    for name in expected.files:
        e = expected[name].astype('float64')
        off, norm = off + np.square(found[name] - e).sum(), norm + np.square(e).sum()
    return float(np.sqrt(off / norm))


def compare(part, args):
    """Measure the configurations of a part, print a row for each; returns the rows."""
    names = [name for name in PARTS[part] if name != 'paddleseg' or args.paddleseg]
    if args.only:
        names = [name for name in names if name in ('plain', 'float64', args.only)]
    reference = 'float64' if part == 'losses' else 'plain'
    size = args.losses_size if part == 'losses' else args.step_size
    print(f'{part}: {"4 x 2 losses" if part == "losses" else args.backbone}, 1 image {size[0]}x{size[1]}, '
          f'{args.threads} threads, min_K {args.min_K}')
    print(f'{"":17} {"best s":>7} {"median":>7} {"CPU s":>7} {"ratio":>6} {"peak GB":>8} {"ratio":>6} {"above GB":>9} '
          f'{"ratio":>6} {"gradient":>9}')
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name in sorted(names, key=lambda name: name != reference):
            command = [sys.executable, '-W', 'ignore', __file__, *sys.argv[1:], '--measure', part, name,
                       '--gradient', str(folder / f'{name}.npz')]
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


def main():
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
        measure(*args.measure, args)
        return
    table = {part: compare(part, args) for part in args.parts}
    print(json.dumps(table))
    off = [name for rows in table.values() for name, row in rows.items() if (row['gradient'] or 0) > TOLERANCE]
    if off:
        sys.exit(f'gradients differ by more than {TOLERANCE}: {", ".join(off)}')


if __name__ == '__main__':
    main()
