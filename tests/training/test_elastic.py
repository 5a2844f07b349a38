"""Elastic launch with a real etcd server: whatever is killed, the run ends in the same bits. See docs/elastic.md."""
import importlib.util
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT, write_tiny_config
from tests.training.elastic_machines import Etcd, Machine, wait_for
from tests.training.test_exact_resume import files_of

MISSING = [f'{what} is not installed' for what, there in (
    ('the etcd server (Debian: etcd-server)', shutil.which('etcd')),
    ('etcd3 (requirements-elastic.txt)', importlib.util.find_spec('etcd3'))) if not there]
pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(bool(MISSING), reason='; '.join(MISSING) + ': make test-elastic, see docs/elastic.md')]

ITERS, INTERVAL = 40, 8
LIMIT = 300  # seconds that any wait may take: a minute where nothing else runs


class Cluster:
    """Two machines with one etcd server and one folder for the run."""

    def __init__(self, folder, config, loop=True, extra=()):
        folder.mkdir(exist_ok=True)
        self.run, self.config = folder / 'run', config
        self.etcd = Etcd(folder)
        self.machines = [Machine(name, folder, self.etcd, self.arguments(), extra, loop)
                         for name in ('first', 'second')]

    def arguments(self):
        return ['--config', str(self.config), '--iters', str(ITERS), '--save_interval', str(INTERVAL), '--log_iters',
                '4', '--keep_checkpoint_max', '0', '--resume', 'auto', '--save_dir', str(self.run)]

    def __enter__(self):
        self.etcd.start()
        for machine in self.machines:
            machine.start()
        return self

    def __exit__(self, *_):
        for machine in self.machines:
            machine.kill()
        self.etcd.kill()

    def wait(self, condition, what):
        return wait_for(condition, what, LIMIT, self.machines)

    def wait_for_training(self):
        """Until a checkpoint is there; returns the machine of rank 0 and the other."""
        self.wait((self.run / f'iter_{INTERVAL}' / 'state.json').exists, f'iter_{INTERVAL} is saved')
        return sorted(self.machines, key=Machine.rank)

    def wait_for_the_end(self):
        for machine in self.machines:
            assert self.wait(machine.ended, f'{machine.name} ends') == [0], machine.text()[-3000:]
        assert not any(machine.processes() for machine in self.machines)

    def weights(self):
        """Digests of the checkpoints that an undisturbed run has as well."""
        names = [f'iter_{iteration}/' for iteration in range(INTERVAL, ITERS + 1, INTERVAL)]
        return {name: digest for name, digest in files_of(self.run).items() if name.startswith(tuple(names))}


@pytest.fixture(scope='module')
def config(toy, tmp_path_factory):
    return write_tiny_config(tmp_path_factory.mktemp('config') / 'tiny.yml', toy)


@pytest.fixture(scope='module')
def undisturbed(config, tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp('undisturbed'), config) as cluster:
        cluster.wait_for_the_end()
    assert [machine.starts() for machine in cluster.machines] == [1, 1]
    assert len(cluster.weights()) == 2 * ITERS // INTERVAL
    return cluster


def test_a_worker_is_killed(config, undisturbed, tmp_path):
    with Cluster(tmp_path, config) as cluster:
        _, other = cluster.wait_for_training()
        other.worker().kill()
        cluster.wait_for_the_end()
    assert min(machine.starts() for machine in cluster.machines) >= 2
    assert cluster.weights() == undisturbed.weights()


@pytest.mark.parametrize('rank', [1, 0])
def test_a_machine_is_killed(config, undisturbed, tmp_path, rank):
    """Rank 0 is the master's: the processes meet there, and it writes the checkpoints."""
    with Cluster(tmp_path, config) as cluster:
        machines = cluster.wait_for_training()
        lost, left = machines[rank], machines[1 - rank]
        lost.kill()
        cluster.wait(left.waits_again, 'the other machine waits for it')
        lost.start()
        cluster.wait_for_the_end()
    assert left.starts() >= 2
    assert cluster.weights() == undisturbed.weights()


def test_a_machine_freezes(config, undisturbed, tmp_path):
    """No connection is closed, as when the power goes or a cable is cut: only time tells."""
    with Cluster(tmp_path, config) as cluster:
        left, lost = cluster.wait_for_training()
        lost.freeze()
        cluster.wait(left.waits_again, 'the other machine waits for it')
        lost.kill()
        lost.start()
        cluster.wait_for_the_end()
    assert left.starts() >= 2
    assert cluster.weights() == undisturbed.weights()


@pytest.mark.parametrize('with_its_machine', [False, True], ids=['alone', 'with the machine of the master'])
def test_etcd_is_killed(config, undisturbed, tmp_path, with_its_machine):
    """The launchers end, their workers save and end; the loops start the launchers until etcd is there again."""
    with Cluster(tmp_path, config) as cluster:
        machines = cluster.wait_for_training()
        if with_its_machine:
            cluster.etcd.freeze()  # at one moment with the machine
            machines[0].kill()
        cluster.etcd.kill()
        for machine in machines[with_its_machine:]:
            cluster.wait(lambda m=machine: 'ConnectionFailedError' in m.log.read_text(), 'the launcher ends')
            cluster.wait(lambda m=machine: not m.worker(), 'its worker ends')
        cluster.etcd.start()
        if with_its_machine:
            machines[0].start()
        cluster.wait_for_the_end()
    if not with_its_machine:
        assert 'stopped by signal 15 after iteration' in machines[0].text()
    assert cluster.weights() == undisturbed.weights()


def test_a_machine_never_returns(config, undisturbed, tmp_path):
    """The launcher gives up with a line; fewer processes are refused, unless the images of a step stay as many."""
    with Cluster(tmp_path, config, loop=False, extra=['--elastic_timeout', '2']) as cluster:  # 10 times that is waited
        left, lost = cluster.wait_for_training()
        lost.kill()
        status, = cluster.wait(left.ended, 'the launcher gives up')
        assert status != 0 and 'peer not ready' in left.text()
        assert not left.processes()

    def alone(*flags):
        return subprocess.run([sys.executable, 'train.py', *cluster.arguments(), *flags], cwd=ROOT, capture_output=True,
                              text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'}, timeout=LIMIT)

    refused = alone()
    assert refused.returncode == 1
    assert 'error: --batch_size x --accum_steps x processes: expected 4, with which' in refused.stderr
    done = alone('--accum_steps', '2')
    assert done.returncode == 0, done.stderr[-3000:]
    straight = rates_of(next(machine for machine in undisturbed.machines if machine.rank() == 0).text())
    rates = rates_of(done.stdout)
    assert rates and rates == {iteration: straight[iteration] for iteration in rates}
    assert max(rates) == ITERS


def rates_of(log):
    """{iteration: learning rate} of a log."""
    return {int(iteration): rate for iteration, rate in re.findall(r'iter: (\d+)/.*? lr: ([\d.]+)', log)}
