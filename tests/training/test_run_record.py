"""run.json: what each start of a run was, and the line about another machine."""
import copy
import json
import subprocess

import pytest

from tests.conftest import ROOT
from training import run_record


def entry(**machine):
    start = run_record.entry({'seed': 3, 'precision': 'fp32'}, 'gpu:0', 2, 8, 40)
    start['machine'].update(machine)
    return start


def test_an_entry_says_what_repeats_the_start():
    start = json.loads(json.dumps(entry()))
    assert start['arguments'] == {'seed': 3, 'precision': 'fp32'} and start['iteration'] == 40
    assert start['command'][1:] and start['versions']['paddleseg'] == '2.8.0'
    machine = start['machine']
    assert (machine['device'], machine['threads'], machine['processes']) == ('gpu', 2, 8) and machine['processor']
    head = subprocess.run(['git', '-C', ROOT, 'rev-parse', 'HEAD'], capture_output=True, text=True)
    assert start['git'] is None if head.returncode else start['git']['commit'] == head.stdout.strip()


def test_without_git_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(run_record, 'ROOT', tmp_path)
    assert entry()['git'] is None


def test_starts_are_added_and_taken_along_into_another_folder(tmp_path):
    first, second, third = entry(), entry(threads=4), entry(threads=1)
    run_record.append(tmp_path / 'a', first)
    run_record.append(tmp_path / 'a', second)
    assert run_record.read(tmp_path / 'a') == [first, second]
    run_record.append(tmp_path / 'b', third, run_record.read(tmp_path / 'a'))
    assert run_record.read(tmp_path / 'b') == [first, second, third]
    assert run_record.read(tmp_path / 'none') == []


@pytest.mark.parametrize('text', ['', '[]', '{"starts": [1]}', '{"starts": [{}]}'])
def test_another_file_of_that_name_is_not_overwritten(tmp_path, text):
    (tmp_path / 'run.json').write_text(text)
    with pytest.raises(ValueError, match=r'run\.json: expected the starts of a run .* move it away'):
        run_record.append(tmp_path, entry())
    assert (tmp_path / 'run.json').read_text() == text


def test_differences_that_may_change_the_last_bits():
    before = entry(processor='A', instructions=['avx2', 'fma'])
    assert run_record.difference(before, copy.deepcopy(before)) == ''
    renamed = {**before, 'started': 'later', 'machine': {**before['machine'], 'host': 'x'}}
    assert run_record.difference(before, renamed) == ''
    other = entry(processor='B', instructions=['amx_bf16', 'avx2'], threads=4)
    assert run_record.difference(before, other) == 'processor A -> B, instructions -fma +amx_bf16, threads 2 -> 4'
