"""Comparison of evaluations: against resampling written out, and against SciPy's bootstrap."""
import json

import numpy as np
import pytest
import scipy.stats

from datasets.labels import LabelSet
from inference import evaluation_report, metrics, records
from inference.evaluator import summary
from tests.conftest import run_script
from tools import compare
from tools.comparing import bootstrap, documents

NAMES = ('road', 'car', 'train', 'never')
LABELS = LabelSet(NAMES, tuple((i, i, i) for i in range(4)))
IMAGES = 25


def matrices(seed, right=0.8):
    """Confusion matrices of IMAGES images, with the same ground truth for every seed; few have a train."""
    truth = np.random.default_rng(99)
    rng = np.random.default_rng(seed)
    result = np.zeros([IMAGES, 4, 4], np.int64)
    for matrix in result:
        pixels = truth.integers(50, 200, 4) * [1, 1, truth.random() < 0.1, 0]
        for i, count in enumerate(pixels):
            shares = np.array([(1 - right) / 2] * 3 + [0])
            shares[i % 3] = right
            matrix[i] = rng.multinomial(count, shares)
    return result


def write(path, found, names=None, labels=LABELS):
    """An evaluation as val.py writes it."""
    result = summary([records.of_matrix(i, (names or {}).get(i, f'city/{i}'), matrix) for i, matrix in
                      enumerate(found)], labels.num_classes, labels, images=True)
    path.write_bytes(evaluation_report.to_json(evaluation_report.document(result, labels)))
    return path


@pytest.fixture
def pair(tmp_path):
    return write(tmp_path / 'a.json', matrices(1)), write(tmp_path / 'b.json', matrices(2, 0.83))


def counts(found):
    return np.stack([np.diagonal(found, axis1=1, axis2=2), found.sum(axis=2), found.sum(axis=1)], axis=1)


def test_a_file_is_read_as_it_was_counted(pair):
    loaded = documents.load(pair[0])
    np.testing.assert_array_equal(loaded.counts, counts(matrices(1)))
    assert loaded.names == NAMES and loaded.images[3] == 'city/3'


def test_every_resample_is_the_evaluation_of_the_images_drawn():
    """The confusion matrices of the drawn images, one by one, through the metrics of val.py."""
    a, b = matrices(1), matrices(2)
    found = bootstrap.resampled([counts(a), counts(b)], 200, seed=5)
    (times,) = bootstrap.draws(IMAGES, 200, seed=5)
    assert (times.sum(axis=1) == IMAGES).all() and len({tuple(row) for row in times}) == 200
    absent = 0
    for r, row in enumerate(times):
        drawn = np.repeat(np.arange(IMAGES), row)
        for part, scores in zip((a, b), found):
            expected = metrics.scores(sum(part[i] for i in drawn))
            np.testing.assert_array_equal(scores.iou[r], expected['iou'])
            assert scores.miou[r] == pytest.approx(expected['miou'], rel=1e-15)
            assert scores.accuracy[r] == expected['accuracy']
            absent += np.isnan(expected['iou'][2])
    assert np.isnan(found[0].iou[:, 3]).all()


def test_draws_do_not_depend_on_how_they_are_cut(monkeypatch):
    whole = np.concatenate(list(bootstrap.draws(10, 50, 3)))
    monkeypatch.setattr(bootstrap, 'CHUNK', 70)
    parts = list(bootstrap.draws(10, 50, 3))
    assert len(parts) == 8
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert np.std(whole) == pytest.approx(np.sqrt(0.9), rel=0.2)  # of a multinomial: n p (1 - p)


def test_intervals_are_those_of_scipy(pair, tmp_path):
    """Both draw 10000 resamples: their quantiles differ by chance, by a standard error of 2.4 % of the deviation."""
    a, b = (counts(matrices(*of)) for of in ((1,), (2, 0.83)))

    def statistic(index, axis):
        first, second = (bootstrap.scores(part[index].sum(axis=-3)).miou for part in (a, b))
        return second - first

    expected = scipy.stats.bootstrap((np.arange(IMAGES),), statistic, n_resamples=10000, method='percentile',
                                     batch=500, random_state=np.random.default_rng(1))
    assert run_script(compare.main, *pair, '--save', tmp_path / 'c.json') is None
    found = json.loads((tmp_path / 'c.json').read_text())['comparisons'][0]['mIoU']
    error = 0.024 * expected.standard_error * 2**0.5  # density 0.058 / deviation at the 2.5 % quantile of a normal
    assert found['low'] == pytest.approx(expected.confidence_interval.low, abs=4 * error)
    assert found['high'] == pytest.approx(expected.confidence_interval.high, abs=4 * error)
    assert found['difference'] == pytest.approx(metrics.scores(matrices(2, 0.83).sum(0))['miou']
                                                - metrics.scores(matrices(1).sum(0))['miou'], rel=1e-12)


def test_equal_networks_differ_by_more_than_noise_as_often_as_the_level_says():
    """300 pairs that differ by chance alone: about 5 % of the 95 % intervals leave 0 out; 4 standard errors are 5 %."""
    alarms = 0
    for seed in range(100, 700, 2):
        pair = [counts(matrices(s)) for s in (seed, seed + 1)]
        whole = [bootstrap.scores(part.sum(axis=0)).miou for part in pair]
        spread = [scores.miou for scores in bootstrap.resampled(pair, 500, seed=0)]
        alarms += bootstrap.difference(*whole, *spread, 0.95).beyond
    assert 0.01 < alarms / 300 < 0.1


