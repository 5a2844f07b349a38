"""benchmarks/street_study.py: steps are run once, survive a kill, and the tables say what the records say."""
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.street import experiments, steps, tables
from common.errors import FileError, UserError
from tests.conftest import ROOT


@dataclass(frozen=True)
class Note(steps.Step):
    """Appends its name to <runs>/log; with `code`, runs that before."""
    code: str = ''

    def commands(self, study):
        return [['-c', f'{self.code}\nopen({str(study.runs / "log")!r}, "a").write({self.name!r} + " ")']]

    def result(self, study):
        return {'miou': 0.5}


def log(study):
    return (study.runs / 'log').read_text().split()


@pytest.fixture
def study(tmp_path):
    (tmp_path / 'runs').mkdir()
    return steps.Study(tmp_path / 'data', tmp_path / 'runs')


# ---------------------------------------------------------------- running

def test_what_is_done_is_skipped(study):
    first = [Note('a', 'x'), Note('b', 'y')]
    assert steps.run(study, first) == 2 and steps.run(study, [*first, Note('c', 'x')]) == 1
    assert log(study) == ['a', 'b', 'c']
    assert study.record('c')['result'] == {'miou': 0.5} and sorted(study.records()) == ['a', 'b', 'c']


def test_a_group_runs_with_what_it_needs(study):
    every = [Note('teacher', 'x'), Note('other', 'x'), Note('labels', 'y', ('teacher',)), Note('student', 'z',
                                                                                           ('labels',))]
    assert steps.run(study, every, ['z']) == 3
    assert log(study) == ['teacher', 'labels', 'student']


def test_a_failed_step_is_tried_again(study):
    door = study.runs / 'door'
    code = f'import sys, os\nif not os.path.exists({str(door)!r}): sys.exit(7)'
    every = [Note('a', 'x'), Note('b', 'x', code=code), Note('c', 'x')]
    with pytest.raises(UserError, match='expected exit status 0, found 7; see its last lines, and start the study'):
        steps.run(study, every)
    assert log(study) == ['a']
    door.touch()
    assert steps.run(study, every) == 2
    assert log(study) == ['a', 'b', 'c']


def test_a_record_of_other_commands_is_not_taken_for_todays(study):
    steps.run(study, [Note('a', 'x')])
    with pytest.raises(UserError, match=r'a.json: expected the outcome of .* found that of .* delete it and the fold'):
        steps.run(study, [Note('a', 'x', code='1')])


def test_a_damaged_record_is_named(study):
    steps.run(study, [Note('a', 'x')])
    (study.runs / 'records/a.json').write_text('{"name"')
    with pytest.raises(FileError, match=r'records/a.json: expected a record in JSON, .* the step is run again'):
        steps.run(study, [Note('a', 'x')])


KILLED = '''
import sys
from pathlib import Path
from tests.benchmarks.test_street_study import Note, steps
study = steps.Study(Path(sys.argv[1]), Path(sys.argv[1]))
wait = "import os, time; open(%r + '/pid', 'w').write(str(os.getpid())); time.sleep(600)" % sys.argv[1]
steps.run(study, [Note('a', 'x'), Note('b', 'x', code=wait)])
'''


def test_kill_9(study):
    """The command that was running ends with the study, so that it does not hold its folder; the rest is kept."""
    process = subprocess.Popen([sys.executable, '-c', KILLED, str(study.runs)], cwd=ROOT)
    pid = study.runs / 'pid'
    deadline = time.time() + 60
    while not (pid.is_file() and pid.read_text()):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    while Path(f'/proc/{pid.read_text()}').exists() and not _zombie(pid.read_text()):
        assert time.time() < deadline, 'the command outlives the study'
        time.sleep(0.05)
    assert log(study) == ['a']
    assert steps.run(study, [Note('a', 'x'), Note('b', 'x')]) == 1
    assert log(study) == ['a', 'b']


