"""Weights by name and URL: a server on this machine that breaks off, resumes, lies or is not there."""
import functools
import hashlib
import http.server
import logging
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from common import model_zoo
from common.errors import UserError
from tests.conftest import ROOT

DATA = bytes(range(256)) * 4096  # 1 MiB


class Handler(http.server.BaseHTTPRequestHandler):
    """One file. The server's `limit`: bytes it sends before it breaks off; `ranges`: whether it knows them."""

    def do_GET(self):
        self.server.asked.append(self.headers.get('Range'))
        if self.path != '/model.pdparams':
            self.send_error(404)
            return
        start = int(self.headers['Range'][6:-1]) if self.headers.get('Range') and self.server.ranges else 0
        if start >= len(DATA):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(DATA) - start))
        self.end_headers()
        self.wfile.write(DATA[start:start + self.server.limit])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv('MSCALE_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        server.asked, server.limit, server.ranges = [], len(DATA), True
        server.url = f'http://127.0.0.1:{server.server_address[1]}/model.pdparams'
        threading.Thread(target=functools.partial(server.serve_forever, 0.02), daemon=True).start()
        yield server
        server.shutdown()


def test_a_url_is_downloaded_once(server):
    path = model_zoo.local_weights(server.url)
    assert path.read_bytes() == DATA and path.name.endswith('model.pdparams')
    assert model_zoo.local_weights(server.url) == path and len(server.asked) == 1
    assert sorted(p.suffix for p in path.parent.iterdir()) == ['.pdparams', '.sha256']


@pytest.mark.parametrize('ranges', [True, False])
def test_a_broken_download_continues(server, ranges):
    server.limit, server.ranges = 300_000, ranges
    with pytest.raises(UserError, match='run the same command again, it continues'):
        model_zoo.local_weights(server.url)
    server.limit = len(DATA)
    assert model_zoo.local_weights(server.url).read_bytes() == DATA
    first, second = server.asked
    assert first is None and 300_000 - model_zoo.BLOCK <= int(second[6:-1]) <= 300_000


def test_the_first_download_says_what_came(server, caplog):
    with caplog.at_level(logging.INFO):
        model_zoo.local_weights(server.url)
        model_zoo.local_weights(server.url)
    (line,) = [record.getMessage() for record in caplog.records if record.name == model_zoo.__name__]
    assert f'{len(DATA)} bytes, SHA-256 {hashlib.sha256(DATA).hexdigest()}; nothing is known here' in line


def test_processes_that_start_together_download_once(server):
    """As the launcher's do: one downloads, the others wait for it and find the file."""
    code = 'import sys; from common.model_zoo import local_weights; print(local_weights(sys.argv[1]))'
    started = [subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code, server.url], stdout=subprocess.PIPE,
                                text=True, cwd=ROOT) for _ in range(4)]
    paths = {process.communicate()[0].strip() for process in started}
    (path,) = paths
    assert Path(path).read_bytes() == DATA and len(server.asked) == 1
    assert sorted(p.suffix for p in Path(path).parent.iterdir()) == ['.pdparams', '.sha256']


def test_a_file_damaged_later_is_downloaded_again(server):
    path = model_zoo.local_weights(server.url)
    path.write_bytes(b'damaged')
    assert model_zoo.local_weights(server.url).read_bytes() == DATA and len(server.asked) == 2


def test_names_of_the_zoo_are_checked(server, monkeypatch, tmp_path):
    zoo = tmp_path / 'model_zoo.yml'
    monkeypatch.setattr(model_zoo, 'ZOO', zoo)
    good = {'url': server.url, 'sha256': hashlib.sha256(DATA).hexdigest(), 'bytes': len(DATA)}
    zoo.write_text(yaml.safe_dump({'good': good}))
    assert model_zoo.local_weights('good').read_bytes() == DATA
    zoo.write_text(yaml.safe_dump({'good': good, 'other': {'url': f'{server.url}?2', 'sha256': '0' * 64}}))
    with pytest.raises(UserError, match='404'):
        model_zoo.local_weights('other')
    zoo.write_text(yaml.safe_dump({'other': {**good, 'sha256': '0' * 64}}))
    for path in model_zoo.weights_folder().iterdir():
        path.unlink()
    with pytest.raises(UserError, match=f'expected a file of SHA-256 {"0" * 64}, found .* it was deleted'):
        model_zoo.local_weights('other')
    assert not list(model_zoo.weights_folder().iterdir())
    with pytest.raises(OSError, match='expected a file of weights, a URL or a name .* did you mean other'):
        model_zoo.local_weights('othre')


def test_without_a_network_there_is_one_clear_line(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError) as error:
        model_zoo.local_weights(server.url)
    assert '\n' not in str(error.value) and 'found no connection' in str(error.value)
    assert 'download it by other means' in str(error.value)


def test_paths_are_left_alone(tmp_path):
    for path in (tmp_path / 'w.pdparams', 'pretrain/none.pdparams', 'w.safetensors'):
        assert str(model_zoo.local_weights(path)) == str(path)


def test_the_zoo_has_what_readers_need():
    for name, entry in yaml.safe_load(model_zoo.ZOO.read_text()).items():
        assert {'url', 'what', 'license'} <= entry.keys(), name
        assert (model_zoo.ZOO.parents[1] / entry['config']).is_file()


@pytest.mark.parametrize('name', ['a.tar.gz', 'a.tgz', 'a.tar', 'a.zip'])
def test_the_weights_of_an_archive_are_unpacked_and_nothing_else(name, tmp_path, monkeypatch):
    monkeypatch.setenv('MSCALE_CACHE', str(tmp_path / 'cache'))
    (tmp_path / 'net').mkdir()
    (tmp_path / 'net/model.pdparams').write_bytes(DATA)
    (tmp_path / 'net/readme.txt').write_text('text')
    kind = {'a.tar': 'tar', 'a.zip': 'zip'}.get(name, 'gztar')
    made = shutil.make_archive(str(tmp_path / 'made'), kind, tmp_path, 'net')
    shutil.move(made, tmp_path / name)
    path = model_zoo.local_weights(tmp_path / name)
    assert path.read_bytes() == DATA and path.parent == tmp_path / 'cache/weights' and path.suffix == '.pdparams'
    assert model_zoo.local_weights(tmp_path / name) == path and len(list(path.parent.iterdir())) == 1


def test_an_archive_that_is_none_or_has_no_weights_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv('MSCALE_CACHE', str(tmp_path / 'cache'))
    (tmp_path / 'broken.tar.gz').write_bytes(b'no archive')
    with pytest.raises(UserError, match=r'broken\.tar\.gz: expected an archive, found a damaged one'):
        model_zoo.local_weights(tmp_path / 'broken.tar.gz')
    (tmp_path / 'net').mkdir()
    made = shutil.make_archive(str(tmp_path / 'empty'), 'gztar', tmp_path, 'net')
    with pytest.raises(UserError, match=r'expected an archive with one file of weights \(\*\.pdparams\), found 0'):
        model_zoo.local_weights(made)
