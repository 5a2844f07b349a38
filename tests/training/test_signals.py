"""What ends a run early: signals in a burst, one much later, and the death of the launcher."""
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest

from tests.conftest import PATIENCE, ROOT
from training import signals


def test_signals_in_a_burst_are_one_request_and_a_later_one_ends_at_once():
    with mock.patch('os._exit', side_effect=SystemExit) as leave, signals.StopRequest() as stop:
        with mock.patch.object(signals, 'SAME_REQUEST', PATIENCE):
            for _ in range(3):  # as the launcher sends them
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.2)
        assert stop.status == 143 and not leave.called
        with mock.patch.object(signals, 'SAME_REQUEST', 0.0), pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
    leave.assert_called_once_with(143)


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux tells a process that its parent is gone')
def test_a_worker_whose_launcher_is_killed_saves_and_ends(tmp_path):
    log = tmp_path / 'logs' / 'workerlog.0'
    launcher = subprocess.Popen(
        [sys.executable, '-m', 'paddle.distributed.launch', '--nproc_per_node', '1', '--log_dir', str(log.parent),
         str(ROOT / 'tests' / 'training' / 'kill_run.py'), str(tmp_path / 'run'), '0', '100000'],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait_for_the_log(pattern):
        end = time.monotonic() + 120
        while not (found := re.search(pattern, log.read_text() if log.exists() else '')):
            assert time.monotonic() < end, f'no "{pattern}" within 120 s'
            time.sleep(0.05)
        return found

    try:
        wait_for_the_log('iter: 9/')
    finally:
        launcher.kill()
        launcher.wait()
    try:
        iteration = wait_for_the_log(r'stopped by signal 15 after iteration (\d+);').group(1)
    finally:  # the lock names the worker: were it still there, it would train for hours
        with contextlib.suppress(ProcessLookupError):
            os.kill(int((tmp_path / 'run' / '.lock').read_text().split()[1]), signal.SIGKILL)
    assert (tmp_path / 'run' / f'iter_{iteration}' / 'state.json').is_file()