def _zombie(pid):
    """A process that has ended, but that nobody has waited for: in a container there may be no init that does."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] == 'Z'
    except FileNotFoundError:
        return True


def test_a_training_is_killed_resumed_recorded_and_scored(study, toy, monkeypatch):
    """train.py and val.py themselves, on toy images: the record has the last evaluation and the checksum."""
    monkeypatch.chdir(ROOT)
    study = steps.Study(Path(toy), study.runs)
    opts = ('model.backbone={type: HRNet, width: 16, modules: [1, 1, 1], blocks: 1, stem: [1, 32]}',
            'model.ocr_mid_channels=16', 'model.ocr_key_channels=8', 'model.attn_channels=8', 'options={ema: 0.9}',
            'train_dataset.transforms.1.crop_size=[64,64]', 'val_dataset.transforms.0.target_size=[64,32]',
            *(f'loss.types.{i}.min_K=100' for i in range(4, 8)))
    training = steps.Training('a', 'x', (), experiments.PROBE, 4, 1, 2, opts)
    score = steps.Scoring('a-flip', 'x', ('a',), experiments.PROBE, 'a', ('--aug_eval', '--flip_horizontal'), opts)
    words = [word if word != '4' else '2' for word in training.commands(study)[0]]  # killed after two iterations
    steps.call(words)
    assert steps.run(study, [training, score]) == 2 and steps.run(study, [training, score]) == 0
    result = study.record('a')['result']
    lines = [json.loads(line) for line in (study.runs / 'a/metrics.jsonl').read_text().splitlines()]
    found = {(line['kind'], line['iteration']): line.get('miou') for line in lines}
    assert [i for i, _ in result['curve']['eval']] == [2, 4]
    assert (result['miou'], result['plain_miou']) == (found['ema_eval', 4], found['eval', 4])
    state = json.loads((study.runs / 'a/iter_4/state.json').read_text())
    assert result['sha256'] == state['sha256']['ema_model.pdparams']
    scored = study.record('a-flip')
    assert scored['result']['sha256'] == result['sha256'] and 0 <= scored['result']['miou'] <= 1
    assert scored['commands'][0].startswith('python val.py --config benchmarks/street/probe.yml --model_path '
                                            'output/street_study/a/iter_4/ema_model.pdparams')


    labels = steps.AutoLabels('labels', 'x', ('a',), experiments.PROBE, 'a', ('--threshold', '0.2', '--opts', *opts))
    student = steps.Training('student', 'x', ('labels',), experiments.PROBE, 1, 0, 1, (
        *opts, 'train_dataset.coarse_multiple=1'), data='labels')
    four = experiments.FourClasses('four', 'x')
    tuned = steps.Training('tuned', 'x', ('four', 'a'), experiments.PROBE, 1, 0, 1, opts, data='four', start='a')
    assert steps.run(study, [training, labels, student, four, tuned]) == 4
    found = study.record('labels')['result']
    assert 0 < found['coverage'] <= 1 and 0 <= found['agreement'] <= 1
    converted = sorted((study.runs / 'labels/convert_autolabelled').rglob('*.png'))
    assert len(converted) == 6 and not any(path.is_symlink() for path in converted)
    assert set(study.record('tuned')['result']['iou']) == {'flat', 'built', 'natural', 'moving'}
    assert 'not run yet' not in tables.labels({'labels-0.9': study.record('labels')}).splitlines()[2]


# ---------------------------------------------------------------- the experiments

def test_every_step_has_its_name_and_comes_after_what_it_needs():
    names = []
    for step in experiments.steps():
        assert step.name not in names and re.fullmatch(r'[\w.-]+', step.name)
        assert set(step.needs) <= set(names), step.name
        names.append(step.name)


def test_four_classes(study, toy, monkeypatch):
    """Masks and lists for prepare_folder: every image of train and val once, in its split."""
    monkeypatch.chdir(ROOT)
    study = steps.Study(Path(toy), study.runs)
    assert steps.run(study, [experiments.FourClasses('four', 'x')]) == 1
    for split in ('train', 'val'):
        theirs = {path.name for path in (study.data / 'gtFine' / split).rglob('*_labelIds.png')}
        ours = list((study.runs / 'four/gtFine' / split).rglob('*_labelTrainIds.png'))
        assert len(ours) == len(theirs) > 0
    assert 'moving' in study.record('four')['result']['description']


# ---------------------------------------------------------------- tables

def record(group='x', **result):
    return {'commands': ['python train.py'], 'group': group, 'result': result}


def test_without_records_every_table_says_so():
    for name, (table, _) in tables.TABLES.items():
        assert tables.MISSING in table({}), name


@pytest.mark.parametrize('values, base, expected', [
    ([0.30, 0.32], [0.26, 0.29], '+3.50 (beyond the spread of 3.00)'),
    ([0.30, 0.26], [0.26, 0.29], '+0.50 (within the spread of 4.00)'),
    ([0.30, None], [0.26, 0.29], '+4.00 (one seed; beyond the spread of 3.00)'),
    ([0.30, None], [0.26, None], '+4.00 (one seed)'),
    ([None, None], [0.26, 0.29], tables.MISSING)])
def test_differences_beside_the_spread(values, base, expected):
    """Means and ranges by hand: (4 + 3) / 2 against 29 - 26; (4 - 3) / 2 against 30 - 26."""
    assert tables.difference(values, base) == expected


def test_the_page_is_filled_and_filled_again():
    text = 'before\n<!-- table: precision -->\nold\n<!-- end -->\nafter\n'
    filled = tables.fill(text, {'precision-main-bf16': record('precision', miou=0.5)})
    assert '| bf16 | not run yet | 50.00 |' in filled and 'old' not in filled
    assert filled.startswith('before\n<!-- table: precision -->\n| precision') and filled.endswith('-->\nafter\n')
    # Records of other tables, as on another machine, leave it alone.
    assert tables.fill(filled, {'probe-sgd-seed0': record('probes', miou=0.25)}) == filled
    other = {'precision-main-bf16': record('precision', miou=0.25)}
    assert '| bf16 | not run yet | 25.00 |' in tables.fill(filled, other)


def test_every_table_has_a_group_of_steps():
    groups = {step.group for step in experiments.steps()}
    assert {group for _, group in tables.TABLES.values()} <= groups


def test_students_beside_fine_images_alone():
    """Differences by hand: (28 + 30) / 2 - (21 + 23) / 2 = 7, the larger range 2; the others are missing."""
    records = {f'short-{name}-200-seed{seed}': record('students', miou=miou) for name, seed, miou in (
        ('none', 0, 0.21), ('none', 1, 0.23), ('0.9', 0, 0.28), ('0.9', 1, 0.30))}
    same, longer = tables.short_students(records).split('For the same number of fine samples')
    assert '| auto-labels, 0.9 | 28.00 / 30.00 | +7.00 (beyond the spread of 2.00) |' in same
    assert '| auto-labels, 0.9 | not run yet | not run yet |' in longer
    assert all('| fine images alone | 21.00 / 23.00 | - |' in half for half in (same, longer))


def test_the_page_of_the_repository_has_every_table():
    names = [name for _, name, _ in tables.MARK.findall((ROOT / 'docs/results.md').read_text())]
    assert sorted(names) == sorted(tables.TABLES)


def test_the_curve_goes_through_its_points():
    """0 iterations are at the left end, the last at the right; 0 is at the bottom, the next multiple of 10 on top."""
    svg = tables.curve({'a': [(0, 0.0), (50, 0.2), (100, 0.4)]})
    line, = re.findall(r'<path d="M([^"]*)" fill="none"', svg)
    points = [tuple(map(float, point.split())) for point in line.split('L')]
    width, height = tables.WIDTH - tables.LEFT - 24, tables.HEIGHT - tables.BOTTOM - 16
    assert points == [(tables.LEFT, 16 + height), (tables.LEFT + width / 2, 16 + height / 2),
                      (tables.LEFT + width, 16)]
