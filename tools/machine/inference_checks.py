"""Logits, time and peak memory of evaluation and prediction; one process for each backend and precision."""
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle

from inference import backends
from inference.predictor import Predictor
from tools.machine import networks
from tools.machine.rows import NOT_RUN, Row, Settings, judged
from training.run_log import peak_memory

WEIGHTS, LOGITS, CONDITIONS = 'inference.pdparams', 'inference_logits.npy', 'inference_conditions.json'
PRECISIONS = {'cpu': ('fp32', 'bf16'), 'gpu': ('fp32', 'fp16', 'bf16')}  # of any backend there


def timed(function: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """(best seconds after one round to warm up, the last result)."""
    times, result = [], None
    for _ in range(rounds + 1):
        networks.wait()
        start = time.perf_counter()
        result = function()
        networks.wait()
        times.append(time.perf_counter() - start)
    return min(times[1:]), result


def plain(settings: Settings) -> Iterator[Row]:
    """The model itself, whose logits are what the others should give; leaves weights, logits and tolerances."""
    folder = Path(settings.folder)
    model = networks.builder_of(settings).model
    networks.fit_statistics(model, settings.small, settings.seed)
    model.eval()
    paddle.save(model.state_dict(), str(folder / WEIGHTS))
    image = networks.picture(settings.size, settings.seed + 1)
    seconds, logits = timed(lambda: networks.outputs_of(model, image), 1)
    np.save(folder / LOGITS, logits)
    yield judged('the plain network: one image', bool(np.isfinite(logits).all()), 'finite logits', 'finite'
                 if np.isfinite(logits).all() else 'not finite', seconds=seconds, peak_gb=peak_memory())
    small = networks.picture(settings.small, settings.seed + 1)
    found = networks.conditions(lambda x: networks.outputs_of(model, x), model, small,
                                networks.outputs_of(model, small), None, PRECISIONS[settings.device])
    (folder / CONDITIONS).write_text(json.dumps(found))


def fused(settings: Settings, backend: str, precision: str = 'fp32') -> Iterator[Row]:
    """A backend of val.py and predict.py, against the plain network: logits, argmax, time of an image."""
    folder = Path(settings.folder)
    if not (folder / WEIGHTS).exists():
        yield Row(f'{backend} {precision}: logits', status=NOT_RUN,
                  reason='the plain network, whose weights it takes, did not run')
        return
    os.environ['MSCALE_CACHE'] = str(folder / 'cache')
    model = networks.builder_of(settings).model
    network = backends.create(SimpleNamespace(model=model, release_model=lambda: None), str(folder / WEIGHTS), backend,
                              precision)
    del model
    predictor = Predictor(network)
    image = networks.picture(settings.size, settings.seed + 1)
    tensor = paddle.to_tensor(image)
    seconds, logits = timed(lambda: predictor.logits(tensor), 1 if settings.quick else 2)
    yield _compared(settings, backend, precision, logits.numpy(), seconds)
    if settings.quick:
        return
    seconds, ids = timed(lambda: predictor({'img': image[0]}), 1)
    yield judged(f'{backend} {precision}: prediction of one image', ids.shape == tuple(settings.size),
                 f'ids of {settings.size[0]}x{settings.size[1]}', f'ids of {ids.shape[0]}x{ids.shape[1]}',
                 seconds=seconds)
    flipping = Predictor(network, flip_horizontal=True)
    seconds, ids = timed(lambda: flipping({'img': image[0]}), 1)
    yield judged(f'{backend} {precision}: evaluation with flip', ids.shape == tuple(settings.size),
                 f'ids of {settings.size[0]}x{settings.size[1]}', f'ids of {ids.shape[0]}x{ids.shape[1]}',
                 seconds=seconds, peak_gb=peak_memory())


def _compared(settings: Settings, backend: str, precision: str, found: np.ndarray, seconds: float) -> Row:
    """With the plain network's logits; in fp32, argmax may differ only as far as logits may."""
    folder, name = Path(settings.folder), f'{backend} {precision}: logits'
    measured: dict[str, Any] = {'seconds': seconds, 'peak_gb': peak_memory()}
    if not (folder / CONDITIONS).exists():
        return Row(name, status=NOT_RUN, reason='the plain network, which it is compared with, did not run', **measured)
    expected = np.load(folder / LOGITS)
    kind = 'tf32' if precision == 'fp32' and settings.device == 'gpu' else precision
    conditions = json.loads((folder / CONDITIONS).read_text())
    limit = networks.allowed(conditions['fp16' if kind == 'tf32' else kind], kind)
    off = networks.of_logits(kind)(found, expected)
    equal = float((found.argmax(1) == expected.argmax(1)).mean())
    top = np.sort(expected, axis=1)[:, -2:]
    clear = (top[:, 1] - top[:, 0]) > 2 * limit * np.ptp(expected)
    wrong = kind == 'fp32' and bool(((found.argmax(1) != expected.argmax(1)) & clear).any())
    return judged(name, off <= limit and not wrong, f'off by at most {limit:.0e}',
                  f'off by {off:.0e}, argmax {100 * equal:.3f}%', data={'off': off, 'allowed': limit, 'equal': equal},
                  **measured)
