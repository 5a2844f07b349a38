"""Time and peak memory of one training step; one process for each configuration."""
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paddle

from tools.machine import networks
from tools.machine.rows import GB, Row, Settings, judged
from training.gradient_step import GradientStep
from training.run_log import peak_memory

LOSSES = 'step_losses.json'


def describe(precision: str, recompute: bool, batch: int) -> str:
    return f'{precision}{", --recompute" if recompute else ""}, batch {batch}'


def allowed(settings: Settings, precision: str) -> float:
    """Relative difference to the loss in fp32: a mean over pixels, whose errors do not all have one sign."""
    return networks.FACTOR * networks.EPS[precision if precision != 'fp32' or settings.device == 'cpu' else 'tf32']


def step(settings: Settings, precision: str = 'fp32', recompute: bool = False, batch: int = 1) -> Iterator[Row]:
    """Steps on the same images. The loss of the first is compared with that of fp32 without recomputation."""
    processes = paddle.distributed.get_world_size()
    base = 0.0 if networks.on_gpu() else peak_memory()
    builder = networks.builder_of(settings, f'model.recompute={recompute}')
    model, optimizer = builder.model, builder.optimizer
    model.train()
    images = networks.batch_of(settings.size, batch, settings.seed)
    run = GradientStep(model, builder.loss, optimizer, precision)
    first, rounds, finite = math.nan, [], True
    for i in range(2 if settings.quick else 3 if settings.device == 'cpu' else 7):
        paddle.seed(settings.seed)  # of dropout
        networks.wait()
        start = time.perf_counter()
        _, values = run.backward([images])
        loss = float(values[0])
        finite &= not bool(run.not_finite(values))
        run.step()
        networks.wait()
        rounds.append(time.perf_counter() - start)
        first = loss if i == 0 else first
    seconds, peak = min(rounds[1:]), peak_memory()
    name = f'step {describe(precision, recompute, batch)}' + (f' x {processes} processes' if processes > 1 else '')
    data = {'loss': first, 'precision': precision, 'recompute': recompute, 'batch': batch, 'processes': processes,
            'fixed_gb': base + _fixed(model, optimizer) / GB, 'rounds': rounds}
    if networks.on_gpu():
        data['reserved_gb'] = paddle.device.cuda.max_memory_reserved() / GB
    if paddle.distributed.get_rank() == 0:
        yield _row(settings, name, data, finite, seconds, peak)


def all_processes(settings: Settings) -> Iterator[Row]:
    """The step under the launcher, on every GPU, or on two processes of the CPU."""
    return step(settings)


def _row(settings: Settings, name: str, data: dict, finite: bool, seconds: float, peak: float) -> Row:
    """With the expected loss from the file that the first configuration leaves for the others."""
    path, loss = Path(settings.folder) / LOSSES, data['loss']
    key = f'{data["batch"]}'
    known = json.loads(path.read_text()) if path.exists() else {}
    expected, passed = 'finite', finite
    if key not in known and data['processes'] == 1 and data['precision'] == 'fp32':
        path.write_text(json.dumps({**known, key: loss}))
    elif key in known:  # several processes: each has the same images, as has SyncBatchNorm
        limit = allowed(settings, data['precision']) * abs(known[key])
        expected, passed = f'loss {known[key]:.5f} +- {limit:.1g}', finite and abs(loss - known[key]) <= limit
    found = f'loss {loss:.5f}' + ('' if finite else ', not finite')
    return judged(name, passed, expected, found, seconds=seconds, peak_gb=peak, data=data)


def _fixed(model: paddle.nn.Layer, optimizer: paddle.optimizer.Optimizer) -> int:
    """Bytes that do not depend on the batch: weights, gradients, the optimizer's state."""
    def size(tensors: list[paddle.Tensor]) -> int:
        return sum(int(np.prod(x.shape)) * 4 for x in tensors)

    state = [value for value in optimizer.state_dict().values() if isinstance(value, paddle.Tensor)]
    return size(list(model.state_dict().values())) + size(list(model.parameters())) + size(state)
