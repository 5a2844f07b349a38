"""Run by test_prepare_interrupted.py: tools/prepare_cityscapes.py slowed down, to be interrupted or killed.

python kill_prepare.py until FILE ARGUMENTS...: as the script itself, but every process that has written a photo waits
for FILE: however fast the machine is, the run has begun and not ended.
python kill_prepare.py kill ROOT ZIPS KILLS SEED: kills it KILLS times, a short random while after it has begun to
write, every second time the parent alone, and lets it end then. Last line: its exit status, the different numbers of
files that there were after a kill, the temporary files that were seen then. It does not end while an orphan lives.
"""
import ctypes
import os
import random
import signal
import sys
import time
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from common import cli
from tools import prepare_cityscapes


def main(argv):
    sys.modules['tools.verify_dataset'] = types.SimpleNamespace(verify=lambda root, num_workers: 0)
    replace = os.replace

    def slow(source, target):
        time.sleep(0.03)
        replace(source, target)
        while argv[0] == 'until' and str(target).endswith('_leftImg8bit.png') and not os.path.exists(argv[1]):
            time.sleep(0.01)

    os.replace = slow
    if argv[0] == 'until':
        cli.run(prepare_cityscapes.main, argv[2:])
    root, zips, kills, seed = Path(argv[1]), argv[2], int(argv[3]), int(argv[4])
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans become this process's children
    rng, counts, temporary = random.Random(seed), set(), 0
    for kill in range(kills):
        there = names(root)
        child = start(root, zips)
        while names(root) == there and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        (os.kill if kill % 2 else os.killpg)(child, signal.SIGKILL)
        while True:  # all of them, whoever was orphaned
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
        files = names(root)
        counts.add(len(files))
        temporary += sum(name.startswith('.') for name in files)
    status = os.waitstatus_to_exitcode(os.waitpid(start(root, zips), 0)[1])
    print(status, len(counts), temporary)


def names(root):
    return sorted(path.name for path in root.rglob('*') if path.name != '.lock' and path.is_file())


def start(root, zips):
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        cli.run(prepare_cityscapes.main, ['--zips', zips, '--dataset_root', str(root), '--num_workers', '2'])
    os.setpgid(child, child)
    return child


if __name__ == '__main__':
    main(sys.argv[1:])
