"""Evaluations by several processes, and killed ones that are continued: the report of one process, byte for byte."""
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from common.errors import UserError
from inference.evaluation_journal import EvaluationJournal
from inference.records import Record
from tests.conftest import PATIENCE, ROOT

SCRIPT = str(ROOT / 'tests' / 'inference' / 'scores' / 'scored.py')
THREE = {**os.environ, 'CUDA_VISIBLE_DEVICES': '-1,-1,-1'}  # the launcher takes an entry for each process


def command(processes, logs, *arguments):
    launcher = ['-m', 'paddle.distributed.launch', '--nproc_per_node', str(processes), '--log_dir', str(logs)]
    return [sys.executable, *(launcher if processes > 1 else ()), SCRIPT, *map(str, arguments)]


def finish(processes, folder, streets, resume=0):
    """(bytes of the report, what the processes print) of an evaluation."""
    folder.mkdir(exist_ok=True)
    logs = folder / f'logs{processes}{resume}'
    done = subprocess.run(command(processes, logs, streets, folder / 'report.json', 0, resume), cwd=ROOT, env=THREE,
                          capture_output=True, text=True, timeout=PATIENCE)
    printed = ''.join(path.read_text() for path in logs.glob('workerlog.*')) if processes > 1 else done.stdout
    assert done.returncode == 0, done.stderr[-2000:] + printed[-2000:]
    assert not list(folder.glob('*.jsonl'))
    return (folder / 'report.json').read_bytes(), printed


def records(folder):
    return sum(max(0, path.read_bytes().count(b'\n') - 1) for path in folder.glob('report.*.jsonl'))


@pytest.fixture(scope='module')
def alone(streets, tmp_path_factory):
    report, _ = finish(1, tmp_path_factory.mktemp('alone'), streets)
    data = json.loads(report)
    assert len(data['images']) == 7 and data['calibration']['pixels'] == np.sum(data['matrix'])
    return report


@pytest.mark.parametrize('processes', [2, 3])
def test_any_number_of_processes_gives_the_same_report(processes, streets, tmp_path, alone):
    assert finish(processes, tmp_path, streets)[0] == alone


def test_killed_twice_and_continued_by_others(streets, tmp_path, alone):
    """Killed with one process, then with two, then finished by three."""
    def kill(processes, resume, enough):
        """Kill a process of an evaluation of seven times two seconds, once there are enough records."""
        logs = tmp_path / f'killed{processes}'
        with open(tmp_path / 'output', 'w') as output:
            run = subprocess.Popen(command(processes, logs, streets, tmp_path / 'report.json', 2, resume), cwd=ROOT,
                                   stdout=output, stderr=output, env=THREE)
        limit = time.monotonic() + PATIENCE
        while records(tmp_path) < enough:
            assert time.monotonic() < limit and run.poll() is None, (tmp_path / 'output').read_text()
            time.sleep(0.05)
        if processes == 1:
            run.kill()
        else:  # one of the workers; the launcher ends the other
            (pid,) = (logs / 'workerlog.1').read_text().split('process ')[1].split()[:1]
            os.kill(int(pid), signal.SIGKILL)
        assert run.wait(PATIENCE) != 0
        assert enough <= records(tmp_path) < 7 and not (tmp_path / 'report.json').exists()

    kill(1, 0, 2)
    with open(tmp_path / 'report.0.jsonl', 'ab') as file:
        file.write(b'{"index": 2, "name": "cut o')
    before = records(tmp_path)
    kill(2, 1, before + 1)
    there = records(tmp_path)
    report, printed = finish(3, tmp_path, streets, resume=1)
    assert printed.count(f'found {there}') == 3  # the same in every process
    assert report == alone


def record(index):
    return Record(index, f'image {index}', {'confusion': np.array([[0, 1, 5], [1, 1, index]], np.int64)})


def journal(folder, resume=True, **settings):
    return EvaluationJournal(folder / 'evaluation_a_0.5', {'weights': 'abc', **settings}, resume)


def test_what_was_written_is_found(tmp_path):
    with journal(tmp_path) as first:
        assert first.found == {}
        first.append(record(3))
        first.append(record(0))
    (tmp_path / 'evaluation_a_0.5.7.jsonl').write_bytes(first.path.read_bytes().replace(b'"index": 3', b'"index": 4'))
    (tmp_path / 'evaluation_a_0.5_flip.0.jsonl').write_text('another evaluation')
    with EvaluationJournal(tmp_path / 'evaluation_a_0.5', {'weights': 'abc'}, True, only={3, 5}) as some:
        assert sorted(some.found) == [3]
    with journal(tmp_path) as second:
        assert sorted(second.found) == [0, 3, 4]
        np.testing.assert_array_equal(second.found[3].tables['confusion'], [[0, 1, 5], [1, 1, 3]])
        assert second.found[0].name == 'image 0'
        second.delete()
    assert [path.name for path in tmp_path.iterdir()] == ['evaluation_a_0.5_flip.0.jsonl']


def test_a_line_that_was_cut_off_is_dropped_wherever_it_was_cut(tmp_path):
    with journal(tmp_path) as first:
        first.append(record(1))
        first.append(record(2))
    whole = first.path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for length in range(len(whole)):
        first.path.write_bytes(whole[:length])
        with journal(tmp_path) as second:
            expected = sum(length >= len(b''.join(lines[:n])) for n in (2, 3))
            assert len(second.found) == expected
            second.append(record(9))
        with journal(tmp_path) as third:
            assert len(third.found) == expected + 1


def test_records_of_another_configuration_are_refused_or_begun_anew(tmp_path, caplog):
    with journal(tmp_path, scores={'boundary': [3]}) as first:
        first.append(record(1))
    kept = first.path.read_bytes()
    with pytest.raises(UserError, match='evaluation_a_0.5.0.jsonl: expected records of an evaluation with the same '
                                        'settings, found scores.boundary.0: 3, now 5; use those'):
        journal(tmp_path, scores={'boundary': [5]})
    with pytest.raises(UserError, match='found scores.boundary.0: 3, now None; use those'):
        journal(tmp_path)
    assert first.path.read_bytes() == kept
    (tmp_path / 'evaluation_a_0.5.4.jsonl').write_bytes(kept)
    with journal(tmp_path, resume=False) as second:
        assert second.found == {} and 'begun anew; --resume would have continued' in caplog.text
    with journal(tmp_path) as third:
        assert third.found == {}


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    with journal(tmp_path) as first:
        first.append(record(1))
    for broken in (b'{"index"\n', b'{"name": "x"}\n', b'[]\n', b'\0\0\n'):
        first.path.write_bytes(first.path.read_bytes().splitlines(keepends=True)[0] + broken)
        with pytest.raises(UserError, match='0.jsonl: expected a record of an image on each line, found'):
            journal(tmp_path)


def test_an_evaluation_that_fails_keeps_what_it_has(tmp_path, caplog):
    for count in (0, 2):
        with caplog.at_level('INFO'), pytest.raises(KeyboardInterrupt), journal(tmp_path) as failing:
            for index in range(count):
                failing.append(record(index))
            raise KeyboardInterrupt
        assert failing.path.exists() == (count > 0)
        assert (f'0.jsonl: {count} images are kept; the same command with --resume' in caplog.text) == (count > 0)


def test_two_evaluations_at_once_are_refused(tmp_path):
    with journal(tmp_path) as first:
        first.append(record(1))
        with pytest.raises(UserError, match='expected no other evaluation of these weights with these flags'):
            journal(tmp_path, resume=False)
    with journal(tmp_path) as second:
        assert len(second.found) == 1
