"""The run log: log lines, metrics.jsonl, VisualDL's curves and pictures."""
import json
import os
import resource
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import paddle

from common.numbers import finite_or_none

EVALUATION = 0.5  # an iteration's evaluation is between it and the next


class Meter:
    """Averages since the last log line.

    images_per_step: global batch. sums: those of an earlier process; with `meter.sums()` (plain numbers) kept in the
    checkpoint, the first log line after a resume averages over the same iterations as without the interruption.
    The losses are added up where they are, on the device, in float64, and read for a log line or a checkpoint.
    """

    def __init__(self, images_per_step: int, sums: dict[str, Any] | None = None) -> None:
        self._images = images_per_step
        self._sums = sums or _zeros()
        self._names: tuple[str, ...] = ()
        self._values: paddle.Tensor | None = None  # the sums of self._names, if any
        self.restart()

    def restart(self) -> None:
        """Do not count the time since the last step (evaluation, saving)."""
        self._mark = time.perf_counter()

    def data_arrived(self) -> None:
        self._waited = time.perf_counter() - self._mark

    def step_done(self, names: tuple[str, ...], values: paddle.Tensor) -> None:
        """Count one iteration: ('loss', *names of its terms), and their values, float64."""
        now, sums = time.perf_counter(), self._sums
        sums['steps'] += 1
        sums['batch_cost'] += now - self._mark
        sums['reader_cost'] += self._waited
        if self._values is None or names != self._names:
            self.sums()  # read what was added under other names
            earlier = [sums['loss'], *(sums['parts'].get(name, 0.0) for name in names[1:])]
            self._names, self._values = names, paddle.to_tensor(earlier, 'float64')
        self._values = self._values + values
        self._mark = now

    def sums(self) -> dict[str, Any]:
        """What has been added up since the last log line, as plain numbers."""
        if self._values is not None:
            loss, *parts = map(float, self._values.numpy())
            self._sums['loss'] = loss
            self._sums['parts'].update(zip(self._names[1:], parts))
        return self._sums

    def summary(self, steps_left: int) -> dict[str, Any]:
        """The averages as a dict; resets the sums.

        'loss', 'parts' {name: loss}; 'batch_cost' and 'reader_cost' in seconds per iteration, 'reader_share', their
        ratio (0..1), 'ips' in images per second, 'memory_gb' (see peak_memory), 'eta' as hh:mm:ss.
        """
        sums, self._sums, self._values = self.sums(), _zeros(), None
        steps = sums['steps']
        batch, reader = sums['batch_cost'] / steps, sums['reader_cost'] / steps
        seconds = int(batch * steps_left)
        return {'loss': sums['loss'] / steps, 'parts': {name: value / steps for name, value in sums['parts'].items()},
                'batch_cost': batch, 'reader_cost': reader, 'reader_share': reader / batch,
                'ips': self._images / batch, 'memory_gb': peak_memory(),
                'eta': f'{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}'}


def _zeros() -> dict[str, Any]:
    return {'steps': 0, 'loss': 0.0, 'parts': {}, 'batch_cost': 0.0, 'reader_cost': 0.0}


def peak_memory() -> float:
    """Peak memory of this process so far, in GiB: Paddle's on the GPU; without a GPU the process's resident memory."""
    if paddle.get_device().startswith('gpu'):
        return paddle.device.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def log_line(epoch: int, iteration: int, iters: int, lr: float, log: Mapping[str, Any]) -> str:
    """PaddleSeg's log line, then reader share, memory and the terms of the loss. log: Meter.summary().

    The part after the ETA has no colon, so that tools that parse 'loss: ' or 'ips: ' find PaddleSeg's numbers only.
    """
    parts = ', '.join(f'{name} {value:.4f}' for name, value in log['parts'].items())
    return (f'[TRAIN] epoch: {epoch}, iter: {iteration}/{iters}, loss: {log["loss"]:.4f}, lr: {lr:.6f}, '
            f'batch_cost: {log["batch_cost"]:.4f}, reader_cost: {log["reader_cost"]:.5f}, '
            f'ips: {log["ips"]:.4f} samples/sec | ETA {log["eta"]} | '
            f'reader {log["reader_share"]:.0%}, memory {log["memory_gb"]:.2f} GiB' + (f' | {parts}' if parts else ''))


