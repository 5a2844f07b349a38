"""The log line, metrics.jsonl before and after a resume, VisualDL's log."""
import io
import json
import re

import numpy as np
import paddle
import pytest
from PIL import Image

from training.run_log import Meter, RunLog, log_line

NAMES = ('road', 'traffic light')
LOG = {'loss': 1.5, 'parts': {'dice_0': 0.25, 'bootstrapped_ce_3': 2.0}, 'batch_cost': 0.5, 'reader_cost': 0.125,
       'reader_share': 0.25, 'ips': 16.0, 'memory_gb': 10.5, 'eta': '01:02:03'}
RESULT = {'miou': 0.5, 'accuracy': 0.75, 'iou': np.array([0.5, np.nan])}
MEASURED = {'batch_cost', 'reader_cost', 'reader_share', 'ips', 'memory_gb', 'eta'}


def entries(folder):
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def records(folder, component, tag):
    from visualdl import LogReader

    log, = folder.glob('vdlrecords*')  # one alone: VisualDL's page shows no second one
    return LogReader(file_path=str(log)).get_data(component, tag)


def step(loss, **parts):
    """What training.gradient_step.GradientStep.backward returns."""
    return ('loss', *parts), paddle.to_tensor([loss, *parts.values()], 'float64')


def test_meter_averages_since_the_last_line():
    meter = Meter(8)
    for loss in (1.0, 2.0):
        meter.data_arrived()
        meter.step_done(*step(loss, dice_0=loss / 2))
    log = meter.summary(0)
    assert (log['loss'], log['parts'], log['eta']) == (1.5, {'dice_0': 0.75}, '00:00:00')
    assert 0 <= log['reader_share'] == log['reader_cost'] / log['batch_cost'] <= 1
    assert log['ips'] == 8 / log['batch_cost']
    assert 0.01 < log['memory_gb'] < 1000
    meter.data_arrived()
    meter.step_done(*step(7.0))
    log = meter.summary(0)
    assert (log['loss'], log['parts']) == (7.0, {})


def test_meter_tells_the_time_left():
    sums = {'steps': 2, 'loss': 0.0, 'parts': {}, 'batch_cost': 4.0, 'reader_cost': 1.0}
    log = Meter(6, sums).summary(1862)
    assert (log['eta'], log['ips'], log['reader_share']) == ('01:02:04', 3.0, 0.25)


def test_log_line_begins_as_paddleseg_s():
    line = log_line(3, 40, 1000, 0.0123456, LOG)
    match = re.match(r'\[TRAIN\] epoch: (\d+), iter: (\d+)/(\d+), loss: (\d+\.\d{4}), lr: (\d\.\d{6}), '
                     r'batch_cost: (\d+\.\d{4}), reader_cost: (\d+\.\d{5}), ips: (\d+\.\d{4}) samples/sec \| '
                     r'ETA (\d\d:\d\d:\d\d)', line)
    assert match.groups() == ('3', '40', '1000', '1.5000', '0.012346', '0.5000', '0.12500', '16.0000', '01:02:03')
    extras = line[match.end():]
    assert extras == ' | reader 25%, memory 10.50 GiB | dice_0 0.2500, bootstrapped_ce_3 2.0000'
    assert not re.search('loss:|lr:|ips:|cost:', extras)


def test_metrics_are_json_lines(tmp_path):
    with RunLog(tmp_path / 'new' / 'run', NAMES) as log:
        log.train(10, 1, 0.01, LOG)
        assert len(entries(tmp_path / 'new' / 'run')) == 1, 'readable while the run goes on'
        log.evaluation(10, RESULT)
        log.images(10, [np.zeros([2, 2, 3], np.uint8)])
        log.evaluation(20, {'miou': float('nan'), 'accuracy': 1.0})
    assert entries(tmp_path / 'new' / 'run') == [
        {'kind': 'train', 'iteration': 10, 'epoch': 1, 'lr': 0.01, **LOG},
        {'kind': 'eval', 'iteration': 10, 'miou': 0.5, 'accuracy': 0.75, 'iou': {'road': 0.5, 'traffic light': None}},
        {'kind': 'eval', 'iteration': 20, 'miou': None, 'accuracy': 1.0, 'iou': {}}]
    assert 'NaN' not in (tmp_path / 'new' / 'run' / 'metrics.jsonl').read_text()
    assert [p.name for p in (tmp_path / 'new' / 'run').iterdir()] == ['metrics.jsonl'], 'no VisualDL unless asked for'


def pretend_to_train(folder, start, stop, sums=None, use_vdl=False):
    """A line every 3 iterations, a checkpoint every 4; returns what the last checkpoint kept of the meter."""
    meter, kept = Meter(1, sums), None
    with RunLog(folder, NAMES, use_vdl, start) as log:
        for iteration in range(start + 1, stop + 1):
            meter.data_arrived()
            meter.step_done(*step(1 / iteration, dice_0=2 / iteration))
            if iteration % 3 == 0:
                log.train(iteration, 1, 0.1 / iteration, meter.summary(0))
            if iteration % 4 == 0:
                log.evaluation(iteration, {**RESULT, 'miou': iteration / 100})
                log.images(iteration, [np.full([4, 4, 3], iteration, np.uint8)])
                kept = json.loads(json.dumps(meter.sums()))
    return kept


