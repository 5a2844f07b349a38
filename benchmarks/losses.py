"""Time and memory of the recipe's eight losses (four outputs, dice and bootstrapped cross entropy each).

    OMP_NUM_THREADS=2 python benchmarks/losses.py [--size 1024 2048]

Every configuration runs in a process of its own on the same logits and labels: the library's losses, the plain formulas
of the tests under autograd, and PaddleSeg's own layers. The time is one forward and backward pass, the best of
`--repeat` after one to warm up; the memory is the peak of resident memory during them above what was resident with
the four logits in place, and so includes the gradients of the logits. The gradients of the library are compared with
those of the plain formulas. PaddleSeg's dice is a different function (per image, smoothed): no comparison there.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# This script's own folder would make `import losses` find this script.
sys.path[0] = str(Path(__file__).resolve().parents[1])
THREADS = '2'
os.environ.setdefault('OMP_NUM_THREADS', THREADS)

import numpy as np  # noqa: E402
import paddle  # noqa: E402

CONFIGURATIONS = ('ours', 'plain', 'paddleseg')
COEFS = [1, 0.4, 0.05, 0.05] * 2
NUM_CLASSES = 19
LOSS_TH = 0.05


def batch(height, width):
    """Logits of the scale of a model in training, and labels in blocks with a tenth of them void."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, NUM_CLASSES, (1, -(-height // 16), -(-width // 16)))
    labels[rng.random(labels.shape) < 0.1] = 255
    labels = labels.repeat(16, 1).repeat(16, 2)[:, :height, :width]
    outputs = []
    for _ in range(4):
        logits = rng.standard_normal((1, NUM_CLASSES, height, width), 'float32')
        # The right class ahead in most blocks, so that the hard pixels are neither all nor none.
        ahead = np.where(rng.random(labels.shape) < 0.9, 12, 0).astype('float32')
        np.put_along_axis(logits, np.minimum(labels, NUM_CLASSES - 1)[:, None], ahead[:, None], 1)
        outputs.append(paddle.to_tensor(logits, stop_gradient=False))
    return outputs, paddle.to_tensor(labels)


def loss_function(configuration, min_K):
    """A function (outputs, labels) -> the weighted sum of the eight losses."""
    if configuration == 'ours':
        from losses import BootstrappedCrossEntropyLoss, DiceLoss, weighted_losses
        spec = {'types': [DiceLoss()] * 4 + [BootstrappedCrossEntropyLoss(min_K, LOSS_TH)] * 4, 'coef': COEFS}
        return lambda outputs, labels: weighted_losses(outputs, labels, spec)[0]
    if configuration == 'plain':
        from tests.losses import plain
        terms = [plain.dice] * 4 + [lambda x, y: plain.bootstrapped_cross_entropy(x, y, min_K, LOSS_TH)] * 4
    else:
        from paddleseg.models.losses import BootstrappedCrossEntropyLoss, DiceLoss
        # Its dice overwrites the void labels.
        terms = [lambda x, y: DiceLoss()(x, y.clone())] * 4 + [BootstrappedCrossEntropyLoss(min_K, LOSS_TH)] * 4
    return lambda outputs, labels: sum(
        coef * term(logits, labels) for coef, term, logits in zip(COEFS, terms, outputs * 2))


def status_mb(field):
    """A line of /proc/self/status in MB, such as VmRSS or VmHWM."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(field + ':'):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def measure(configuration, size, min_K, repeat, gradients):
    """Print what one configuration takes, as JSON; save strips of its gradients."""
    outputs, labels = batch(*size)
    compute = loss_function(configuration, min_K)
    before = status_mb('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')  # resets the peak to what is resident now
    times = []
    for _ in range(repeat + 1):
        for logits in outputs:
            logits.clear_gradient(set_to_zero=False)
        start = time.perf_counter()
        loss = compute(outputs, labels)
        value = float(loss)
        forward = time.perf_counter()
        loss.backward()
        times.append((time.perf_counter() - start, forward - start))
        del loss
    memory = status_mb('VmHWM') - before
    np.savez(gradients, *[logits.grad[:, :, ::7].numpy() for logits in outputs])
    seconds, forward = min(times[1:] or times)
    print(json.dumps({'loss': value, 'seconds': seconds, 'forward': forward, 'memory': memory}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--size', type=int, nargs=2, default=(1024, 2048), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--min_K', type=int, default=50000)
    parser.add_argument('--repeat', type=int, default=2)
    parser.add_argument('--only', nargs='+', choices=CONFIGURATIONS, default=CONFIGURATIONS)
    parser.add_argument('--measure', choices=CONFIGURATIONS, help=argparse.SUPPRESS)
    parser.add_argument('--gradients', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.size, args.min_K, args.repeat, args.gradients)
        return
    results, gradients = {}, {}
    print(f'8 losses, 4 outputs of (1, {NUM_CLASSES}, {args.size[0]}, {args.size[1]}), '
          f'{os.environ["OMP_NUM_THREADS"]} threads, paddle {paddle.__version__}')
    print(f'{"":10} {"s":>7} {"forward":>8} {"backward":>9} {"GB":>6} {"time / ours":>12} {"GB / ours":>10}')
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            path = f'{folder}/{name}.npz'
            command = [sys.executable, __file__, '--measure', name, '--gradients', path, '--size', *map(str, args.size),
                       '--min_K', str(args.min_K), '--repeat', str(args.repeat)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f'{name:10} failed: {(done.stderr.strip().splitlines() or ["no message"])[-1]}')
                continue
            result = results[name] = json.loads(done.stdout.splitlines()[-1])
            gradients[name] = np.load(path)
            seconds, forward, memory = result['seconds'], result['forward'], result['memory'] / 1024
            ratios = ''
            if 'ours' in results:
                ratios = (f' {seconds / results["ours"]["seconds"]:12.1f}'
                          f' {result["memory"] / results["ours"]["memory"]:10.1f}')
            print(f'{name:10} {seconds:7.2f} {forward:8.2f} {seconds - forward:9.2f} {memory:6.2f}{ratios}', flush=True)
        if {'ours', 'plain'} <= set(gradients):
            worst = max(np.abs(gradients['ours'][key] - expected).max() / np.abs(expected).max()
                        for key, expected in gradients['plain'].items())
            print(f'loss: ours {results["ours"]["loss"]:.7f}, plain {results["plain"]["loss"]:.7f}; '
                  f'largest difference of a gradient, relative to the largest gradient: {worst:.1e}')
            if worst > 1e-5:
                sys.exit('the gradients differ')


if __name__ == '__main__':
    main()
