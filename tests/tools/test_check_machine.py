"""tools/check_machine.py as a user runs it on a CPU; what it says of machines that are not here; failures, one line."""
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import ROOT
from tools import check_machine
from tools.machine import advice, checks, environment, rows
from tools.machine.environment import GB, MB, Card, Facts
from tools.machine.rows import FAILED, NOT_RUN, PASSED, Row, Settings

A100 = Card('NVIDIA A100', 40 * GB, 0, 80, '535.1')
GOOD = Facts(paddle='3.3.1', cuda='12.6', cudnn='9.5', architectures=(75, 80, 86, 90), gpus=1, cards=[A100], cores=8,
             memory=64 * GB, memory_free=60 * GB, shm_free=8 * GB, disk_free=100 * GB, temporary_free=10 * GB,
             open_files=4096)
CPU = replace(GOOD, cuda='', cudnn='', architectures=(), gpus=0, cards=[])


def check(*arguments: str, **environ: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, 'tools/check_machine.py', *arguments], cwd=ROOT, capture_output=True,
                          text=True, env={**os.environ, **environ})


def test_quick_run(tmp_path):
    """Everything that a CPU can, in a minute of an idle machine: table, JSON, last line, status."""
    report = tmp_path / 'machine.json'
    done = check('--quick', '--device', 'cpu', '--json', str(report))
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    lines = done.stdout.splitlines()
    data = json.loads(report.read_text())
    results = {row['name']: row for row in data['results']}
    assert data['counts'][FAILED] == 0 and data['counts'][PASSED] >= 17 and data['problems'] is not None
    for name in ('dice: gradient', 'losses of the published code: 10 cases', 'logits, fp32, against one thread',
                 'gradients with --recompute, against without', 'step fp32, batch 1',
                 'step fp32, --recompute, batch 1', '2 processes as one with all images: gradient',
                 'the plain network: one image', 'paddle fp32: logits'):
        assert results[name]['status'] == PASSED
        assert any(line.startswith(name) and line.endswith(PASSED) for line in lines), name
    assert results['step fp32, batch 1']['seconds'] > 0 and results['step fp32, batch 1']['peak_gb'] > 0.1
    assert results['step bf16']['status'] == NOT_RUN and 'takes a GPU' in results['step bf16']['reason']
    assert re.fullmatch(r'What fits the memory of this machine \(toy network at 128x256\): --batch_size \d --precision '
                        r'fp32.* GiB, .*\)', lines[-1]) and data['advice'] == lines[-1]
    assert str(tmp_path.home()) not in report.read_text(), 'nothing personal is sent in'


def test_resume_and_commands(tmp_path):
    report = tmp_path / 'machine.json'
    done = check('--device', 'cpu', '--only', 'resume', 'commands', '--json', str(report))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row['status'] for row in json.loads(report.read_text())['results']] == [PASSED] * 3
    assert 'no step was measured' in done.stdout.splitlines()[-1]


def test_a_failure_is_one_line_and_the_others_go_on(tmp_path):
    """An installed backend that cannot be loaded."""
    package = tmp_path / 'broken' / 'onnxruntime'
    package.mkdir(parents=True)
    (package / '__init__.py').write_text('raise ImportError("libcudart.so.12: cannot open shared object file")\n')
    done = check('--device', 'cpu', '--only', 'inference onnxruntime fp32', 'losses',
                 PYTHONPATH=str(package.parent))
    assert done.returncode == 1 and not done.stderr
    assert '    ImportError: libcudart.so.12: cannot open shared object file' in done.stdout.splitlines()
    assert re.search(r'^losses of the published code.* passed$', done.stdout, re.MULTILINE)
    assert ', 1 failed, 0 not run' in done.stdout


def planted(monkeypatch, tmp_path, error):
    """The rows of a check that gives one and then raises."""
    def function(settings):
        yield Row('first')
        raise error

    settings = Settings(folder=str(tmp_path))
    monkeypatch.setattr(checks.Check, 'rows', lambda self, settings: function(settings))
    assert not checks.run_part('losses', settings)
    return rows.read(tmp_path / 'losses.rows')


