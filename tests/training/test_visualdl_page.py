"""VisualDL's page with the pinned packages, in a headless Chromium: are curves and pictures really painted?"""
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest

from tests.browser import browse, needs_browser
from tests.conftest import PATIENCE
from training.run_log import RunLog

PINK, GREEN = (255, 0, 255), (0, 200, 0)

pytestmark = needs_browser


@contextmanager
def process(command, **kwargs):
    """A running command; it and what it has started are dead afterwards."""
    child = subprocess.Popen(command, start_new_session=True, **kwargs)
    try:
        yield child
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def answers(port):
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=PATIENCE)
    try:
        connection.request('GET', '/alive')
        return connection.getresponse().status == 204
    except OSError:
        return False
    finally:
        connection.close()


@pytest.fixture(scope='module')
def address(tmp_path_factory):
    """VisualDL's page on a run of 40 iterations that was resumed after 20."""
    folder = tmp_path_factory.mktemp('run')
    picture = np.zeros([256, 512, 3], np.uint8)
    picture[:, :256], picture[:, 256:] = PINK, GREEN
    for start in (0, 20):
        with RunLog(folder, ('road', 'traffic light'), use_vdl=True, start=start) as log:
            for i in range(start + 1, start + 21):
                log.train(i, 1, 0.1 / i, {'loss': 2 / i, 'parts': {'dice_0': 1 / i}, 'ips': 3.0, 'batch_cost': 0.5,
                                            'reader_cost': 0.1})
                if i % 10 == 0:
                    log.evaluation(i, {'miou': i / 50, 'accuracy': i / 40, 'iou': np.array([i / 60, i / 45])})
                    log.images(i, [picture, picture])
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    output = folder / 'server.txt'
    command = [sys.executable, '-m', 'visualdl.server.app', '--logdir', str(folder), '--host', '127.0.0.1',
               '--port', str(port), '--disable-telemetry']
    with open(output, 'w') as file, process(command, stdout=file, stderr=file) as server:
        end = time.monotonic() + PATIENCE
        while not answers(port):
            assert server.poll() is None and time.monotonic() < end, output.read_text()
            time.sleep(0.2)
        yield f'http://127.0.0.1:{port}/app'


@contextmanager
def visit(url, folder, there):
    """A Page (tests.browser) of 1400x1000 on which the JavaScript expression `there` has become true."""
    with browse(folder) as page:
        page.size(1400, 1000)
        page.open(url)
        page.wait(there)
        yield page


def picture_with(page, painted):
    """A picture of the page, int (1000, 1400, 3) RGB, as soon as painted(picture) is true."""
    end = time.monotonic() + PATIENCE
    while not painted(picture := page.picture()):
        assert time.monotonic() < end, 'it was not painted'
        time.sleep(0.2)
    return picture


def test_scalars_are_painted(address, tmp_path):
    def curves(picture):
        # Left of the settings and below the search field only a curve is blue. Two charts stand side by side, each 340
        # columns wide for 40 iterations, and their curves begin at the tenth.
        red, _, blue = np.moveaxis(picture[140:, :1120], 2, 0)
        return (blue - red > 60).any(axis=0).sum() > 400

    # mIoU, Acc and two classes
    with visit(f'{address}/scalar', tmp_path, "document.querySelectorAll('canvas').length == 4") as page:
        document = page.run('document.body.outerHTML')
        assert re.search(r'>Evaluate<.*>Train<', document), 'both groups of curves'
        picture_with(page, curves)


def test_pictures_are_painted(address, tmp_path):
    def pictures(picture):  # about 190 x 190 pixels in each of two
        return all((picture == color).all(axis=2).sum() > 2 * 100 * 100 for color in (PINK, GREEN))

    with visit(f'{address}/sample/image', tmp_path,
               "document.querySelectorAll('img[src^=\"blob:\"]').length == 2") as page:
        document = page.run('document.body.outerHTML')
        assert 'Evaluate/picture_0' in document and 'Evaluate/picture_1' in document
        assert 'Sample: 1/4' in document, 'those of both processes'
        picture_with(page, pictures)
