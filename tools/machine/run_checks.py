"""Checks that start other processes: the launcher, resuming, and the commands as a user types them."""
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paddle

from losses import BootstrappedCrossEntropyLoss
from tools import convert_cityscapes, convert_cityscapes_autolabeling
from tools.machine import networks
from tools.machine.rows import NOT_RUN, PASSED, Row, Settings, judged, one_line, read
from tools.make_toy_cityscapes import make_toy
from training.gradient_step import GradientStep, freeze_batch_norm

SCRIPT = networks.ROOT / 'tools/check_machine.py'
STATE, ONE, SEVERAL = 'exchange.pdparams', 'exchange_one_{}.npz', 'exchange_several_{}.npz'
ITERS, HALF = 4, 2


def command(*words: str | Path, name: str, settings: Settings) -> float:
    """Run a Python script; returns the seconds it took. RuntimeError with its last line if it fails."""
    log = Path(settings.folder) / f'{name.replace(" ", "_")}.log'
    start = time.perf_counter()
    with open(log, 'w') as file:
        status = subprocess.run([sys.executable, *map(str, words)], cwd=networks.ROOT, stdout=file,
                                stderr=subprocess.STDOUT, env=_environment(settings)).returncode
    if status:
        raise RuntimeError(f'{name} ended with status {status}: {one_line(log.read_text(errors="replace"))}')
    return time.perf_counter() - start


def launched(part: str, settings: Settings) -> float:
    """Run a part of this tool under the launcher; returns the seconds it took."""
    logs = Path(settings.folder) / f'{part.replace(" ", "_")}_logs'
    try:
        return command('-m', 'paddle.distributed.launch', '--nproc_per_node', str(settings.processes), '--log_dir',
                       logs, SCRIPT, '--part', part, settings.folder, name=f'launcher {part}', settings=settings)
    except RuntimeError as error:
        text = '\n'.join(path.read_text(errors='replace') for path in sorted(logs.glob('workerlog.*')))
        raise RuntimeError(f'{one_line(text) if text.strip() else one_line(error)}') from error


def _environment(settings: Settings) -> dict[str, str]:
    """As the user has it: without the OMP_NUM_THREADS=1 that importing Paddle has put there, and without the empty
    CUDA_VISIBLE_DEVICES that stops the launcher, which a build for CPUs does not need.
    """
    environment = dict(os.environ)
    if settings.omp_threads is None:
        environment.pop('OMP_NUM_THREADS', None)
    if not paddle.is_compiled_with_cuda() and not environment.get('CUDA_VISIBLE_DEVICES', 'x'):
        del environment['CUDA_VISIBLE_DEVICES']
    return environment


# ---------------------------------------------------------------- several processes

def exchange(settings: Settings, kind: str) -> None:
    """The mean loss and the gradient of as many images as there are processes, on one process or on each one image.

    kind: 'frozen' (batch norm with fixed statistics) or 'sync' (over all GPUs). The losses are means over images.
    """
    world, rank = paddle.distributed.get_world_size(), paddle.distributed.get_rank()
    folder, size, count = Path(settings.folder), settings.small, settings.processes
    builder = networks.builder_of(settings, 'model.dropout=0.0')
    model = builder.model
    coefficients = [1, 0.4, 0.05, 0.05]
    losses = {'types': [BootstrappedCrossEntropyLoss(1, 0.0)] * len(coefficients), 'coef': coefficients}
    if world == 1 and kind == 'frozen':
        networks.fit_statistics(model, size, settings.seed)
        paddle.save(model.state_dict(), str(folder / STATE))
    model.set_state_dict(paddle.load(str(folder / STATE)))
    if kind == 'frozen':
        freeze_batch_norm(model)
    model.train()
    images = networks.pictures(size, count, settings.seed)
    labels = networks.labels_in_blocks(size, count, settings.seed)
    own = slice(None) if world == 1 else slice(rank, rank + 1)
    step = GradientStep(model, losses, paddle.optimizer.SGD(0.0, parameters=model.parameters()))

    def run(x: np.ndarray) -> tuple[float, np.ndarray]:
        _, values = step.backward([{'img': paddle.to_tensor(x[own]), 'label': paddle.to_tensor(labels[own])}])
        loss = float(values[0])
        gradient = networks.gradient_of(model)
        step.drop()
        return loss, gradient

    loss, gradient = run(images)
    if world == 1:
        others = list(networks.disturbances(run, model, images, 4))
        np.savez(folder / ONE.format(kind), loss=loss, gradient=gradient,
                 condition_loss=max(abs(other - loss) / abs(loss) for other, _ in others),
                 condition=max(networks.in_norm(other, gradient) for _, other in others))
        return
    total = paddle.to_tensor([loss / world])
    paddle.distributed.all_reduce(total)
    if rank == 0:
        np.savez(folder / SEVERAL.format(kind), loss=float(total[0]), gradient=gradient)


def exchange_frozen(settings: Settings) -> Iterator[Row]:
    exchange(settings, 'frozen')
    yield from ()


def exchange_sync(settings: Settings) -> Iterator[Row]:
    exchange(settings, 'sync')
    yield from ()


