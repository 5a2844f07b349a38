"""What a run tells while it goes on: log line, metrics.jsonl, VisualDL's curves and pictures."""
import json
import resource
import struct
import time
from pathlib import Path

import paddle

from common.numbers import finite_or_none

EVALUATION = 0.5  # an iteration's evaluation comes between it and the next


class Meter:
    """Averages since the last log line.

    images_per_step: global batch. sums: those of an earlier process; a checkpoint that keeps `meter.sums` (plain
    numbers, fit for JSON) makes the first log line after a resume average over the same iterations as without one.
    """

    def __init__(self, images_per_step, sums=None):
        self._images = images_per_step
        self.sums = sums or _zeros()
        self.restart()

    def restart(self):
        """Do not count the time since the last step (evaluation, saving)."""
        self._mark = time.perf_counter()

    def data_arrived(self):
        self._waited = time.perf_counter() - self._mark

    def step_done(self, loss, parts):
        """Count one iteration: its loss, and its terms as {name: value}."""
        now, sums = time.perf_counter(), self.sums
        sums['steps'] += 1
        sums['loss'] += loss
        sums['batch_cost'] += now - self._mark
        sums['reader_cost'] += self._waited
        for name, value in parts.items():
            sums['parts'][name] = sums['parts'].get(name, 0.0) + value
        self._mark = now

    def summary(self, steps_left):
        """The averages as a dict, and start anew.

        'loss', 'parts' {name: loss}; 'batch_cost' and 'reader_cost' in seconds per iteration, 'reader_share' of the
        second in the first (0..1), 'ips' in images per second, 'memory_gb' (see peak_memory), 'eta' as hh:mm:ss.
        """
        sums, self.sums = self.sums, _zeros()
        steps = sums['steps']
        batch, reader = sums['batch_cost'] / steps, sums['reader_cost'] / steps
        seconds = int(batch * steps_left)
        return {'loss': sums['loss'] / steps, 'parts': {name: value / steps for name, value in sums['parts'].items()},
                'batch_cost': batch, 'reader_cost': reader, 'reader_share': reader / batch,
                'ips': self._images / batch, 'memory_gb': peak_memory(),
                'eta': f'{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}'}


def _zeros():
    return {'steps': 0, 'loss': 0.0, 'parts': {}, 'batch_cost': 0.0, 'reader_cost': 0.0}


def peak_memory():
    """Most memory this process has used so far, in GiB: Paddle's on the GPU, without one all of the process's."""
    if paddle.get_device().startswith('gpu'):
        return paddle.device.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def log_line(epoch, iteration, iters, lr, log):
    """PaddleSeg's line, then what it does not tell: reader share, memory, terms of the loss. log: Meter.summary().

    What follows the ETA has no colon, so that whoever looks for 'loss: ' or 'ips: ' finds PaddleSeg's numbers alone.
    """
    parts = ', '.join(f'{name} {value:.4f}' for name, value in log['parts'].items())
    return (f'[TRAIN] epoch: {epoch}, iter: {iteration}/{iters}, loss: {log["loss"]:.4f}, lr: {lr:.6f}, '
            f'batch_cost: {log["batch_cost"]:.4f}, reader_cost: {log["reader_cost"]:.5f}, '
            f'ips: {log["ips"]:.4f} samples/sec | ETA {log["eta"]} | '
            f'reader {log["reader_share"]:.0%}, memory {log["memory_gb"]:.2f} GiB' + (f' | {parts}' if parts else ''))


