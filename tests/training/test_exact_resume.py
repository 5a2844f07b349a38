"""Killed at random moments and started again, a run ends in the same bits and the same record as one left alone."""
import contextlib
import functools
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT

SCRIPT = str(ROOT / 'tests' / 'training' / 'kill_run.py')
ITERS = 40


def command(save_dir, num_workers, processes, iters=ITERS):
    arguments = [SCRIPT, str(save_dir), str(num_workers), str(iters)]
    if processes == 1:
        return [sys.executable, *arguments]
    return [sys.executable, '-m', 'paddle.distributed.launch', '--nproc_per_node', str(processes), '--log_dir',
            f'{save_dir}_logs', *arguments]


def run_to_the_end(*args):
    done = subprocess.run(command(*args), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def run_and_kill(entries, delay, save_dir, *args):
    """Start, and SIGKILL all its processes `delay` seconds after the record has so many entries.

    Workers before their launcher: one whose launcher is gone would save and end.

    Returns whether the run was still going on.
    """
    record = Path(save_dir) / 'metrics.jsonl'
    process = subprocess.Popen(command(save_dir, *args), cwd=ROOT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not (record.exists() and record.read_bytes().count(b'\n') >= entries):
        time.sleep(0.002)
    time.sleep(delay)
    running = process.poll() is None
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in [*reversed(psutil.Process(process.pid).children(recursive=True)), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.wait()
    return running


def files_of(folder):
    """{file: digest} of the checkpoints, the best models and the averaged weights."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(Path(folder).rglob('*.pd*'))}


def record_of(folder):
    """metrics.jsonl without what depends on the clock or the machine."""
    times = ('batch_cost', 'reader_cost', 'reader_share', 'ips', 'memory_gb', 'eta')
    return [{key: value for key, value in json.loads(line).items() if key not in times}
            for line in (Path(folder) / 'metrics.jsonl').read_text().splitlines()]


@pytest.fixture(scope='module')
def left_alone(tmp_path_factory):
    """(processes, iters) -> the folder of a run without workers, which change nothing."""
    @functools.cache
    def folder(processes, iters):
        found = tmp_path_factory.mktemp('left_alone') / 'run'
        run_to_the_end(found, 0, processes, iters)
        return found

    return folder


def kill_and_compare(straight, killed, num_workers, processes, kills, iters, seed=0):
    """Kill a run `kills` times at random moments, let it finish, compare; returns the number of kills that hit it."""
    rng = random.Random(seed)
    entries = len(record_of(straight))
    moments = sorted(rng.sample(range(2, entries - 2), kills))
    hits = sum(run_and_kill(moment, rng.uniform(0, 0.02), killed, num_workers, processes, iters) for moment in moments)
    run_to_the_end(killed, num_workers, processes, iters)
    assert files_of(killed) == files_of(straight)
    assert record_of(killed) == record_of(straight)
    assert len(files_of(straight)) >= 8 and entries > iters // 4
    return hits


@pytest.mark.parametrize('num_workers, processes', [(0, 1), (2, 1), (0, 2)])
def test_kills(left_alone, tmp_path, num_workers, processes):
    straight = left_alone(processes, ITERS)
    assert kill_and_compare(straight, tmp_path / 'killed', num_workers, processes, kills=1, iters=ITERS) == 1


@pytest.mark.slow
@pytest.mark.parametrize('num_workers, processes', [(0, 1), (2, 1), (0, 2), (2, 2)])
def test_many_kills(left_alone, tmp_path, num_workers, processes):
    hits = kill_and_compare(left_alone(processes, 100), tmp_path / 'killed', num_workers, processes, kills=6, iters=100,
                            seed=num_workers + processes)
    print(f'{hits} kills hit the run with {num_workers} workers, {processes} processes')
    assert hits >= 5


WRITING = ('training.checkpoint._flushed_checksum', 'training.checkpoint._write_state', 'common.atomic_io.os.replace')
# Paddle is imported once; each run is a process of its own all the same.
RUNS = """
import contextlib, os, sys
from pathlib import Path
from unittest import mock
sys.path.insert(0, sys.argv[1])
import paddle
from paddleseg.cvlibs import manager
import common.atomic_io, training.checkpoint
from common import cli
from tests.training import kill_run

def die(*_):
    os.kill(os.getpid(), 9)

def run(folder, killed_at=None):
    child = os.fork()
    if child == 0:
        with mock.patch(killed_at, die) if killed_at else contextlib.nullcontext():
            cli.run(kill_run.main, [str(folder), '0', '8'])
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

folder = Path(sys.argv[2])
found = [run(folder / 'straight')]
for call in sys.argv[3:]:
    found += run(folder / call, call), run(folder / call)
print(*found)
"""


def test_a_kill_while_a_checkpoint_is_written(tmp_path):
    """Every point of the write in turn: the half-written folder is not taken for a checkpoint, the end is the same."""
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', RUNS, ROOT, tmp_path, *WRITING], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == '0' + ' -9 0' * len(WRITING), done.stderr[-3000:]
    for call in WRITING:
        assert files_of(tmp_path / call) == files_of(tmp_path / 'straight')


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves(tmp_path, signum):
    process = subprocess.Popen(command(tmp_path / 'run', 1, 1, 100_000), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if 'iter: 9/' in line:
            process.send_signal(signum)
            break
    log = process.stdout.read()
    assert process.wait() == 128 + signum
    assert f'stopped by signal {int(signum)} after iteration ' in log
    newest = max(int(p.name[5:]) for p in (tmp_path / 'run').glob('iter_*'))
    assert f'after iteration {newest};' in log


def test_two_runs_into_one_folder(tmp_path):
    first = subprocess.Popen(command(tmp_path / 'run', 0, 1, 100_000), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert any('iter: 3/' in line for line in first.stdout), 'it ended before its third iteration'
        second = subprocess.run(command(tmp_path / 'run', 0, 1, 100_000), cwd=ROOT, capture_output=True, text=True)
        assert second.returncode == 1
        assert f'expected no other run to write there, found process {first.pid}' in second.stderr
    finally:
        first.kill()
        first.wait()
