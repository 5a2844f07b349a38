"""The page of a dataset: complete in itself, every name escaped, and as a browser shows it."""
import os
import re
import shutil
import signal
import subprocess
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from datasets.labels import CITYSCAPES
from tests.conftest import PATIENCE
from tools.report.page import to_html
from tools.verify_dataset import verify

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'google-chrome', 'chromium-browser'))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason='needs Chromium')


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


class Reader(HTMLParser):
    """Every tag with its attributes, and the text outside style."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._open = [], '', []
        self.feed(text)
        assert not self._open, 'every element is closed'

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ('meta', 'img'):
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != 'style':
            self.text += data


@pytest.mark.parametrize('name', ['page', 'spoilt'])
def test_nothing_is_fetched(name, request):
    text = request.getfixturevalue(name).read_text()
    tags = Reader(text).tags
    assert not {tag for tag, _ in tags} & {'script', 'link', 'iframe', 'object', 'embed', 'image', 'use', 'base', 'a'}
    addresses = [attributes[key] for _, attributes in tags for key in ('src', 'href', 'srcset', 'action', 'data')
                 if key in attributes]
    assert len(addresses) > 5 and all(address.startswith('data:image/jpeg;base64,') for address in addresses)
    assert 'http' not in text and 'url(' not in text and '@import' not in text


def test_what_the_page_says(page):
    reader = Reader(page.read_text())
    assert 'Fine: 15 images, nothing wrong' in reader.text and 'What is wrong' not in reader.text
    for name in CITYSCAPES.names:
        assert name in reader.text
    pictures = [attributes for tag, attributes in reader.tags if tag == 'img']
    assert len(pictures) == 15, 'at most eight of each split'
    assert all(picture['decoding'] == 'sync' for picture in pictures), 'painted with the page, not some time after'
    bars = [attributes for tag, attributes in reader.tags if tag == 'rect' and attributes.get('class') == 'bar']
    assert {bar['fill'] for bar in bars} <= {f'rgb{color}' for color in CITYSCAPES.palette}
    assert max(float(bar['width']) for bar in bars) <= 210


def test_names_are_escaped(spoilt):
    text = spoilt.read_text()
    assert '<script>' not in text and '<img src=x>' not in text
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
    widths = [float(width) for width in re.findall(r'class="bar"[^>]*width="([\d.]+)"', text)]
    assert widths == [210, 84]
    assert 'Rare in train: car;' in text and '1 images, rare' in text and '>absent<' in text
    assert to_html(report, CITYSCAPES, []) == text


def visit(path, folder):
    """(document, picture of the page as int (2600, 1280, 3) RGB) without any network."""
    command = [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
               '--disable-background-networking', '--disable-component-update', '--disable-sync', '--hide-scrollbars',
               '--window-size=1280,2600', f'--user-data-dir={folder}/profile', f'--screenshot={folder}/page.png',
               '--dump-dom', path.as_uri()]
    browser = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                               start_new_session=True)
    try:
        document, _ = browser.communicate(timeout=PATIENCE)
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()
    return document, cv2.imread(f'{folder}/page.png')[..., ::-1].astype(int)


@needs_browser
def test_page_in_a_browser(page, tmp_path):
    document, picture = visit(page, tmp_path)
    assert 'Fine: 15 images, nothing wrong' in document
    green = (picture[:300] == (26, 127, 75)).all(axis=2)
    assert green.sum() > 30000, 'the verdict'
    for name, color in zip(CITYSCAPES.names, CITYSCAPES.palette):
        if name in ('road', 'building', 'sky', 'car', 'vegetation'):
            assert (picture == color).all(axis=2).sum() > 3 * 300, f'a bar of {name} in each of three charts'
    # The contact sheet: pixels that are neither grey nor of the few colours of text and bars.
    lower = picture[1700:]
    assert len(np.unique(lower.reshape(-1, 3), axis=0)) > 3000


@needs_browser
def test_page_of_a_spoilt_dataset_in_a_browser(spoilt, tmp_path):
    document, picture = visit(spoilt, tmp_path)
    assert '1 problem of 1 kind in 15 images' in document
    assert '&lt;script&gt;alert' in document and '<script' not in document
    assert (picture[:300] == (179, 38, 30)).all(axis=2).sum() > 30000, 'the verdict is red'
