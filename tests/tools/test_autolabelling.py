"""The parts of tools/autolabel.py that need no network: rounding, thresholds, agreement by hand, names, bad input."""
import os
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from common import cli
from common.errors import UserError
from datasets.labels import LabelSet
from inference.predictor import Predictor
from tools import autolabel
from tools.autolabelling import files, thresholds


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'')


class Logits:
    """In place of the network: always these logits."""

    def __init__(self, logits):
        self.value = paddle.to_tensor(np.asarray(logits, np.float32))

    def __call__(self, x):
        return [self.value]


def test_confidence_counts_at_the_size_of_the_original_image():
    logits = np.random.default_rng(0).normal(size=[1, 5, 20, 30]) * 4
    train_ids, confidence = autolabel.confident(
        Predictor(Logits(logits)), {'img': np.zeros([3, 20, 30], np.float32), 'trans_info': [('resize', (33, 51))]})
    large = F.interpolate(paddle.to_tensor(logits), [33, 51], mode='bilinear').numpy()[0]
    odds = np.exp(large - large.max(0))
    expected = 255 * odds.max(0) / odds.sum(0)
    assert train_ids.shape == confidence.shape == (33, 51)
    assert (train_ids == large.argmax(0)).mean() > 0.999
    # 255 times a float32 softmax of logits up to 16, whose exponents are off by 16 * 2**-23: 5e-4, and rounded down
    assert (confidence <= expected + 1e-3).all() and (confidence > expected - 1 - 1e-3).all()


def test_confidence_is_never_rounded_up():
    odds = np.float32(np.linspace(0.5, 1, 4001)[1:-1])
    logits = np.stack([np.log(odds / (1 - odds)), np.zeros_like(odds)])[None, :, None]
    _, confidence = autolabel.confident(Predictor(Logits(logits)), {'img': np.zeros([3, 1, odds.size], np.float32)})
    softmax = F.softmax(paddle.to_tensor(logits), axis=1).max(axis=1).numpy()[0]
    assert all(Fraction(int(v), 255) <= Fraction(float(p)) < Fraction(int(v) + 1, 255)
               for v, p in zip(confidence[0], softmax[0]))


def test_broken_weights_give_no_labels():
    with pytest.raises(UserError, match='expected finite logits, found NaN'):
        autolabel.confident(Predictor(Logits(np.full([1, 2, 4, 4], np.nan))), {'img': np.zeros([3, 4, 4])})


def test_level_is_the_smallest_confidence_that_is_not_below_the_threshold():
    for i in range(1001):
        (level,) = thresholds.levels(i / 1000, {}, ['a'])
        assert Fraction(int(level), 255) >= Fraction(i, 1000) and (
            level == 0 or Fraction(int(level) - 1, 255) < Fraction(i, 1000)), i
    for level in range(256):  # the effective threshold, as the record has it, is its own level
        assert thresholds.levels(level / 255, {}, ['a']) == [level]


