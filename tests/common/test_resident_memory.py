"""What a process has resident, and its peak."""
import subprocess
import sys
from pathlib import Path

import pytest

CODE = '''
from common.resident_memory import reset_peak, resident_mb
held = b'1' * (256 << 20)
high, now = resident_mb('VmHWM'), resident_mb('VmRSS')
del held
kept = resident_mb('VmHWM')
try:
    reset_peak()
except OSError:
    print('not allowed')
else:
    print(high, now, kept, resident_mb('VmHWM'))
'''


def test_the_peak_begins_anew():
    done = subprocess.run([sys.executable, '-c', CODE], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[2])
    if done.stdout.startswith('not allowed'):
        pytest.skip('this system does not let a process reset its peak')
    high, now, kept, after = map(float, done.stdout.split())
    assert min(high, now, kept) > 256 and after < 100  # the interpreter alone has a few
