"""Our network on a GPU against its plain graph and PyTorch: time, memory, exactness; the GPU's machine needs no Paddle.

    python -m benchmarks.gpu_inference --write DIR [--backbone HRNet_W48_NV] [--size 1024 2048] [--scales 0.5 1 2]
    python benchmarks/gpu_inference.py --measure DIR [--json FILE]

The first command needs this repository and no GPU. It writes graphs without weights, an image, and how the weights are
drawn: some megabytes, to be copied to the GPU's machine together with benchmarks/gpu_inference.py and benchmarks/gpu/.
The second needs NumPy and onnxruntime-gpu there; for the rows of PyTorch, torch and onnx. Weights are as those of
benchmarks.inference, but drawn evenly and less sensitive to rounding (benchmarks/gpu/writing.py). All graphs have a
fixed size, take the image (uint8) and give classes (uint8).

    plain    the network as one graph with the heads as trained: what anyone gets who exports it
    ours     the heads rearranged (inference/export/rearranged_head.py)
    torch    the plain graph, its nodes run by PyTorch: eager or compiled, fp16 with channels last
    tf32     fp32 graphs with use_tf32; `fp32` is without it
    cuda graph, nhwc    with ONNX Runtime's settings enable_cuda_graph and prefer_nhwc

Each row in its own process, which a crash or --timeout ends. `s` is the median of --rounds after --warm_up, from the
image in memory to the classes in memory. `peak` is what the driver (NVML) says is in use on the whole GPU at most,
beyond what was in use before, CUDA's context and the engine's code with it; nothing else may run there. `off` is the
largest difference of logits relative to their range, and `equal` the share of equal classes, both against `plain fp32`.
The last line is the table as JSON.

--provider cpu runs what a CPU can (no tf32, cuda graph, nhwc), with the peak of resident memory: to try the command.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING or __package__:
    from benchmarks.gpu import memory, onnx_row, rows, torch_row, weights
else:  # run as a file, where nothing else of this repository may be
    from gpu import memory, onnx_row, rows, torch_row, weights

PROVIDERS = {'cuda': 'CUDAExecutionProvider', 'cpu': 'CPUExecutionProvider'}


def failed(text: str) -> SystemExit:
    """Ends with status 1 and one line."""
    return SystemExit(f'error: {text}')


def checked(args: argparse.Namespace) -> dict[str, Any]:
    """The manifest, when everything that is measured with is there."""
    try:
        manifest = json.loads((args.measure / 'manifest.json').read_text())
    except (OSError, ValueError) as error:
        raise failed(f'--measure {args.measure}: expected a folder of --write with manifest.json, found '
                     f'{type(error).__name__}; write it with python -m benchmarks.gpu_inference --write') from None
    try:
        import onnxruntime
    except ImportError:
        raise failed('expected the package onnxruntime-gpu (or onnxruntime with --provider cpu), found neither; pip '
                     'install onnxruntime-gpu') from None
    offered = onnxruntime.get_available_providers()
    if PROVIDERS[args.provider] not in offered:
        raise failed(f'--provider {args.provider}: expected onnxruntime with {PROVIDERS[args.provider]}, found '
                     f'{onnxruntime.__version__} with {", ".join(offered)}; pip install onnxruntime-gpu in place of '
                     'onnxruntime, or use --provider cpu')
    if args.provider == 'cuda' and (missing := memory.missing_driver()):
        raise failed(f'--provider cuda: expected a GPU and its driver, found {missing}; install it, or use --provider '
                     'cpu')
    if wrong := weights.ensure(args.measure, manifest):
        raise failed(wrong)
    return manifest


def measure_row(name: str, target: Path, args: argparse.Namespace) -> None:
    """Print time and memory of a row as JSON; save its classes and logits."""
    row, cuda = rows.ROWS[name], args.provider == 'cuda'
    image = np.load(args.measure / 'image.npy')
    peak = memory.Peak(cuda)

    def load(output: str) -> Any:
        if row.engine == 'torch':
            return torch_row.load(row, args.measure, output, cuda, args.threads)
        return onnx_row.load(row, args.measure, output, image.shape[:2], cuda, args.threads)

    start = time.perf_counter()
    run: Any = load('classes')
    seconds, classes = onnx_row.timed(run, image, args.warm_up, args.rounds)
    found = {'seconds': statistics.median(seconds), 'rounds': seconds, 'peak_gb': peak.stop(),
             'all_s': time.perf_counter() - start}
    del run
    np.save(target / f'{name} classes.npy', classes.reshape(image.shape[:2]))
    np.save(target / f'{name} logits.npy', load('logits')(image))
    print(json.dumps(found))


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the rows and print them; returns what is the last line."""
    import onnxruntime
    manifest = checked(args)
    gpu = memory.gpu() if args.provider == 'cuda' else None
    device = gpu.name() if gpu else platform.processor() or platform.machine()
    print(f'{manifest["backbone"]}, {manifest["size"][0]}x{manifest["size"][1]}, scales {manifest["scales"]}'
          f'{", flip" * manifest["flip"]}; onnxruntime {onnxruntime.__version__} on {device}')
    found: dict[str, dict[str, Any]] = {}
    reasons: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in dict.fromkeys([rows.BASE, *args.only]):
            print(f'{name} ...', end='', file=sys.stderr, flush=True)
            result = run_row(name, Path(temporary), args)
            print(f' {"not measured" if isinstance(result, str) else "measured"}', file=sys.stderr, flush=True)
            if isinstance(result, str):
                reasons[name] = result
            else:
                found[name] = {**result, **differences(Path(temporary), name, rows.BASE in {*found, name})}
    rows.add_ratios(found)
    goals = rows.goals(found)
    show(found, reasons, goals, args.provider)
    return {'provider': args.provider, 'device': device, 'onnxruntime': onnxruntime.__version__,
            'network': {key: manifest[key] for key in ('backbone', 'size', 'scales', 'flip', 'seed', 'versions')},
            'rows': found, 'not_measured': reasons, 'goals': goals}


