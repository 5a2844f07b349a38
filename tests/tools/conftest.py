"""Folders of images and masks for tools/prepare_folder.py, toy archives for tools/prepare_cityscapes.py."""
import shutil
import sys
from types import SimpleNamespace

import pytest

from tests.tools.folders import FILES, VALUES, draw, save, values

TOY = dict(size=(64, 128), train=4, val=2, extra=5, test=2, seed=4)


@pytest.fixture
def folders(tmp_path, verified):
    """images, masks (values), a mapping of them, and the verify() that main() ends with, recorded and harmless."""
    for i, (name, suffix) in enumerate(FILES.items()):
        draw(tmp_path / f'images/{name}{suffix}', i)
        save(tmp_path / f'masks/{name}.png', values(i))
    (tmp_path / 'classes.yml').write_text(VALUES)
    return tmp_path


@pytest.fixture
def verified(monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, 'tools.verify_dataset',
                        SimpleNamespace(verify=lambda root, num_workers: calls.append((root, num_workers)) or 0))
    return calls


@pytest.fixture(scope='session')
def drawn(tmp_path_factory):
    """The tree, nothing of it converted; not to be changed by a test."""
    from tools.make_toy_cityscapes import make_toy
    root = tmp_path_factory.mktemp('drawn') / 'toy'
    make_toy(root, **TOY)
    return root


@pytest.fixture(scope='session')
def fresh_zips(tmp_path_factory):
    from tools.make_toy_cityscapes import make_toy
    zips = tmp_path_factory.mktemp('zips') / 'toy'
    make_toy(zips, **TOY, as_zips=True)
    return zips


@pytest.fixture
def zips(fresh_zips, tmp_path):
    """A folder with the four archives."""
    return shutil.copytree(fresh_zips, tmp_path / 'zips')


@pytest.fixture
def root(tmp_path):
    """A folder that does not exist yet."""
    return tmp_path / 'data' / 'cityscapes'