def test_what_a_check_raises_is_a_row(monkeypatch, tmp_path):
    error = RuntimeError('\n\n-----\nC++ Traceback\n0  somewhere\n-----\nError Message Summary:\n-----\n'
                         'ExternalError: CUDA error(209), no kernel image is available for execution on the device.\n'
                         '  [Hint: see the documentation] (at gpu_info.cc:331)\n')
    first, last = planted(monkeypatch, tmp_path, error)
    assert first.status == PASSED and last.status == FAILED
    assert last.reason.startswith('RuntimeError: ExternalError: CUDA error(209), no kernel image is available')


def test_no_room_on_the_card_is_a_fact_not_a_failure(monkeypatch, tmp_path):
    error = MemoryError('\nResourceExhaustedError: Out of memory error on GPU 0. Cannot allocate 1.0GB memory on GPU 0'
                        ', 39.5GB memory has been allocated.\n\nPlease check whether there is another process.')
    _, last = planted(monkeypatch, tmp_path, error)
    assert last.status == NOT_RUN and last.data['out_of_memory']
    assert last.reason.startswith('does not fit: MemoryError: ResourceExhaustedError: Out of memory error on GPU 0')


@pytest.mark.parametrize('code, reason', [
    ('import os, signal; os.kill(os.getpid(), signal.SIGSEGV)', 'ended by signal SIGSEGV'),
    ('print("FatalError: it broke"); raise SystemExit(3)', 'ended with status 3: FatalError: it broke'),
    ('import time; time.sleep(100)', 'no end after 1 s, and stopped')])
def test_a_process_that_dies_or_hangs_is_a_failed_row(monkeypatch, tmp_path, code, reason):
    script = tmp_path / 'script.py'
    script.write_text(code)
    monkeypatch.setattr(checks, 'SCRIPT', script)
    monkeypatch.setattr(checks, 'PATIENCE', 1 if 'sleep' in code else 60)
    (row,) = checks.run('losses', Settings(folder=str(tmp_path)))
    assert row.status == FAILED and row.reason.startswith(reason)


def test_wrong_results_fail():
    """The comparisons must see what they are there for."""
    from tools.machine import loss_checks, networks
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(1, 3, 8, 8)), rng.integers(0, 3, (1, 8, 8))
    value, gradient = loss_checks.plain_dice(logits, labels)
    found = loss_checks.compared('dice', (value * 1.001, gradient * 1.001), (value, gradient), 1e-5)
    assert [row.status for row in found] == [FAILED, FAILED]
    assert networks.largest(np.array([1.0, np.nan]), np.array([1.0, 2.0])) == float('inf')
    assert networks.in_norm(np.array([1.0, np.inf]), np.array([1.0, 2.0])) == float('inf')
    for precision, eps in networks.EPS.items():
        off = np.abs(networks.rounded(logits, precision) - logits) / np.abs(logits)
        assert off.max() <= eps and (precision == 'fp32' or off.max() > eps / 8)


def test_formulas_have_the_gradient_of_their_value():
    from tools.machine import loss_checks
    rng = np.random.default_rng(0)
    logits, direction = rng.normal(size=(2, 2, 4, 6, 5))
    labels = rng.integers(0, 4, (2, 6, 5))
    labels[:, :2] = loss_checks.VOID
    for formula in (loss_checks.plain_dice, lambda z, y: loss_checks.plain_bootstrapped(z, y, 5, 0.5),
                    lambda z, y: loss_checks.plain_bootstrapped(z, y, 10, 99.0)):
        gradient = formula(logits, labels)[1]
        above, below = (formula(logits + step * direction, labels)[0] for step in (1e-5, -1e-5))
        assert (gradient * direction).sum() == pytest.approx((above - below) / 2e-5, rel=1e-6)