@pytest.mark.parametrize('share', [0, 0.07, 0.5, 1])
def test_budget_of_any_histogram(share):
    rng = np.random.default_rng(2)
    histogram = rng.integers(0, 3, [5, 256]) * rng.integers(0, 2, [5, 256])
    histogram[3] = 0
    found = thresholds.lowered_to_budget(np.full(5, 200), histogram, share)
    for row, level in zip(histogram, found):
        values = np.repeat(np.arange(256), row)[::-1]
        needed = -(-Fraction(str(share)) * values.size // 1)
        assert level == (min(200, values[int(needed) - 1]) if needed else 200)


PLAIN = LabelSet(names=('bush', 'house'), palette=((1, 1, 1), (2, 2, 2)), ignore_index=9)
OWN_IDS = LabelSet(names=('bush', 'house'), palette=((1, 1, 1), (2, 2, 2)), label_ids=(200, 4))


class Bar:
    def advance(self):
        pass


@pytest.mark.parametrize('labels, ids, void', [(PLAIN, (0, 1), 9), (OWN_IDS, (200, 4), 0)])
def test_agreement_with_ground_truth_by_hand(tmp_path, labels, ids, void):
    """bush: 4 pixels predicted, 3 kept, 2 of them right; house: 2 predicted, both kept, 1 right, 1 without truth."""
    (tmp_path / 'images/town').mkdir(parents=True)
    cv2.imwrite(str(tmp_path / 'images/town/x_leftImg8bit.jpg'), np.zeros([2, 3, 3], np.uint8))
    (job,) = files.find_jobs(tmp_path / 'images', tmp_path / 'out')
    a, b = ids
    files.write_prediction(job, np.uint8([[0, 0, 0], [0, 1, 1]]), np.uint8([[255, 128, 230], [127, 128, 200]]), labels)
    np.testing.assert_array_equal(read(job.prediction), [[a, a, a], [a, b, b]])
    (tmp_path / 'truth/town').mkdir(parents=True)
    cv2.imwrite(str(tmp_path / 'truth/town/x_gtFine_labelIds.png'), np.uint8([[a, b, a], [a, b, void]]))
    truths = files.find_truths(tmp_path / 'truth', [job], labels)
    histogram, everything, kept = autolabel.label_all(labels, [job], np.array([128, 128]), truths, 0, Bar())
    np.testing.assert_array_equal(read(job.label), [[a, a, a], [void, b, b]])
    np.testing.assert_array_equal(everything, [[3, 0], [1, 1]])  # rows: truth
    np.testing.assert_array_equal(kept, [[2, 0], [1, 1]])
    result = thresholds.summary(histogram, np.array([128, 128]), labels.names, everything, kept)
    assert result['pixels'] == 6 and result['pixels_with_ground_truth'] == 5
    overall = {key: result[key] for key in ('kept', 'agreement', 'miou', 'coverage', 'agreement_of_all', 'miou_of_all')}
    assert overall == pytest.approx({'kept': 5 / 6, 'agreement': 3 / 4, 'miou': (2 / 3 + 1 / 2) / 2, 'coverage': 4 / 5,
                                     'agreement_of_all': 4 / 5, 'miou_of_all': (3 / 4 + 1 / 2) / 2})
    assert result['classes']['bush'] == pytest.approx({
        'predicted': 4 / 6, 'threshold': 128 / 255, 'kept': 3 / 4, 'agreement': 2 / 3, 'iou': 2 / 3, 'coverage': 2 / 3})
    assert result['classes']['house'] == pytest.approx({
        'predicted': 2 / 6, 'threshold': 128 / 255, 'kept': 1, 'agreement': 1, 'iou': 1 / 2, 'coverage': 1})
    rows = [line.split() for line in thresholds.table(result).splitlines()]
    assert rows[:4] == [['class', 'predicted', 'threshold', 'kept', 'agreement', 'IoU', 'coverage'],
                        ['bush', '66.67', '0.5020', '75.00', '66.67', '66.67', '66.67'],
                        ['house', '33.33', '0.5020', '100.00', '100.00', '50.00', '100.00'],
                        ['all', '100.00', '-', '83.33', '75.00', '58.33', '80.00']]
    assert 'without thresholds 80.00 and 62.50' in thresholds.table(result)


def test_names_of_the_outputs(tmp_path):
    touch(tmp_path / 'in', 'town/a_1_leftImg8bit.png', 'x y/b.JPG', 'c.tif', 'd.png', 'd.jpg')
    jobs = {job.image.name: job for job in files.find_jobs(tmp_path / 'in', tmp_path / 'out')}
    expected = {'a_1_leftImg8bit.png': ('town/a_1_leftImg8bit', 'town/a_1'), 'b.JPG': ('x y/b', 'x y/b'),
                'c.tif': ('c', 'c'), 'd.png': ('d.png', 'd.png'), 'd.jpg': ('d.jpg', 'd.jpg')}
    assert jobs.keys() == expected.keys()
    for name, (label, stem) in expected.items():
        assert [p.relative_to(tmp_path / 'out').as_posix() for p in jobs[name][2:]] == [
            f'{label}.png', f'{stem}_prediction.png', f'{stem}_confidence.png']
        assert files.in_training_layout(jobs[name]) == (name == 'a_1_leftImg8bit.png')


@pytest.mark.parametrize('names', [('x.png', 'x_confidence.jpg'), ('t/x.png', 't/x_leftImg8bit.png')])
def test_names_that_collide_are_refused(tmp_path, names):
    touch(tmp_path / 'in', *names)
    with pytest.raises(ValueError, match=r'expected names that give different outputs, found .*; rename one') as info:
        files.find_jobs(tmp_path / 'in', tmp_path / 'out')
    assert all(str(tmp_path / 'in' / name) in str(info.value) for name in names)


def refused(capsys, *argv):
    """The one line that the script refuses its work with."""
    with pytest.raises(SystemExit) as stop:
        cli.run(autolabel.main, [str(a) for a in argv])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 1
    return line


@pytest.mark.parametrize('argv, expected', [
    (['--image_dir', '{tmp}/none'], '--image_dir {tmp}/none: expected a folder of images, found nothing; check'),
    (['--image_dir', '{tmp}/empty'], '--image_dir {tmp}/empty: expected at least one image'),
    (['--threshold', '1.5'], '--threshold 1.5: expected a number of 0..1, found 1.5'),
    (['--threshold', 'nan'], '--threshold nan: expected a number of 0..1'),
    (['--class_budget', '20'], '--class_budget 20.0: expected a number of 0..1'),
    (['--class_thresholds', 'persn=0.7'], "--class_thresholds persn=0.7: expected the name of a class, found 'persn'; "
                                          'did you mean person?'),
    (['--class_thresholds', 'zzz=0.7'], 'valid names: road, sidewalk, building'),
    (['--class_thresholds', 'person'], '--class_thresholds person: expected NAME=THRESHOLD, found no "="'),
    (['--class_thresholds', 'person=7'], '--class_thresholds person=7: expected a number of 0..1, found 7'),
    (['--class_thresholds', 'person=much'], '--class_thresholds person=much: expected a number of 0..1, found much'),
    (['--save_dir', '{tmp}/images/labels'], '--save_dir {tmp}/images/labels: expected a folder apart from --image_dir'),
    (['--save_dir', '{tmp}'], '--save_dir {tmp}: expected a folder apart from --image_dir {tmp}/images'),
    (['--save_dir', '{tmp}/file/labels'], '{tmp}/file/labels: expected a folder to write results into'),
    (['--model_path', '{tmp}/none.pdparams'], '{tmp}/none.pdparams: expected a weights file (.pdparams), found'),
    (['--ground_truth', '{tmp}/empty'], '--ground_truth {tmp}/empty: expected label ids with the names of the images, '
                                        'like town/a_leftImg8bit.png or town/a_gtFine_labelIds.png, found an empty'),
    (['--is_slide'], '--crop_size: expected width and height in pixels with --is_slide')])
def test_bad_input_is_one_line_and_writes_nothing(tiny_config, tmp_path, capsys, argv, expected):
    touch(tmp_path, 'images/town/a_leftImg8bit.png', 'file')
    (tmp_path / 'empty').mkdir()
    before = sorted(tmp_path.rglob('*'))
    line = refused(capsys, '--config', tiny_config, '--model_path', tmp_path / 'file', '--image_dir',
                   tmp_path / 'images', '--save_dir', tmp_path / 'out', *(a.format(tmp=tmp_path) for a in argv))
    assert line.startswith('error: ') and expected.format(tmp=tmp_path) in line
    assert sorted(tmp_path.rglob('*')) == before


def test_a_folder_without_write_permission(tiny_config, tmp_path, capsys, monkeypatch):
    touch(tmp_path, 'images/a.png', 'file')
    monkeypatch.setattr(os, 'access', lambda path, mode: Path(path) != tmp_path)  # the tests may run as root
    line = refused(capsys, '--config', tiny_config, '--model_path', tmp_path / 'file', '--image_dir',
                   tmp_path / 'images', '--save_dir', tmp_path / 'out')
    assert f'{tmp_path / "out"}: expected a folder to write results into, found one without write permission' in line