def launcher(settings: Settings) -> Iterator[Row]:
    """Loss and gradient of several processes against those of one with all their images; the time of a step."""
    if settings.device == 'cpu' and paddle.is_compiled_with_cuda():
        yield Row('processes under the launcher', status=NOT_RUN, reason='--device cpu, but this Paddle is built for '
                  'CUDA, and its launcher starts processes on GPUs')
        return
    if settings.processes < 2:
        yield Row('all GPUs under the launcher', status=NOT_RUN, reason='one GPU; this takes two or more')
        return
    what = f'{settings.processes} {"GPUs" if settings.device == "gpu" else "processes"}'
    kinds = {'frozen': f'{what} as one with all images'}
    if settings.device == 'gpu':
        kinds['sync'] = f'{what}, SyncBatchNorm'
    for kind, name in kinds.items():
        part = f'exchange {kind}'
        # Not in this process, which would keep its memory of the first card.
        command(SCRIPT, '--part', part, settings.folder, name=f'one process {part}', settings=settings)
        seconds = launched(part, settings)
        yield from _compared(settings, kind, name, seconds)
    if settings.device == 'cpu':
        yield Row('SyncBatchNorm as a large batch', status=NOT_RUN, reason='Paddle has it for GPUs only')
    if not settings.quick:
        launched('step all', settings)
        yield from read(Path(settings.folder) / 'step_all.rows')


def _compared(settings: Settings, kind: str, name: str, seconds: float) -> Iterator[Row]:
    folder = Path(settings.folder)
    with np.load(folder / ONE.format(kind)) as one, np.load(folder / SEVERAL.format(kind)) as several:
        precision = 'fp32' if settings.device == 'cpu' else 'tf32'
        expected, found = float(one['loss']), float(several['loss'])
        limit = networks.allowed(float(one['condition_loss']), precision) * abs(expected)
        yield judged(f'{name}: loss', abs(found - expected) <= limit,
                     f'{expected:.6f} within {limit:.0e}', f'{found:.6f}', data={'start_and_run_s': seconds})
        off = networks.in_norm(several['gradient'], one['gradient'])
        limit = networks.allowed(float(one['condition']), precision)
        yield judged(f'{name}: gradient', off <= limit, f'off by at most {limit:.0e}', f'off by {off:.0e}',
                     data={'off': off, 'allowed': limit})


# ---------------------------------------------------------------- train.py, val.py, predict.py

def toy_config(settings: Settings) -> Path:
    """A config of a very small network on a toy dataset; both are made where they are not there."""
    folder = Path(settings.folder)
    config, root = folder / 'toy_run.yml', folder / 'toy_cityscapes'
    if not config.exists():
        make_toy(root, (64, 128), 4, 2, 4, seed=settings.seed)
        convert_cityscapes.main(['--cityscapes_path', str(root), '--num_workers', '1'])
        convert_cityscapes_autolabeling.main(['--dataset_root', str(root), '--num_workers', '1'])
        config.write_text(f'_base_: {networks.CONFIGS["toy"]}\niters: {ITERS}\nbatch_size: 2\n'
                          'model: {ocr_mid_channels: 16, ocr_key_channels: 8, attn_channels: 8}\n'
                          f'train_dataset: {{dataset_root: {root}}}\nval_dataset: {{dataset_root: {root}}}\n')
    return config


def train(settings: Settings, name: str, *more: str | Path) -> Path:
    """A short run of train.py; returns its folder."""
    target = Path(settings.folder) / f'run_{name}'
    command('train.py', '--config', toy_config(settings), '--save_dir', target, '--save_interval', str(HALF),
            '--deterministic', '--seed', str(settings.seed), *more, name=f'train.py {name}', settings=settings)
    return target


def files_of(folder: Path) -> dict[str, str]:
    """{file: digest} of a checkpoint's tensors."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob('*.pd*'))}


def resume(settings: Settings) -> Iterator[Row]:
    """Iterations 3 and 4 from the checkpoint of iteration 2, against a run that was never interrupted."""
    straight = train(settings, 'straight')
    resumed = train(settings, 'resumed', '--resume_model', straight / f'iter_{HALF}')
    expected, found = (files_of(folder / f'iter_{ITERS}') for folder in (straight, resumed))
    row = judged('train.py resumed as never interrupted', bool(expected) and found == expected, 'the same bits',
                 'the same bits' if found == expected else 'other bits')
    if row.status != PASSED:
        again = files_of(train(settings, 'again') / f'iter_{ITERS}')
        row.reason = ('a run that was never interrupted gives other bits each time, too: a kernel here does not repeat '
                      'its results, with --deterministic') if again != expected else 'resuming loses something'
    yield row


def commands(settings: Settings) -> Iterator[Row]:
    """val.py and predict.py on what the run of train.py left; the seconds include the start."""
    folder, config = Path(settings.folder), toy_config(settings)
    weights = folder / 'run_straight' / f'iter_{ITERS}' / 'model.pdparams'
    if not weights.exists():
        train(settings, 'straight')
    seconds = command('val.py', '--config', config, '--model_path', weights, name='val.py', settings=settings)
    report = json.loads((weights.parent / f'evaluation_{config.stem}.json').read_text())
    yield judged('val.py, 2 toy images', len(report['images']) == 2, 'scores of 2 images',
                 f'{len(report["images"])} images, mIoU {report["miou"]:.4f}', seconds=seconds)
    out = folder / 'predictions'
    seconds = command('predict.py', '--config', config, '--model_path', weights, '--image_path',
                      folder / 'toy_cityscapes/leftImg8bit/val', '--save_dir', out, name='predict.py',
                      settings=settings)
    written = len(list((out / 'pseudo_color_prediction').rglob('*.png')))
    yield judged('predict.py, 2 toy images', written == 2, '2 pictures', f'{written} pictures', seconds=seconds)