def test_a_larger_batch_is_a_check_too():
    assert checks.find('step bf16 recompute batch 4') == checks.step_check('bf16', True, 4)
    assert checks.find('step fp32 batch 2') == checks.step_check('fp32', False, 2)
    assert all(checks.find(name) == checks.CHECKS[name] for name in checks.NAMES)


# ---------------------------------------------------------------- machines that are not here

@pytest.mark.parametrize('facts', [GOOD, CPU])
def test_a_good_machine_has_no_problems(facts):
    assert environment.problems(facts) == []
    assert not any('None' in line for line in environment.report(facts))


@pytest.mark.parametrize('facts, expected', [
    (replace(GOOD, shm_free=64 * MB), '/dev/shm: 88 MiB expected for the data workers (1 process(es) x 11 samples x '
                                      '8 MiB), 64 MiB free; start the container with --shm-size=1g, or use fewer '
                                      '--num_workers'),
    (replace(GOOD, shm_free=64 * MB, gpus=8), '704 MiB expected for the data workers (8 process(es) x 11 samples'),
    (replace(GOOD, shm_free=64 * MB, gpus=24), '--shm-size=4g'),
    (replace(GOOD, paddle='2.6.2', cuda='11.8', architectures=(61, 70, 75, 80, 86), cards=[
        replace(A100, name='NVIDIA H100', capability=90)]),
     'NVIDIA H100 is sm_90, but Paddle 2.6.2 (CUDA 11.8) has code for sm_61, sm_70, sm_75, sm_80, sm_86 only ("no '
     'kernel image is available"); install a build that has it (docs/gpus.md)'),
    (replace(GOOD, visible='', gpus=0), 'CUDA_VISIBLE_DEVICES is set but empty: no GPU is used, and '
                                        'paddle.distributed.launch fails'),
    (replace(CPU, visible=''), 'CUDA_VISIBLE_DEVICES is set but empty'),
    (replace(CPU, cards=[A100, A100]), '2 x NVIDIA A100 found, but Paddle 3.3.1 is built for CPUs; install '
                                       'paddlepaddle-gpu'),
    (replace(GOOD, gpus=0, cards=[]), 'there is no GPU or no driver'),
    (replace(GOOD, gpus=0, visible='7'), 'CUDA_VISIBLE_DEVICES is 7: correct it'),
    (replace(GOOD, cards=[replace(A100, driver='470.82')]), 'driver 470.82 is too old for CUDA 12.6, which takes 525'),
    (replace(GOOD, cards=[replace(A100, used=30 * GB)]), '30.0 of 40.0 GiB are taken by other processes'),
    (replace(GOOD, omp_threads='1'), 'OMP_NUM_THREADS=1: 1 of 8 cores will be used; unset it'),
    (replace(GOOD, open_files=256), 'ulimit -n 1024'),
    (replace(GOOD, memory_free=GB), 'memory: 4 GiB expected, 1.0 GiB free'),
    (replace(GOOD, disk_free=GB), 'disk: 4 GiB expected for the checkpoints of a run, 1.0 GiB free here'),
    (replace(GOOD, temporary_free=0), 'set TMPDIR to another folder'),
    (replace(GOOD, paddle='', paddle_error='libcuda.so.1 is missing'), 'Paddle cannot be imported: libcuda.so.1'),
])
def test_problems(facts, expected):
    (line,) = environment.problems(facts)
    assert expected in line


def test_cards_of_nvidia_smi():
    text = 'NVIDIA A100-SXM4-40GB, 40960, 3, 535.104.05, 8.0\nTesla K80, 11441, [N/A], 470.82\n'
    assert environment.parse_cards(text) == [Card('NVIDIA A100-SXM4-40GB', 40 * GB, 3 * MB, 80, '535.104.05'),
                                             Card('Tesla K80', 11441 * MB, 0, 0, '470.82')]


