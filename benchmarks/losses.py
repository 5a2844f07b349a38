"""Time and memory of the recipe's eight losses (four outputs, dice and bootstrapped cross entropy each).

    python benchmarks/losses.py [--size 1024 2048] [--threads 2]

Every configuration runs in a process of its own on the same logits and labels: the library's losses, the plain formulas
of the tests under autograd, and PaddleSeg's own layers. The time is one forward and backward pass, the best of
`--repeat` after one to warm up, with the processor time beside it in case the machine is shared; the memory is the peak
of resident memory during them above what was resident with the four logits in place, and so includes the gradients of
the logits. The gradient of the first output is compared with that of the plain formulas in float64, as a norm: float32
orders some of the pixels around the last of the min_K places differently. PaddleSeg's dice is a different function (per
image, smoothed): no comparison there.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

# In front of this script's own folder, where `import losses` would find this script.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CONFIGURATIONS = ('ours', 'plain', 'paddleseg')
EXACT = 'exact'
COEFS = [1, 0.4, 0.05, 0.05] * 2
NUM_CLASSES = 19
LOSS_TH = 0.05


def batch(height, width):
    """Four outputs with logits of the scale of a model in training, and labels in blocks with a tenth of them void."""
    import paddle  # not before the number of threads is set
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
        kinds = plain.dice, lambda x, y: plain.bootstrapped_cross_entropy(x, y, min_K, LOSS_TH)
    else:
        from paddleseg.models.losses import BootstrappedCrossEntropyLoss, DiceLoss
        # Its dice overwrites the void labels.
        kinds = (lambda x, y: DiceLoss()(x, y.clone())), BootstrappedCrossEntropyLoss(min_K, LOSS_TH)

    def weighted_sum(outputs, labels):
        """Of the outputs given, which may be the first ones only."""
        return sum(coefs[i] * kind(logits, labels) for coefs, kind in zip((COEFS[:4], COEFS[4:]), kinds)
                   for i, logits in enumerate(outputs))

    return weighted_sum


def status_mb(field):
    """A line of /proc/self/status in MB, such as VmRSS or VmHWM."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(field + ':'):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def measure(configuration, size, min_K, repeat, gradient):
    """Print what one configuration takes, as JSON; save its gradient of the first output."""
    outputs, labels = batch(*size)
    if configuration == EXACT:
        # The first output alone: all four take 15 GB.
        logits = outputs[0].detach().astype('float64')
        logits.stop_gradient = False
        loss_function('plain', min_K)([logits], labels).backward()
        np.save(gradient, logits.grad.numpy())
        return
    compute = loss_function(configuration, min_K)
    before = status_mb('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')  # resets the peak to what is resident now
    times = []
    for _ in range(repeat + 1):
        for logits in outputs:
            logits.clear_gradient(set_to_zero=False)
        start, cpu = time.perf_counter(), time.process_time()
        loss = compute(outputs, labels)
        float(loss)
        forward = time.perf_counter()
        loss.backward()
        times.append((time.perf_counter() - start, forward - start, time.process_time() - cpu))
        del loss
    memory = status_mb('VmHWM') - before
    np.save(gradient, outputs[0].grad.numpy())
    seconds, forward, cpu = min(times[1:] or times)
    print(json.dumps({'seconds': seconds, 'forward': forward, 'cpu': cpu, 'memory': memory}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--size', type=int, nargs=2, default=(1024, 2048), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--min_K', type=int, default=100000)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeat', type=int, default=2)
    parser.add_argument('--only', nargs='+', choices=CONFIGURATIONS, default=CONFIGURATIONS,
                        help='the first one is what the ratios refer to')
    parser.add_argument('--measure', choices=(*CONFIGURATIONS, EXACT), help=argparse.SUPPRESS)
    parser.add_argument('--gradient', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.size, args.min_K, args.repeat, args.gradient)
        return
    print(f'8 losses, 4 outputs of (1, {NUM_CLASSES}, {args.size[0]}, {args.size[1]}), '
          f'{args.threads} threads, min_K {args.min_K}')
    print(f'{"":10} {"s":>7} {"forward":>8} {"backward":>9} {"CPU s":>6} {"GB":>6} {"time ratio":>12} {"GB ratio":>10}')
    with tempfile.TemporaryDirectory() as folder:

        def in_own_process(name):
            command = [sys.executable, __file__, '--measure', name, '--gradient', f'{folder}/{name}.npy', '--size',
                       *map(str, args.size), '--min_K', str(args.min_K), '--repeat', str(args.repeat)]
            environment = {**os.environ, 'OMP_NUM_THREADS': str(args.threads)}
            return subprocess.run(command, env=environment, capture_output=True, text=True)

        first = None
        for name in args.only:
            done = in_own_process(name)
            if done.returncode:
                print(f'{name:10} failed: {(done.stderr.strip().splitlines() or ["no message"])[-1]}')
                continue
            result = json.loads(done.stdout.splitlines()[-1])
            first = first or result
            seconds, forward, memory = result['seconds'], result['forward'], result['memory']
            print(f'{name:10} {seconds:7.2f} {forward:8.2f} {seconds - forward:9.2f} {result["cpu"]:6.2f} '
                  f'{memory / 1024:6.2f} {seconds / first["seconds"]:12.1f} {memory / first["memory"]:10.1f}',
                  flush=True)
        if 'ours' in args.only:
            in_own_process(EXACT).check_returncode()
            exact, found = (np.load(f'{folder}/{name}.npy') for name in (EXACT, 'ours'))
            error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
            print(f'gradient of the first output: relative difference from the plain formulas in float64 {error:.1e}')
            if error > 1e-4:
                sys.exit('the gradients differ')


if __name__ == '__main__':
    main()
