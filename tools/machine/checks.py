"""The checks, each in a process of its own: its peak memory is its own, and a crash or a hang ends only itself."""
import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tools.machine.environment import Facts, visible_cards
from tools.machine.rows import FAILED, NOT_RUN, Row, Settings, append, is_out_of_memory, one_line, read

SCRIPT = Path(__file__).resolve().parents[1] / 'check_machine.py'
HALF = {'fp16': 70, 'bf16': 80}  # least compute capability that computes in it
NO_TF32 = {'NVIDIA_TF32_OVERRIDE': '0'}
PATIENCE = 1200  # seconds
LONG = ('resume', 'commands', 'inference openvino bf16', 'inference onnxruntime fp32')


@dataclass(frozen=True)
class Check:
    """function: 'module:function' of tools.machine, called as function(settings, **arguments), an iterator of rows.

    environment: variables of its process. launched: it is a part of something else, not a check by itself.
    """
    function: str
    arguments: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    launched: bool = False

    def rows(self, settings: Settings) -> Iterator[Row]:
        module, _, name = self.function.partition(':')
        function: Callable[..., Iterator[Row]] = getattr(importlib.import_module(f'tools.machine.{module}'), name)
        return partial(function, settings)(**self.arguments)


def step_name(precision: str, recompute: bool, batch: int = 1) -> str:
    return f'step {precision}{" recompute" if recompute else ""}' + (f' batch {batch}' if batch > 1 else '')


def step_check(precision: str, recompute: bool, batch: int = 1) -> Check:
    return Check('step_checks:step', {'precision': precision, 'recompute': recompute, 'batch': batch})


CHECKS = {
    'losses': Check('network_checks:kernels_and_losses'),
    'network': Check('network_checks:network', environment=NO_TF32),
    'tensor cores': Check('network_checks:tensor_cores'),
    **{step_name(precision, recompute): step_check(precision, recompute)
       for precision in ('fp32', 'fp16', 'bf16') for recompute in (False, True)},
    'launcher': Check('run_checks:launcher'),
    'exchange frozen': Check('run_checks:exchange_frozen', launched=True),
    'exchange sync': Check('run_checks:exchange_sync', launched=True),
    'step all': Check('step_checks:all_processes', launched=True),
    'memory': Check('memory_trace:step', {'recompute': False}, launched=True),
    'memory recompute': Check('memory_trace:step', {'recompute': True}, launched=True),
    'memory inference': Check('memory_trace:inference', launched=True),
    'resume': Check('run_checks:resume'),
    'commands': Check('run_checks:commands'),
    'inference plain': Check('inference_checks:plain'),
    **{f'inference {backend} {precision}': Check('inference_checks:fused', {'backend': backend, 'precision': precision})
       for backend, precision in (('paddle', 'fp32'), ('paddle', 'fp16'), ('paddle', 'bf16'), ('openvino', 'fp32'),
                                  ('openvino', 'bf16'), ('onnxruntime', 'fp32'))},
}
NAMES = [name for name, check in CHECKS.items() if not check.launched]


def find(name: str) -> Check:
    """The check of a name; also of a step with a larger batch."""
    if name in CHECKS:
        return CHECKS[name]
    _, precision, *words = name.split()
    return step_check(precision, 'recompute' in words, int(words[-1]))


def chosen(only: list[str] | None) -> list[str]:
    """The names to run, in order; what a chosen one is compared with is among them."""
    if not only:
        return NAMES
    needed = {'inference plain'} if any(name.startswith('inference ') for name in only) else set()
    return [name for name in NAMES if name in {*only, *needed}]


def unfit(name: str, settings: Settings, facts: Facts) -> str:
    """Why a check cannot run here; '' if it can."""
    words = name.split()
    on_gpu = settings.device == 'gpu'
    if name == 'tensor cores' and not on_gpu:
        return 'TF32, fp16 and bf16 in training take a GPU'
    if words[0] == 'step' or words[:2] == ['inference', 'paddle']:
        for precision, least in HALF.items():
            if precision in words and not on_gpu:
                return f'{precision} in Paddle takes a GPU'
            if precision in words and any(0 < card.capability < least for card in visible_cards(facts)):
                return f'{precision} takes a card of sm_{least} or newer'
    if words[0] == 'inference' and words[1] in ('openvino', 'onnxruntime'):
        if words[1] not in facts.backends:
            return f'{words[1]} is not installed'
        if on_gpu and words[1] == 'openvino':
            return 'OpenVINO runs on the CPU; use --device cpu'
        if words[2] == 'bf16' and 'bf16' not in _processor_flags():
            return 'this processor does not compute in bf16'
    return 'left out by --quick' if settings.quick and name in LONG else ''


def _processor_flags() -> str:
    try:
        return Path('/proc/cpuinfo').read_text()
    except OSError:
        return ''


def run_part(name: str, settings: Settings) -> bool:
    """In the check's own process: write its rows as they come; whatever it raises is a failed row, one line.

    Returns whether it went through; memory that was not there is no failure, but a fact.
    """
    path = _path(name, settings)
    try:
        for row in find(name).rows(settings):
            append(path, row)
    except Exception as error:
        short = is_out_of_memory(error)
        append(path, Row(name, status=NOT_RUN if short else FAILED,
                         reason=f'does not fit: {one_line(error)}' if short else one_line(error),
                         data={'out_of_memory': short}))
        return False
    return True


def run(name: str, settings: Settings) -> list[Row]:
    """Start a check's process and wait; returns its rows. One that dies or hangs is a failed row."""
    path = _path(name, settings)
    path.unlink(missing_ok=True)
    log = path.with_suffix('.log')
    environment = {**os.environ, **find(name).environment}
    if settings.device == 'cpu':
        environment['CUDA_VISIBLE_DEVICES'] = ''
    start = time.perf_counter()
    with open(log, 'w') as file:
        process = subprocess.Popen([sys.executable, '-W', 'ignore', str(SCRIPT), '--part', name, settings.folder],
                                   stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
        reason = _wait(process)
    rows = read(path)
    text = log.read_text(errors='replace')
    if reason or (process.returncode and not any(row.status == FAILED or row.data.get('out_of_memory')
                                                 for row in rows)):
        short = is_out_of_memory(text)
        rows.append(Row(name, status=NOT_RUN if short else FAILED, data={'out_of_memory': short},
                        reason=reason or f'{_ending(process.returncode)}: {one_line(text)}'))
    for row in rows:
        row.data['check'] = name
    if rows:
        rows[-1].data['check_seconds'] = round(time.perf_counter() - start, 1)
    return rows


def _wait(process: subprocess.Popen) -> str:
    """'' when it has ended; otherwise end it and all it started, and say why."""
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        _end(process)
        return f'no end after {PATIENCE} s, and stopped'
    except BaseException:
        _end(process)
        raise
    return ''


def _end(process: subprocess.Popen) -> None:
    """The group that this process was started with, which is its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _ending(status: int) -> str:
    return f'ended by signal {signal.Signals(-status).name}' if status < 0 else f'ended with status {status}'


def _path(name: str, settings: Settings) -> Path:
    return Path(settings.folder) / f'{name.replace(" ", "_")}.rows'