def test_what_cannot_run_says_why():
    gpu, cpu = Settings('gpu', 'recipe', gpus=1), Settings('cpu')
    assert 'sm_80 or newer' in checks.unfit('step bf16', gpu, replace(GOOD, cards=[replace(A100, capability=75)]))
    assert checks.unfit('step bf16', gpu, GOOD) == ''
    assert 'takes a GPU' in checks.unfit('step fp16 recompute', cpu, CPU)
    assert 'not installed' in checks.unfit('inference onnxruntime fp32', cpu, CPU)


def test_a_gpu_that_is_not_there():
    args = check_machine.parse_args(['--device', 'gpu'])
    with pytest.raises(ValueError, match='--device gpu: expected a GPU'):
        check_machine.choose(args, CPU, '')
    settings = check_machine.choose(check_machine.parse_args([]), replace(GOOD, gpus=8), '')
    assert (settings.device, settings.network, settings.size, settings.processes) == ('gpu', 'recipe', (1024, 2048), 8)


@pytest.mark.parametrize('arguments', [['--size', '32', '64'], ['--only', 'nothing']])
def test_wrong_flags(arguments, capsys):
    with pytest.raises(SystemExit):
        check_machine.parse_args(arguments)
    assert ': expected ' in capsys.readouterr().err


# ---------------------------------------------------------------- the last line

def step(precision, recompute, peak, seconds, batch=1):
    return Row(f'step {precision}', seconds=seconds, peak_gb=peak, data={
        'precision': precision, 'recompute': recompute, 'batch': batch, 'processes': 1, 'fixed_gb': 1.0,
        'reserved_gb': peak})


STEPS = [step('fp32', False, 22.0, 1.0), step('fp32', True, 10.0, 1.3), step('bf16', False, 13.0, 0.5)]
WHAT = {'where': 'this card', 'network': 'recipe network', 'size': (1024, 2048), 'on_gpu': True}


def test_the_fastest_of_those_with_enough_images_is_advised():
    # One GPU of 40 GiB: bf16 takes 1 + 2 x 12; fp32 without --recompute would have one image only.
    line = advice.last_line(STEPS, 40, 2, WHAT)
    assert line.startswith('What fits this card (recipe network at 1024x2048): --batch_size 2 --precision bf16 (about ')
    assert line.endswith('; in fp32: --batch_size 4 --precision fp32 --recompute (about 37.0 of 40.0 GiB, estimated '
                         'from batch 1)') or '--batch_size 2 --precision fp32 --recompute' in line
    found = advice.last_line([*STEPS, step('bf16', False, 25.5, 0.9, 2)], 40, 2, WHAT)
    assert '--batch_size 2 --precision bf16 (25.5 of 40.0 GiB, 0.450 s per image, measured)' in found


def test_recomputation_is_not_advised_for_its_speed():
    line = advice.last_line([step('fp32', False, 3.0, 1.0), step('fp32', True, 2.0, 0.9)], 40, 2, WHAT)
    assert '--recompute' not in line


def test_what_was_tried_and_failed_is_not_advised():
    tried = Row('step bf16 batch 2', status=FAILED, data={'check': 'step bf16 batch 2'})
    assert '--precision fp32 --recompute' in advice.last_line([*STEPS, tried], 40, 2, WHAT)


def test_a_small_card():
    line = advice.last_line(STEPS, 12.5, 2, WHAT)
    assert '--batch_size 1 --precision fp32 --recompute' in line and 'options.freeze_batch_norm=True' in line
    assert 'none of the measured steps; use a smaller crop' in advice.last_line(STEPS, 8, 2, WHAT)


def test_a_batch_that_does_not_fit_after_all_is_halved(monkeypatch):
    tried = []

    def run(name, settings):
        tried.append(name)
        return [Row(name, status=NOT_RUN, data={'out_of_memory': True})]

    monkeypatch.setattr(checks, 'run', run)
    facts = replace(GOOD, cards=[replace(A100, memory=80 * GB)])
    check_machine.confirm(STEPS, Settings('gpu', gpus=1), facts)
    assert tried == ['step bf16 batch 4', 'step bf16 batch 2']
