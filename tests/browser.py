"""Pages as they are written, and as a headless Chromium shows them, driven over its DevTools protocol through a pipe.

Nothing but the standard library.
"""
import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from tests.conftest import PATIENCE

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'google-chrome', 'chromium-browser'))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason='needs Chromium')
OPTIONS = ('--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
           '--disable-background-networking', '--disable-component-update', '--disable-sync', '--hide-scrollbars',
           '--remote-debugging-pipe', '--force-color-profile=srgb',
           '--lang=en-US', '--accept-lang=en-US')  # VisualDL answers 500 to a browser that names no language
# The browser reads from descriptor 3 and writes to 4.
CONNECT = '''import os, sys
commands, answers = (os.dup(os.dup(os.dup(int(number)))) for number in sys.argv[1:3])
os.dup2(commands, 3)
os.dup2(answers, 4)
os.execv(sys.argv[3], sys.argv[3:])'''
KEYS = {'ArrowLeft': 37, 'ArrowUp': 38, 'ArrowRight': 39, 'ArrowDown': 40, 'Escape': 27, 'Enter': 13, 'Tab': 9,
        'Home': 36, 'End': 35, ' ': 32}


class Page:
    """One tab. errors: what the console and the scripts complained about. requests: every address asked for."""

    def __init__(self, pid, to_browser, from_browser):
        self.pid = pid
        self._to, self._from, self._rest, self._id = to_browser, from_browser, b'', 0
        self._session, self.errors, self.requests, self._events = None, [], [], []
        target = self._call('Target.createTarget', url='about:blank')['targetId']
        self._session = self._call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self._call(f'{domain}.enable')

    def _receive(self):
        while b'\0' not in self._rest:
            data = os.read(self._from, 1 << 20)
            assert data, 'the browser has ended'
            self._rest += data
        message, _, self._rest = self._rest.partition(b'\0')
        message = json.loads(message)
        method, parameters = message.get('method'), message.get('params', {})
        if method == 'Runtime.exceptionThrown':
            details = parameters['exceptionDetails']
            self.errors.append(details.get('exception', {}).get('description', details['text']))
        elif method == 'Runtime.consoleAPICalled' and parameters['type'] in ('error', 'warning', 'assert'):
            self.errors.append(str([value.get('value') for value in parameters['args']]))
        elif method == 'Log.entryAdded' and parameters['entry']['level'] in ('error', 'warning'):
            self.errors.append(f'{parameters["entry"]["text"]} {parameters["entry"].get("url", "")}')
        elif method == 'Network.requestWillBeSent':
            self.requests.append(parameters['request']['url'])
        elif method:
            self._events.append(method)
        return message

    def _call(self, method, **parameters):
        self._id += 1
        message = {'id': self._id, 'method': method, 'params': parameters}
        if self._session:
            message['sessionId'] = self._session
        data = json.dumps(message).encode() + b'\0'
        while data:
            data = data[os.write(self._to, data):]
        while True:
            answer = self._receive()
            if answer.get('id') == self._id:
                assert 'error' not in answer, answer
                return answer['result']

    def size(self, width, height, phone=False, dark=False):
        """The window, and what the page is told of the device."""
        self._call('Emulation.setDeviceMetricsOverride', width=width, height=height, mobile=phone,
                   deviceScaleFactor=2 if phone else 1)
        self._call('Emulation.setTouchEmulationEnabled', enabled=phone)
        self._call('Emulation.setEmulatedMedia',
                   features=[{'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}])

    def open(self, path):
        """Open a path or an address; returns when everything that the page needs at first is there."""
        self._events.clear()
        self._call('Page.navigate', url=path if isinstance(path, str) else path.as_uri())
        while 'Page.loadEventFired' not in self._events:
            self._receive()

    def run(self, script):
        """Value of a JavaScript expression; a promise is waited for."""
        answer = self._call('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in answer, answer['exceptionDetails']
        return answer['result'].get('value')

    def wait(self, script):
        """Until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(script):
            assert time.monotonic() < end, f'waited in vain for {script}'
            time.sleep(0.05)

    def key(self, key, **modifiers):
        """Press and release a key."""
        code = KEYS.get(key, ord(key.upper()[0]))
        modifiers.setdefault('code', f'Digit{key}' if key.isdigit() else key)
        text = {} if key in KEYS and key not in (' ', 'Enter') else {'text': '\r' if key == 'Enter' else key}
        for kind in ('keyDown', 'keyUp'):
            self._call('Input.dispatchKeyEvent', type=kind, key=key, windowsVirtualKeyCode=code, **modifiers,
                       **(text if kind == 'keyDown' else {}))

    def click(self, selector):
        """Press the mouse in the middle of an element, wherever it must be scrolled to."""
        x, y = self.run(f'(() => {{ const e = document.querySelector({json.dumps(selector)}); '
                        'e.scrollIntoView({block: "center", behavior: "instant"}); '
                        'const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()')
        self.mouse('mousePressed', x, y)
        self.mouse('mouseReleased', x, y)

    def mouse(self, kind, x, y, pressed=False):
        """kind: mouseMoved (pressed: while the button is down), mousePressed or mouseReleased."""
        moved = kind == 'mouseMoved'
        self._call('Input.dispatchMouseEvent', type=kind, x=x, y=y, button='none' if moved and not pressed else 'left',
                   buttons=int(pressed or kind == 'mousePressed'), clickCount=int(not moved))

    def picture(self, path=None, full=False):
        """Screenshot as int (H, W, 3) RGB; full: the whole page rather than the window."""
        data = base64.b64decode(self._call('Page.captureScreenshot', format='png', captureBeyondViewport=full)['data'])
        if path:
            with open(path, 'wb') as file:
                file.write(data)
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)


@contextmanager
def browse(folder):
    """A Page; the browser keeps its profile in `folder` and is dead afterwards."""
    read_commands, write_commands = os.pipe()
    read_answers, write_answers = os.pipe()

    command = [sys.executable, '-c', CONNECT, str(read_commands), str(write_answers), BROWSER, *OPTIONS,
               f'--user-data-dir={folder}/profile']
    browser = subprocess.Popen(command, pass_fds=(read_commands, write_answers), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)
    os.close(read_commands)
    os.close(write_answers)
    try:
        yield Page(browser.pid, write_commands, read_answers)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()
        os.close(write_commands)
        os.close(read_answers)


def json_of(text, name):
    """The value that a page has for its scripts under a name."""
    return json.loads(re.search(f'<script type="application/json" id="{name}">(.*?)</script>', text, re.DOTALL)[1])


class Reader(HTMLParser):
    """Every tag of a page with its attributes, and the text outside scripts and styles. All elements must be closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._open = [], '', []
        self.feed(text)
        assert not self._open, 'every element is closed'

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ('meta', 'img', 'input'):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ('style', 'script'):
            self.text += data
