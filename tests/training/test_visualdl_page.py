"""VisualDL's page with the pinned packages, in a headless Chromium: are curves and pictures really painted?"""
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import cv2
import numpy as np
import pytest

from tests.conftest import PATIENCE
from training.run_log import RunLog

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'google-chrome', 'chromium-browser'))), None)
PINK, GREEN = (255, 0, 255), (0, 200, 0)

pytestmark = pytest.mark.skipif(BROWSER is None, reason='needs Chromium')


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


def visit(url, folder):
    """(document after its scripts ran, picture of the page as uint8 (1000, 1400, 3) RGB)."""
    command = [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--disable-quic',
               '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync',
               # VisualDL answers 500 to a browser that names no language.
               '--lang=en-US', '--accept-lang=en-US', '--window-size=1400,1000', '--virtual-time-budget=20000',
               f'--user-data-dir={folder}/profile', f'--screenshot={folder}/page.png', '--dump-dom', url]
    with process(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as browser:
        document, _ = browser.communicate(timeout=PATIENCE)
    return document, cv2.imread(f'{folder}/page.png')[..., ::-1].astype(int)


def test_scalars_are_painted(address, tmp_path):
    document, page = visit(f'{address}/scalar', tmp_path)
    assert re.search(r'>Evaluate<.*>Train<', document), 'both groups of curves'
    assert len(re.findall('<canvas', document)) == 4, 'mIoU, Acc and two classes'
    # Left of the settings and below the search field only a curve is blue. Two charts stand side by side, each 340
    # columns wide for 40 iterations, and their curves begin at the tenth.
    red, _, blue = np.moveaxis(page[140:, :1120], 2, 0)
    assert (blue - red > 60).any(axis=0).sum() > 400


def test_pictures_are_painted(address, tmp_path):
    document, page = visit(f'{address}/sample/image', tmp_path)
    assert 'Evaluate/picture_0' in document and 'Evaluate/picture_1' in document
    assert len(re.findall('<img [^>]*src="blob:', document)) == 2
    assert 'Sample: 1/4' in document, 'those of both processes'
    for color in (PINK, GREEN):
        assert (page == color).all(axis=2).sum() > 2 * 100 * 100, 'about 190 x 190 pixels in each of two pictures'
