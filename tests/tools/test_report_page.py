"""The page of a dataset: complete in itself, every name escaped, and as a browser shows it."""
import shutil

import numpy as np
import plotly.graph_objects
import pytest

from datasets.labels import CITYSCAPES
from tests.browser import Reader, browse, json_of, needs_browser
from tools.report.page import to_html
from tools.verify_dataset import verify


@pytest.fixture(scope='module')
def page(toy, tmp_path_factory):
    """Path of the page of a sound toy."""
    folder = tmp_path_factory.mktemp('page')
    assert verify(toy, 1, report_dir=folder) == 0
    return folder / 'dataset_report.html'


@pytest.fixture(scope='module')
def spoilt(toy, tmp_path_factory):
    """Path of the page of a toy with a broken label and names that would be markup."""
    root = shutil.copytree(toy, tmp_path_factory.mktemp('spoilt') / 'data')
    (root / 'dataset.yml').write_text('name: <script>alert("name")</script> & söhne\n')
    for folder in ('leftImg8bit', 'gtFine'):
        (root / folder / 'val/klotzingen').rename(root / folder / 'val/<img src=x>')
    next(root.glob('gtFine/val/<img src=x>/*labelTrainIds.png')).write_bytes(b'')
    assert verify(root, 1) == 1
    return root / 'dataset_report.html'


@pytest.mark.parametrize('name', ['page', 'spoilt'])
def test_nothing_is_fetched(name, request):
    tags = Reader(request.getfixturevalue(name).read_text()).tags
    assert not {tag for tag, _ in tags} & {'link', 'iframe', 'object', 'embed', 'image', 'use', 'base'}
    addresses = [attributes[key] for _, attributes in tags for key in ('src', 'href', 'srcset', 'action', 'data')
                 if key in attributes]
    assert len(addresses) > 5 and all(address.startswith(('data:image/jpeg;base64,', '#')) for address in addresses)


def test_what_the_page_says(page):
    reader = Reader(page.read_text())
    assert 'Fine: 15 images, nothing wrong' in reader.text and 'What is wrong' not in reader.text
    for name in CITYSCAPES.names:
        assert name in reader.text
    pictures = [attributes for tag, attributes in reader.tags if tag == 'img']
    assert len(pictures) == 15, 'at most eight of each split'
    assert all(picture['decoding'] == 'sync' for picture in pictures), 'painted with the page, not some time after'
    bars = json_of(page.read_text(), 'figures')['classes_train']['data'][0]
    assert bars['marker']['color'] == [f'rgb{color}' for color in CITYSCAPES.palette]


def test_names_are_escaped(spoilt):
    text = spoilt.read_text()
    assert '<script>alert' not in text and '<img src=x>' not in text
    reader = Reader(text)
    assert '<script>alert("name")</script> & söhne' in reader.text and 'val/<img src=x>/' in reader.text
    assert '1 problem of 1 kind in 15 images' in reader.text and 'an empty file' in reader.text


def class_entry(pixels, images):
    return {'pixels': pixels, 'share': pixels / 100000, 'images': images, 'image_share': images / 4,
            'rare': images == 1}


def test_bars_are_logarithmic():
    """0.1 % lies two of the five decades above 0.001 %."""
    classes = {'road': class_entry(100000, 4), 'car': class_entry(100, 1), 'sky': class_entry(0, 0)}
    split = {'images': 4, 'expected': 4, 'labels': 4, 'problems': 0, 'sizes': {'10x20': 4}, 'median_size': [10, 20],
             'labelled_pixels': 100000, 'void_pixels': 0, 'classes': classes, 'rare': ['car'], 'absent': ['sky'],
             'coverage': dict.fromkeys(('pixels', 'least', 'lower_quartile', 'median', 'upper_quartile', 'most'), 1.0),
             'coverage_histogram': [0] * 19 + [4], 'empty_labels': 0, 'median_image': 'a/b', 'median_classes': 2}
    report = {'name': 'x', 'root': '/x', 'checked': 'today', 'fine': True, 'classes': list(classes), 'notes': [],
              'problems': [], 'splits': {'train': split}}
    text = to_html(report, CITYSCAPES, [])
    figure = json_of(text, 'figures')['classes_train']
    plotly.graph_objects.Figure(figure)  # raises for keys that Plotly does not have
    axis = figure['layout']['xaxis']
    assert figure['data'][0]['x'] == [1, 0.001, None] and axis['type'] == 'log' and axis['range'] == [-5, 0]
    assert [note['text'] for note in figure['layout']['annotations']] == ['100.0% · 4', '0.10% · 1 rare', 'absent']
    coverage = json_of(text, 'figures')['coverage_train']
    plotly.graph_objects.Figure(coverage)
    assert coverage['data'][0]['y'] == [0] * 19 + [4] and coverage['data'][0]['x'][0] == 0.025
    assert 'Rare in train: car;' in text
    assert to_html(report, CITYSCAPES, []) == text


@needs_browser
def test_page_in_a_browser(page, tmp_path):
    with browse(tmp_path) as browser:
        for width, phone, dark in ((1280, False, False), (390, True, True)):
            browser.size(width, 2600, phone=phone, dark=dark)
            browser.open(page)
            for chart in ('classes_train', 'classes_val', 'coverage_train'):
                browser.run(f'document.getElementById("chart-{chart}").scrollIntoView({{behavior: "instant"}})')
                browser.wait(f'document.querySelector("#chart-{chart}[data-drawn] .main-svg") !== null')
            assert browser.run('document.documentElement.scrollWidth') == width
            browser.run('scrollTo({top: 0, behavior: "instant"})')
            picture = browser.picture()
            green = (picture[:600] == (26, 127, 75)).all(axis=2)
            assert green.sum() > 30000, 'the verdict'
            for name, color in zip(CITYSCAPES.names, CITYSCAPES.palette):
                if name in ('road', 'building', 'sky'):
                    assert (picture == color).all(axis=2).sum() > 500, f'a bar of {name}'
        # The contact sheet: pixels that are neither grey nor of the few colours of text and bars.
        browser.run('document.getElementById("pictures").scrollIntoView({behavior: "instant"})')
        assert len(np.unique(browser.picture().reshape(-1, 3), axis=0)) > 3000
        assert browser.errors == [] and all(a.startswith(('file:', 'data:')) for a in browser.requests)


@needs_browser
def test_page_of_a_spoilt_dataset_in_a_browser(spoilt, tmp_path):
    with browse(tmp_path) as browser:
        browser.size(1280, 900)
        browser.open(spoilt)
        words = browser.run('document.body.innerText')
        assert '1 problem of 1 kind in 15 images' in words and '<script>alert("name")</script> & söhne' in words
        red = (browser.picture()[:600] == (179, 38, 30)).all(axis=2)
        assert red.sum() > 30000, 'the verdict is red'
        assert browser.errors == []