def without_times(folder):
    return [{key: value for key, value in entry.items() if key not in MEASURED} for entry in entries(folder)]


@pytest.mark.parametrize('tail', ['', '{"kind": "train", "iteration": 7, "lo', '{"iteration": 7}', '\0\0\0\0', '[3]\n'])
def test_a_resumed_run_writes_what_an_uninterrupted_one_does(tmp_path, tail):
    pretend_to_train(tmp_path / 'whole', 0, 12)
    sums = pretend_to_train(tmp_path / 'resumed', 0, 6)  # its last checkpoint is that of iteration 4
    assert [entry['iteration'] for entry in entries(tmp_path / 'resumed')] == [3, 4, 6]
    with open(tmp_path / 'resumed' / 'metrics.jsonl', 'a') as file:
        file.write(tail)
    pretend_to_train(tmp_path / 'resumed', 4, 12, sums)
    assert without_times(tmp_path / 'resumed') == without_times(tmp_path / 'whole')
    assert [entry['iteration'] for entry in entries(tmp_path / 'whole')] == [3, 4, 6, 8, 9, 12, 12]


@pytest.mark.parametrize('torn', ['kept', 'later'])
def test_a_torn_line_before_the_resumed_iteration_goes_too(tmp_path, torn):
    whole = '{"iteration": 3}\n'
    (tmp_path / 'metrics.jsonl').write_text(whole + '{"iteration": 4' + ('' if torn == 'kept' else '\n' + whole))
    RunLog(tmp_path, start=9)
    assert (tmp_path / 'metrics.jsonl').read_text() == whole


def test_a_fresh_start_leaves_nothing_of_an_earlier_run(tmp_path):
    pretend_to_train(tmp_path, 0, 6)
    pretend_to_train(tmp_path, 0, 3)
    assert [entry['iteration'] for entry in entries(tmp_path)] == [3]


def test_visualdl_reads_every_tag(tmp_path):
    picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    with RunLog(tmp_path, NAMES, use_vdl=True) as log:
        log.train(10, 1, 0.01, LOG)
        log.train(20, 1, 0.005, {**LOG, 'loss': 0.5})
        log.evaluation(20, RESULT)
        log.images(20, [picture, 2 * picture])
    expected = {'Train/loss': [(10, 1.5), (20, 0.5)], 'Train/lr': [(10, 0.01), (20, 0.005)],
                'Evaluate/mIoU': [(20, 0.5)], 'Evaluate/Acc': [(20, 0.75)], 'Evaluate/IoU/road': [(20, 0.5)],
                'Evaluate/IoU/traffic light': [],
                **{f'Train/{name}': [(10, value), (20, value)] for name, value in
                   {**LOG['parts'], 'ips': 16.0, 'batch_cost': 0.5, 'reader_cost': 0.125}.items()}}
    for tag, points in expected.items():
        found = [(record.id, record.value) for record in records(tmp_path, 'scalar', tag)]
        assert found == [(step, pytest.approx(value)) for step, value in points], tag
    for i, expected in enumerate([picture, 2 * picture]):
        record, = records(tmp_path, 'image', f'Evaluate/picture_{i}')
        assert record.id == 20
        np.testing.assert_array_equal(Image.open(io.BytesIO(record.image.encoded_image_string)), expected)


def test_visualdl_s_log_is_continued_on_resume(tmp_path):
    sums = pretend_to_train(tmp_path, 0, 6, use_vdl=True)
    log, = tmp_path.glob('vdlrecords*')
    log.write_bytes(log.read_bytes() + b'\x40\0\0\0\0\0\0\0torn')
    pretend_to_train(tmp_path, 4, 12, sums, use_vdl=True)
    assert [record.id for record in records(tmp_path, 'scalar', 'Train/loss')] == [3, 6, 9, 12]
    assert [record.id for record in records(tmp_path, 'scalar', 'Evaluate/mIoU')] == [4, 8, 12]
    assert [record.id for record in records(tmp_path, 'image', 'Evaluate/picture_0')] == [4, 8, 12]


def test_an_evaluation_that_is_done_again_is_not_recorded_twice(tmp_path):
    lines = [{'kind': 'train', 'iteration': 4}, {'kind': 'eval', 'iteration': 4}, {'kind': 'train', 'iteration': 8},
             {'kind': 'eval', 'iteration': 8}, {'kind': 'ema_eval', 'iteration': 8}]
    path = tmp_path / 'metrics.jsonl'
    for evaluated, kept in ((True, 5), (False, 3)):
        path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
        with RunLog(tmp_path, start=8, evaluated=evaluated):
            assert [json.loads(line) for line in path.read_text().splitlines()] == lines[:kept]