class RunLog:
    """The record of a run in save_dir, to be written by one process: metrics.jsonl and, with use_vdl, VisualDL's log.

    metrics.jsonl has one JSON object per line, whole as soon as it is there:
        {"kind": "train", "iteration", "epoch", "lr", ...Meter.summary()}
        {"kind": "eval", "iteration", "miou", "accuracy", "iou": {class name: value, null where undefined}}
    VisualDL's tags: Train/{loss, every part, lr, ips, batch_cost, reader_cost}, Evaluate/{mIoU, Acc, IoU/<class>,
    picture_<i>}.

    start: the iteration that the run continues from; evaluated: False when its evaluation is to be done again. What
    earlier processes wrote beyond that is cut off and the rest continued, so both records look as if the run had never
    stopped. OSError when save_dir cannot be written.
    """

    def __init__(self, save_dir, class_names=(), use_vdl=False, start=0, evaluated=True):
        save_dir = Path(save_dir)
        save_dir.mkdir(parents=True, exist_ok=True)
        self._names = class_names
        self._path = save_dir / 'metrics.jsonl'
        last = start + EVALUATION if evaluated else start
        _cut(self._path, _line_steps, last)
        self._writer = _log_writer(save_dir, last) if use_vdl else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._writer:
            self._writer.close()

    def train(self, iteration, epoch, lr, log):
        """Averages since the last line; log: Meter.summary()."""
        self._write(kind='train', iteration=iteration, epoch=epoch, lr=lr, **log)
        scalars = {'loss': log['loss'], **log['parts'], 'lr': lr,
                   **{name: log[name] for name in ('ips', 'batch_cost', 'reader_cost')}}
        self._scalars(iteration, {f'Train/{name}': value for name, value in scalars.items()})

    def evaluation(self, iteration, result, prefix=''):
        """Scores of inference.evaluator, NaN where undefined; those of the classes ('iou') may be missing.

        prefix: 'ema_' for the averaged weights: kind 'ema_eval', tags Evaluate/ema_mIoU and so on.
        """
        iou = dict(zip(self._names, map(finite_or_none, result.get('iou', ()))))
        miou, accuracy = finite_or_none(result['miou']), finite_or_none(result['accuracy'])
        self._write(kind=f'{prefix}eval', iteration=iteration, miou=miou, accuracy=accuracy, iou=iou)
        self._scalars(iteration, {f'Evaluate/{prefix}mIoU': miou, f'Evaluate/{prefix}Acc': accuracy,
                                  **{f'Evaluate/{prefix}IoU/{name}': value for name, value in iou.items()}})

    def images(self, iteration, images):
        """Pictures of an evaluation, uint8 (H, W, 3) RGB each, for VisualDL."""
        if self._writer:
            for i, image in enumerate(images):
                self._writer.add_image(f'Evaluate/picture_{i}', image, iteration)

    def _write(self, **entry):
        with open(self._path, 'a', encoding='utf-8') as file:
            file.write(json.dumps(entry) + '\n')

    def _scalars(self, iteration, values):
        if self._writer:
            for tag, value in values.items():
                if value is not None:
                    self._writer.add_scalar(tag, value, iteration)


def _log_writer(save_dir, last):
    from visualdl import LogWriter  # takes a second and a dozen packages; only for those who ask for curves

    # VisualDL's page shows nothing but the newest log of a folder, so a resumed run must continue that one.
    logs = sorted(save_dir.glob('vdlrecords*'))
    if not logs:
        return LogWriter(str(save_dir))
    _cut(logs[-1], _record_steps, last)
    return LogWriter(str(save_dir), file_name=logs[-1].name)


def _cut(path, steps, last):
    """Cut a file off where its first entry of an iteration after `last`, or a torn one, begins.

    steps: yields the iteration of every whole entry of an open file whose position is then behind that entry.
    A kill meets the old file or the new one, as shortening is a single operation of the file system.
    """
    if path.exists():
        with open(path, 'r+b') as file:
            end = 0
            for step in steps(file):
                if step > last:
                    break
                end = file.tell()
            file.truncate(end)


def _line_steps(file):
    """Of metrics.jsonl, up to the first line that is not one of ours."""
    for line in iter(file.readline, b''):
        try:
            entry = json.loads(line)
            step = entry['iteration'] + EVALUATION * entry.get('kind', '').endswith('eval')
        except (ValueError, KeyError, TypeError):
            return
        if not line.endswith(b'\n'):
            return
        yield step


def _record_steps(file):
    """Of VisualDL's log: an 8-byte length, little-endian, before every serialized record."""
    from visualdl.proto.record_pb2 import Record

    while len(header := file.read(8)) == 8:
        size, = struct.unpack('<Q', header)
        data = file.read(size)
        if not size or len(data) < size:
            return
        value = Record.FromString(data).values[0]
        yield value.id + EVALUATION * value.tag.startswith('Evaluate/')