class RunLog:
    """The run log in save_dir, written by a single process: metrics.jsonl and, with use_vdl, VisualDL's log.

    metrics.jsonl has one JSON object per line:
        {"kind": "train", "iteration", "epoch", "lr", ...Meter.summary()}
        {"kind": "eval", "iteration", "miou", "accuracy", "iou": {class name: value, null where undefined}}
    VisualDL's tags: Train/{loss, every part, lr, ips, batch_cost, reader_cost}, Evaluate/{mIoU, Acc, IoU/<class>,
    picture_<i>}.

    start: the iteration that the run continues from; evaluated: False if its evaluation will be repeated. Entries of
    earlier processes beyond that are cut off and both logs continued as if the run had never stopped. OSError if
    save_dir cannot be written.
    """

    def __init__(self, save_dir: str | os.PathLike, class_names: Sequence[str] = (), use_vdl: bool = False,
                 start: int = 0, evaluated: bool = True) -> None:
        save_dir = Path(save_dir)
        save_dir.mkdir(parents=True, exist_ok=True)
        self._names = class_names
        self._path = save_dir / 'metrics.jsonl'
        last = start + EVALUATION if evaluated else start
        _cut(self._path, _line_steps, last)
        self._writer = _log_writer(save_dir, last) if use_vdl else None

    def __enter__(self) -> 'RunLog':
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer:
            self._writer.close()

    def train(self, iteration: int, epoch: int, lr: float, log: Mapping[str, Any]) -> None:
        """Averages since the last line; log: Meter.summary()."""
        self._write(kind='train', iteration=iteration, epoch=epoch, lr=lr, **log)
        scalars = {'loss': log['loss'], **log['parts'], 'lr': lr,
                   **{name: log[name] for name in ('ips', 'batch_cost', 'reader_cost')}}
        self._scalars(iteration, {f'Train/{name}': value for name, value in scalars.items()})

    def evaluation(self, iteration: int, result: Mapping[str, Any], prefix: str = '') -> None:
        """Scores of inference.evaluator, NaN where undefined; those of the classes ('iou') are optional.

        prefix: 'ema_' for the averaged weights: kind 'ema_eval', tags Evaluate/ema_mIoU and so on.
        """
        iou = dict(zip(self._names, map(finite_or_none, result.get('iou', ()))))
        miou, accuracy = finite_or_none(result['miou']), finite_or_none(result['accuracy'])
        self._write(kind=f'{prefix}eval', iteration=iteration, miou=miou, accuracy=accuracy, iou=iou)
        self._scalars(iteration, {f'Evaluate/{prefix}mIoU': miou, f'Evaluate/{prefix}Acc': accuracy,
                                  **{f'Evaluate/{prefix}IoU/{name}': value for name, value in iou.items()}})

    def images(self, iteration: int, images: Iterable[np.ndarray]) -> None:
        """Pictures of an evaluation, uint8 (H, W, 3) RGB each, for VisualDL."""
        if self._writer:
            for i, image in enumerate(images):
                self._writer.add_image(f'Evaluate/picture_{i}', image, iteration)

    def _write(self, **entry: Any) -> None:
        with open(self._path, 'a', encoding='utf-8') as file:
            file.write(json.dumps(entry) + '\n')

    def _scalars(self, iteration: int, values: Mapping[str, float | None]) -> None:
        if self._writer:
            for tag, value in values.items():
                if value is not None:
                    self._writer.add_scalar(tag, value, iteration)


def _log_writer(save_dir: Path, last: float) -> Any:
    from visualdl import LogWriter  # slow to import, and needed for curves only


    # VisualDL's page shows only the newest log of a folder, so a resumed run must continue that one.
    logs = sorted(save_dir.glob('vdlrecords*'))
    if not logs:
        return LogWriter(str(save_dir))
    _cut(logs[-1], _record_steps, last)
    return LogWriter(str(save_dir), file_name=logs[-1].name)


def _cut(path: Path, steps: Callable[[BinaryIO], Iterator[float]], last: float) -> None:
    """Truncate a file at its first entry of an iteration after `last`, or at its first incomplete entry.

    steps: yields the iteration of every complete entry of an open file, whose position is then behind that entry.
    A kill leaves the old file or the new one, because truncation is a single operation of the file system.
    """
    if path.exists():
        with open(path, 'r+b') as file:
            end = 0
            for step in steps(file):
                if step > last:
                    break
                end = file.tell()
            file.truncate(end)


def _line_steps(file: BinaryIO) -> Iterator[float]:
    """The steps of metrics.jsonl, up to the first line that is not a valid entry."""
    for line in iter(file.readline, b''):
        try:
            entry = json.loads(line)
            step = entry['iteration'] + EVALUATION * entry.get('kind', '').endswith('eval')
        except (ValueError, KeyError, TypeError):
            return
        if not line.endswith(b'\n'):
            return
        yield step


def _record_steps(file: BinaryIO) -> Iterator[float]:
    """The steps of VisualDL's log: an 8-byte little-endian length before every serialized record."""
    from visualdl.proto.record_pb2 import Record

    while len(header := file.read(8)) == 8:
        size, = struct.unpack('<Q', header)
        data = file.read(size)
        if not size or len(data) < size:
            return
        value = Record.FromString(data).values[0]
        yield value.id + EVALUATION * value.tag.startswith('Evaluate/')