def test_noise_and_more_than_noise(tmp_path, capsys):
    a, same, better = (write(tmp_path / f'{name}.json', matrices(*of)) for name, of in
                       (('a', (1,)), ('same', (5,)), ('better', (3, 0.9))))
    assert run_script(compare.main, a, same, better) is None
    printed = capsys.readouterr().out
    verdicts = [line for line in printed.splitlines() if line.startswith('mIoU:')]
    assert 'points' in verdicts[0] and ', not more than noise; B is better in' in verdicts[0]
    assert ', more than noise; B is better in 100.0 % of the resamples' in verdicts[1]
    never = [line.split() for line in printed.splitlines() if line.startswith('never')]
    assert never == [['never', '-', '-', '-', '-']] * 2
    (road, _) = [line for line in printed.splitlines() if line.startswith('road')]
    assert f'{100 * metrics.scores(matrices(1).sum(0))["iou"][0]:.2f}' in road
    assert '25 images are few' in printed and 'by chance about 0.2 of 3 classes' in printed


def test_the_same_twice_differs_by_nothing(pair, capsys):
    assert run_script(compare.main, pair[0], pair[0]) is None
    assert 'mIoU: +0.00 points [+0.00, +0.00], not more than noise; B is better in 0.0 %' in capsys.readouterr().out


def test_files_hold_the_same_numbers(pair, tmp_path, capsys):
    paths = [tmp_path / f'c.{kind}' for kind in ('json', 'csv', 'html')]
    for _ in range(2):
        assert run_script(compare.main, *pair, '--resamples', 500, '--seed', 4, '--level', 0.9, '--save',
                          *paths) is None
    first, second = capsys.readouterr().out.split('A: ')[1:]
    assert first == second, 'the seed decides'
    data = json.loads(paths[0].read_text())
    assert (data['images'], data['resamples'], data['seed'], data['level']) == (25, 500, 4, 0.9)
    car = data['comparisons'][0]['classes']['car']
    assert car['low'] <= car['difference'] <= car['high'] and car['beyond_noise'] == (car['low'] > 0 or car['high'] < 0)
    assert data['comparisons'][0]['classes']['never']['difference'] is None
    lines = paths[1].read_text().splitlines()
    assert lines[0] == ('first,second,kind,name,first_score,second_score,difference,low,high,better,beyond_noise')
    assert f',class,car,{car["first"]},{car["second"]},{car["difference"]},' in lines[2] and len(lines) == 7
    page = paths[2].read_text()
    assert '<script src' not in page and 'points of IoU' in page and 'more than noise' in page


BROKEN = {
    'no JSON': ('nothing', 'b.json: expected the JSON of an evaluation, found something else'),
    'other JSON': ('{"a": 1}', 'b.json: expected the JSON of an evaluation, found something else'),
    'no images': (lambda data: data.pop('images'), "b.json: expected the scores of each image under the key 'images'"),
    'no counts': (lambda data: data['images'][1].pop('confusion'), "b.json: key 'images': expected an index, a name"),
    'no class': (lambda data: data['images'][1].update(confusion=[[0, 4, 1]]), "b.json: key 'images': expected an"),
    'negative': (lambda data: data['images'][1].update(confusion=[[0, 0, -1]]), "b.json: key 'images': expected an"),
    'sum': (lambda data: data['images'][1].update(confusion=[]), 'counts add up to the matrix, found others; write it'),
    'absent': (None, 'b.json: No such file or directory')}


@pytest.mark.parametrize('kind', BROKEN)
def test_what_is_no_evaluation(kind, pair, capsys):
    change, words = BROKEN[kind]
    if change is None:
        pair[1].unlink()
    elif isinstance(change, str):
        pair[1].write_text(change)
    else:
        data = json.loads(pair[1].read_text())
        change(data)
        pair[1].write_text(json.dumps(data))
    refused(capsys, words, *pair)


def refused(capsys, words, *argv):
    assert run_script(compare.main, *argv) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith('error: ') and words in line and not captured.out


def test_what_cannot_be_compared(pair, tmp_path, capsys):
    a, b = pair
    other = LabelSet(('road', 'car', 'tram', 'never'), LABELS.palette)
    refused(capsys, "b.json: expected the 4 classes of", a, write(b, matrices(2), labels=other))
    refused(capsys, "found 4 with 'tram' in place of 'train'; compare evaluations of one dataset", a, b)
    refused(capsys, f"expected the 25 images of {a}, found 25 with 'x/3' in place of 'city/3'; compare", a,
            write(b, matrices(2), {3: 'x/3'}))
    refused(capsys, 'found 24 with fewer at the end; compare evaluations of the same images', a,
            write(b, matrices(2)[:24]))
    changed = matrices(2)
    changed[7, 0, 0] += 1
    refused(capsys, 'found other numbers of pixels in 1 images, the first city/7; compare', a, write(b, changed))
    refused(capsys, 'expected at least two evaluations, found', a)
    one = write(tmp_path / 'one.json', matrices(1)[:1])
    refused(capsys, 'expected at least 2 images to resample, found 1; evaluate more', one, one)
    for flag, value, words in (('--resamples', 10, 'at least 100'), ('--level', 1, 'between 0 and 1'),
                               ('--seed', -1, 'at least 0'), ('--save', 'x.png', 'ends in .json, .csv, .html')):
        refused(capsys, words, a, a, flag, value)
