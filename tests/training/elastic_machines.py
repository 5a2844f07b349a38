"""Used by test_elastic.py: an etcd server, and `machines` on this one that can be killed or frozen as a whole.

A machine is a launcher of Paddle with all that it starts, and perhaps the shell loop around it. The launcher puts every
worker into a session of its own, so a process group does not hold a machine together: a variable in the environment
does, which all of its processes inherit.
"""
import os
import signal
import socket
import subprocess
import sys
import time

import psutil

from tests.conftest import ROOT

MARK = 'ELASTIC_TEST_MACHINE'
LOOP = """for try in $(seq 20); do
  "$@"; status=$?
  case $status in 0|2|15) break;; esac
  sleep 1
done; exit $status"""  # as in docs/elastic.md, with a shorter pause


def wait_for(condition, what, limit, machines=()):
    """Poll until condition() is true; its value. After `limit` seconds: AssertionError with the machines' logs."""
    end = time.monotonic() + limit
    while not (value := condition()):
        if time.monotonic() > end:
            logs = '\n'.join(f'-------- {machine.name}\n{machine.text()[-3000:]}' for machine in machines)
            raise AssertionError(f'not within {limit} s: {what}\n{logs}')
        time.sleep(0.1)
    return value


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


class Etcd:
    """A real etcd server on free ports; its data outlives a kill, as on a disk."""

    def __init__(self, folder):
        self.folder, self.port, self.peer_port, self.process = folder, free_port(), free_port(), None

    def start(self):
        client, peer = f'http://127.0.0.1:{self.port}', f'http://127.0.0.1:{self.peer_port}'
        with open(self.folder / 'etcd.log', 'a') as log:
            self.process = subprocess.Popen(
                ['etcd', '--data-dir', str(self.folder / 'etcd'), '--listen-client-urls', client,
                 '--advertise-client-urls', client, '--listen-peer-urls', peer, '--initial-advertise-peer-urls', peer,
                 '--initial-cluster', f'default={peer}'], stdout=log, stderr=log)
        wait_for(self._answers, 'etcd answers', 60)

    def _answers(self):
        with socket.socket() as s:
            return s.connect_ex(('127.0.0.1', self.port)) == 0

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def kill(self):
        if self.process:
            self.process.kill()
            self.process.wait()


class Machine:
    """A launcher and its worker. extra: flags of the launcher. loop: a shell loop starts it again when it fails."""

    def __init__(self, name, folder, etcd, arguments, extra=(), loop=False):
        self.name, self.mark, self.process = name, f'{folder}/{name}', None
        self.log, self.logs = folder / f'{name}.log', folder / f'{name}_logs'
        launcher = [sys.executable, '-u', '-m', 'paddle.distributed.launch', '--nnodes', '2', '--nproc_per_node', '1',
                    '--master', f'etcd://127.0.0.1:{etcd.port}', '--host', '127.0.0.1', '--job_id', 'test',
                    '--elastic_level', '1', '--max_restart', '3', '--log_dir', str(self.logs), *extra,
                    'train.py', *arguments]
        self.command = ['bash', '-c', LOOP, 'loop', *launcher] if loop else launcher

    def start(self):
        env = {**os.environ, MARK: self.mark, 'PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION': 'python'}
        with open(self.log, 'a') as log:
            self.process = subprocess.Popen(self.command, cwd=ROOT, env=env, stdout=log, stderr=log)

    def processes(self):
        """Everything of this machine that is alive, orphans included."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:  # ended meanwhile, or another user's
                continue
        return found

    def worker(self):
        """The process that runs train.py, or None."""
        for process in self.processes():
            try:
                command = process.cmdline()
            except psutil.Error:
                continue
            if 'train.py' in command and 'paddle.distributed.launch' not in command:
                return process
        return None

    def freeze(self):
        """Its processes do nothing any more, and their connections stay open."""
        self._send(signal.SIGSTOP)

    def kill(self):
        """The power goes: no process of it gets to do anything more."""
        while self.processes():
            self.freeze()  # or one would answer the other's end
            psutil.wait_procs(self._send(signal.SIGKILL), 10)
        if self.process:
            self.process.wait()

    def _send(self, signum):
        found = self.processes()
        for process in found:
            try:
                process.send_signal(signum)
            except psutil.NoSuchProcess:
                continue
        return found

    def ended(self):
        """[exit status] of the launcher, or of its loop; [] as long as it runs."""
        return [] if self.process.poll() is None else [self.process.returncode]

    def rank(self):
        """The rank that the launcher gave its worker last."""
        lines = (self.logs / 'envlog.0').read_text().splitlines()
        return int([line.split('=')[1] for line in lines if line.startswith('PADDLE_TRAINER_ID=')][-1])

    def starts(self):
        """How often the launcher has started the worker."""
        return self.log.read_text().count('Watching Pod')

    def waits_again(self):
        """Whether the launcher waits for the other machine after its worker has been started once."""
        return self.log.read_text().rpartition('Watching Pod')[2].count('Waiting peer ready') > 0 < self.starts()

    def text(self):
        """The log of the launcher and that of the worker."""
        files = [file for file in (self.log, self.logs / 'workerlog.0') if file.exists()]
        return '\n'.join(f'---- {file.name}\n{file.read_text(errors="replace")}' for file in files)
