"""What the page says, against NumPy; charts against Plotly's own check of their keys."""
import json
import math
import re

import numpy as np
import plotly.graph_objects
import pytest

from datasets.labels import CITYSCAPES, LabelSet
from inference.report import figures, look, page
from tests.browser import Reader, json_of
from tests.made_report import log, make

NASTY = '</script><img src=x onerror=alert(1)>"\'&%{x} ü\n\u2028'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """(text of the page, its Report) of three images."""
    index, report = make(tmp_path_factory.mktemp('report'), 3, (64, 128))
    return index.read_text(), report


def test_headline_and_tables_are_the_scores(made):
    text, report = made
    words = Reader(text).text
    matrix = report.result['matrix']
    true = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - true
    iou = true[union > 0] / union[union > 0]
    assert f'{100 * iou.mean():.2f} %' in words and f'{100 * true.sum() / matrix.sum():.2f} %' in words
    assert f'{matrix.sum():,} labelled pixels' in words
    road = re.search('<tr><td class="left">road</td><td>(.*?) %</td><td>(.*?) %</td><td>(.*?) %</td><td>25.00 %</td>'
                     '<td>(.*?)</td>', text)
    assert road.groups() == (f'{100 * true[0] / union[0]:.2f}', f'{100 * true[0] / matrix[:, 0].sum():.2f}',
                             f'{100 * true[0] / matrix[0].sum():.2f}', f'{matrix[0].sum():,}')
    assert '43.21 %' in words and '12.34 %' in words, 'iIoU and boundary F-score, where they were asked for'
    flat = matrix[:2].sum()  # road and sidewalk
    right = matrix[:2, :2].sum()
    category = f'{100 * right / (flat + matrix[:, :2].sum() - right):.2f} %'
    assert f'<tr><td class="left">flat</td><td>{category}</td></tr>' in text
    worst = (matrix - np.diag(true)).max()
    assert f'{worst:,} pixels' in re.search('<ol class="confusions">.*?</li>', text)[0]


def test_data_of_the_gallery(made):
    text, report = made
    data = json_of(text, 'images-data')
    assert [layer['key'] for layer in data['layers']] == [
        'input', 'truth', 'prediction', 'errors', 'confidence', 'scales', 'attention_0.5', 'attention_1', 'attention_2']
    for image, score in zip(data['images'], report.result['images']):
        matrix = np.zeros(19 * 19, int)
        matrix[image['m'][::2]] = image['m'][1::2]
        assert (matrix.reshape(19, 19) == score['matrix']).all()
        assert image['s'] == pytest.approx(score['miou'], abs=1e-5) and image['n'] == score['name']
        assert [value is None for value in image['i']] == np.isnan(score['iou']).tolist()
        assert sum(image['p']) == pytest.approx(1, abs=1e-3) and sum(image['e']) == pytest.approx(1)


def test_figures_are_plotlys(made):
    """plotly.graph_objects raises for keys and values that Plotly does not have."""
    found = json_of(made[0], 'figures')
    assert set(found) == {'iou', 'categories', 'boundary', 'confusion', 'reliability', 'loss',
                          'scores'}
    for figure in found.values():
        plotly.graph_objects.Figure(figure)


def test_confusion_says_counts_and_shares():
    matrix = np.array([[90, 10, 0], [30, 60, 0], [0, 0, 0]])
    heat = figures.confusion(('road', 'car', 'sky'), matrix)['data'][0]
    assert heat['z'] == [[0.9, 0.1, 0.0], [pytest.approx(1 / 3, abs=1e-5), pytest.approx(2 / 3, abs=1e-5), 0.0],
                         [None] * 3]
    assert heat['customdata'][0][1] == ['road', 'car', '10', '10.00 %', '14.29 %']
    assert figures.worst_confusions(('road', 'car', 'sky'), matrix, 5) == [(1, 0, 30, pytest.approx(1 / 3)),
                                                                         (0, 1, 10, 0.1)]


def test_neighbouring_bars_differ_in_pattern():
    assert all(a != b for a, b in zip(figures.PATTERNS, (*figures.PATTERNS[1:], figures.PATTERNS[0])))


def test_curves_are_averaged_and_partial_lines_left_out(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    lines = [{'kind': 'train', 'iteration': i, 'loss': float(i)} for i in range(1, 2501)]
    path.write_text('\n'.join(map(json.dumps, lines)) + '\n{"kind": "train", "iterat')
    loss, = page.training(page.read_log(path))
    line = loss.figure['data'][0]
    assert len(line['x']) == 834 and line['x'][0] == 3 and line['y'][0] == 2 and line['x'][-1] == 2500
    assert page.read_log(tmp_path / 'none') == [] and page.read_log(path / 'below') == []
    names = [line['name'] for line in page.training(log())[1].figure['data']]
    assert names == ['mIoU', 'accuracy']
    averaged = [{'kind': 'ema_eval', 'iteration': 5, 'miou': 0.5, 'accuracy': None}]
    assert [line['name'] for line in page.training(averaged)[0].figure['data']] == [
        'averaged weights: mIoU', 'averaged weights: accuracy']


def test_names_are_escaped_everywhere(tmp_path):
    labels = LabelSet((NASTY, *CITYSCAPES.names[1:]), CITYSCAPES.palette, categories=())
    index, _ = make(tmp_path, 2, (64, 128), labels=labels, names=[NASTY, f'{NASTY}2'], title=NASTY)
    text = index.read_text()
    reader = Reader(text)
    assert not any('onerror' in attributes for _, attributes in reader.tags)
    assert {tag for tag, attributes in reader.tags if attributes.get('src') == 'x'} == set()
    shown = look.printable(NASTY)
    assert '\n' not in shown and shown in reader.text
    data = json_of(text, 'images-data')
    assert data['names'][0] == shown and data['images'][0]['n'] == shown
    for figure in json_of(text, 'figures').values():
        assert '<img' not in json.dumps(figure), 'Plotly reads its texts as markup'


def test_without_ground_truth_nothing_is_scored(tmp_path):
    text = make(tmp_path, 2, (64, 128), truth=False, scales=())[0].read_text()
    assert 'mIoU</dt>' not in text and 'Mean confidence' in text and 'id="confusion"' not in text
    data = json_of(text, 'images-data')
    assert [layer['key'] for layer in data['layers']] == ['input', 'prediction', 'confidence']
    assert not data['truth'] and 's' not in data['images'][0]
    assert set(json_of(text, 'figures')) == {'classes'}


def test_no_number_is_nan():
    with pytest.raises(ValueError):
        look.data_script('x', math.nan)
    assert figures.numbers([math.nan, 0.5]) == [None, 0.5] and look.percent(math.nan) == '–'
    assert json_of(look.data_script('x', '<!-- </script>'), 'x') == '<!-- </script>'