def run_row(name: str, target: Path, args: argparse.Namespace) -> dict[str, Any] | str:
    """What a row's process prints, or why it was not measured."""
    command = [sys.executable, __file__, '--measure', str(args.measure), '--provider', args.provider, '--rounds',
               str(args.rounds), '--warm_up', str(args.warm_up), '--row', name, str(target)]
    command += ['--threads', str(args.threads)] if args.threads else []
    environment = {**os.environ, 'CUDA_DEVICE_ORDER': 'PCI_BUS_ID'}  # as NVML counts them
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=args.timeout)
    except subprocess.TimeoutExpired:
        return f'more than {args.timeout:g} seconds (--timeout)'
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        return f'{lines[-1].strip()[:300] if lines else "no message"} (status {done.returncode})'
    return json.loads(done.stdout.splitlines()[-1])


def differences(folder: Path, name: str, known: bool) -> dict[str, float | None]:
    """From the base; None where that was not measured, `off` also where logits are not finite."""
    if not known:
        return {'off': None, 'equal': None}
    (wanted, logits), (classes, others) = ([np.load(folder / f'{row} {kind}.npy') for row in (rows.BASE, name)]
                                           for kind in ('logits', 'classes'))
    if name != rows.BASE:
        (folder / f'{name} logits.npy').unlink()  # hundreds of megabytes
    off = float(np.abs(wanted - logits).max() / np.ptp(wanted))
    return {'off': off if np.isfinite(off) else None, 'equal': float((classes == others).mean())}


def show(found: dict[str, dict[str, Any]], reasons: dict[str, str], goals: list[dict[str, Any]], provider: str) -> None:
    """The table and the goals."""
    def cell(value: float | None, form: str, width: int) -> str:
        return f'{"-" if value is None else format(value, form):>{width}}'

    print(f'{"":20} {"s":>9} {"x plain":>8} {"x eager":>8} {"peak GB":>8} {"of plain":>8} {"off":>9} {"equal":>9}')
    for name in sorted({*found, *reasons}, key=list(rows.ROWS).index):
        if name in reasons:
            print(f'{name:20} not measured: {reasons[name]}')
            continue
        row = found[name]
        print(f'{name:20} {row["seconds"]:9.4f} {cell(row["faster_than_plain"], ".2f", 8)} '
              f'{cell(row["faster_than_eager"], ".2f", 8)} {cell(row["peak_gb"], ".2f", 8)} '
              f'{cell(row["memory_of_plain"], ".2f", 8)} {cell(row["off"], ".1e", 9)} {cell(row["equal"], ".4%", 9)}')
    print('x plain, of plain: the plain graph in the same precision; x eager: torch eager fp16')
    print('goals' + ' (of a GPU; a CPU says nothing about them)' * (provider == 'cpu'))
    for goal in goals:
        print(f'{goal["result"]:12} {goal["goal"]}: {cell(goal["found"], ".3g", 0)}')


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument('--write', type=Path, metavar='DIR', help='write graphs here (needs this repository)')
    task.add_argument('--measure', type=Path, metavar='DIR', help='measure what --write has written')
    of_write = parser.add_argument_group('with --write')
    of_write.add_argument('--size', type=int, nargs=2, default=(1024, 2048), metavar=('HEIGHT', 'WIDTH'))
    of_write.add_argument('--scales', type=float, nargs='+', default=[0.5, 1.0, 2.0])
    of_write.add_argument('--backbone', default='HRNet_W48_NV', help='name of a backbone in models/hrnet.py')
    of_write.add_argument('--flip', action='store_true', help='average with the mirrored image')
    of_write.add_argument('--seed', type=int, default=0, help='of weights and image')
    of_measure = parser.add_argument_group('with --measure')
    of_measure.add_argument('--provider', choices=tuple(PROVIDERS), default='cuda')
    of_measure.add_argument('--only', nargs='+', choices=tuple(rows.ROWS), default=tuple(rows.ROWS), metavar='ROW',
                            help=f'these rows and {rows.BASE}; of: {", ".join(rows.ROWS)}')
    of_measure.add_argument('--rounds', type=int, default=10)
    of_measure.add_argument('--warm_up', type=int, default=3, help='rounds before those')
    of_measure.add_argument('--timeout', type=float, default=1800, help='seconds for a row')
    of_measure.add_argument('--threads', type=int, help='of a CPU; default: the engine\'s choice')
    of_measure.add_argument('--json', type=Path, metavar='FILE', help='write the last line here too')
    of_measure.add_argument('--row', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rounds < 1 or args.warm_up < 0:
        parser.error('--rounds: expected at least 1, and --warm_up at least 0')
    if args.row:
        measure_row(args.row[0], Path(args.row[1]), args)
    elif args.write:
        from benchmarks.gpu import writing
        from common.errors import UserError
        args.config = None
        try:
            writing.write(args.write, args)
        except UserError as error:
            raise failed(str(error)) from None
    else:
        text = json.dumps(compare(args))
        print(text)  # first: a file may not be writable
        if args.json:
            args.json.write_text(text + '\n')


if __name__ == '__main__':
    main()
