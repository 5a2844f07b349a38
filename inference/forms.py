"""Strips, or each scale or all of them at once: what is the fastest here is measured once per machine and converted
network, and kept.
"""
import fcntl
import importlib
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from common.atomic_io import write_atomically
from common.processor import processor
from inference import converted, memory
from inference.backends.engine import threads
from inference.whole_network import WholeNetwork

logger = logging.getLogger(__name__)

STRIPS, PLAIN, AT_ONCE = 'strips', 'plain', 'one graph'
PROBE = (384, 768)  # (H, W) of the image at the highest scale
ROUNDS, SECONDS = 3, 0.3  # of a form, after one to warm up; fewer rounds where they take longer than SECONDS in all
LARGEST = 0.1  # mean difference from the logits of strips, of their mean: rounding is far below it
WORTH = 0.9  # of the time of strips, which take the least memory: taking two to four times as much has to save this
# Arrays of all channels of the branches, enlarged and joined (15 times the finest branch's), and of the features, in
# float32; and what other precisions take of that. Fitted to the resident memory of OpenVINO with HRNet-W48
# (benchmarks/inference.py, rows of the plain graph).
JOINED, FEATURES = 3 * 15, 2.2
FACTORS = {'bf16': 0.55, 'fp16': 0.55, 'int8': 0.65}


def extra_bytes(precision: str, footprint: memory.Footprint) -> float:
    """The `extra` of a WholeNetwork."""
    return 4 * FACTORS.get(precision, 1) * (JOINED * footprint.branch + FEATURES * footprint.features)


def choose(network: WholeNetwork, folder: Path, precision: str, keep: bool) -> str:
    """The fastest of STRIPS, PLAIN, each scale at once, and AT_ONCE, all scales, where the network has it.

    The executor is left without parts loaded.

    network: of a converted network in `folder`. keep: read the times there, and write them. Without it, and where they
    cannot be written, STRIPS is the choice: what is measured anew could be another one, and each form rounds in its own
    way.
    """
    if memory.on_gpu(network.device):
        # Not measured: strips go through the host's memory, part by part, and are for where memory is short. Loading
        # three forms onto a GPU at every start would take longer than many an image.
        return AT_ONCE if memory.AT_ONCE in network.strips else PLAIN
    if not keep:
        return STRIPS
    try:
        seconds = _kept(folder, network.executor, precision, lambda: _measured(network, precision))
    except OSError as error:
        logger.info('form of the network: %s; %s: measured times cannot be kept there (%s)', STRIPS, folder,
                    error.strerror)
        return STRIPS
    fastest = min(seconds, key=lambda name: seconds[name])
    found = fastest if seconds[fastest] <= WORTH * seconds[STRIPS] else STRIPS
    logger.info('form of the network: %s; seconds per megapixel, measured on this machine: %s', found, ', '.join(
        f'{name} {1e6 * value / np.prod(_probe(network)):.3g}' for name, value in seconds.items()))
    return found


def _probe(network: WholeNetwork) -> list[int]:
    """(H, W) of the image."""
    return [max(1, round(side / max(network.n_scales))) for side in PROBE]


def _measured(network: WholeNetwork, precision: str) -> dict[str, float]:
    """Seconds of each form for an image of _probe, all scales; without those whose logits are not those of strips."""
    executor: Any = network.executor  # an EngineExecutor
    image = paddle.to_tensor(np.random.default_rng(0).standard_normal([1, 3, *_probe(network)]).astype(np.float32))
    result: dict[str, float] = {}
    wanted: np.ndarray = np.zeros(0)
    strips = {STRIPS: network.largest_strip, PLAIN: memory.WHOLE, AT_ONCE: memory.AT_ONCE}
    for name, executor.strip in strips.items():
        if executor.strip not in network.strips:
            continue
        rounds: list[float] = []
        for number in range(1 + ROUNDS):
            start = time.perf_counter()
            logits = network(image)[0].numpy()
            rounds += [time.perf_counter() - start] if number else []
            if sum(rounds) > SECONDS:
                break
        wanted = logits if name == STRIPS else wanted
        # Nothing is known of 8 bits: with random weights, strips and a scale at once have little in common.
        if logits.shape == wanted.shape and (
                precision == 'int8' or np.abs(logits - wanted).mean() <= LARGEST * np.abs(wanted).mean()):
            result[name] = min(rounds)
        else:  # strips are tested most, and in every backend
            logger.warning('form of the network: %s is left out: its logits are not those of strips', name)
        executor.unload()
        memory.trim(network.device)
    return result


def _kept(folder: Path, executor: Any, precision: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The times in the folder, or what `measure` gives. Of several processes, the first one measures for all."""
    engine = importlib.import_module(executor.name).__version__
    key = converted.key_of(executor.name, engine, executor.device, precision, threads(), processor())
    path = folder / f'{key[:16]}.times'
    with (folder / 'times.lock').open('a') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError):
            seconds = measure()
        write_atomically(path, json.dumps(seconds).encode())
    return seconds
