"""A toy Cityscapes with seven validation images, among whose objects are a caravan and a trailer; and a tiny network
with weights, for everything that runs on files."""
import numpy as np
import paddle
import pytest
from PIL import Image

from tests import fill
from tests.conftest import write_tiny_config

# Void in the evaluation, but with instance ids: (label id, rows, columns) of an object to add to an image.
VOID_OBJECTS = ((29, slice(20, 40), slice(10, 50)), (30, slice(30, 44), slice(70, 90)))


@pytest.fixture(scope='session')
def streets(tmp_path_factory):
    from tools import convert_cityscapes
    from tools.make_toy_cityscapes import make_toy

    root = tmp_path_factory.mktemp('streets') / 'cityscapes'
    make_toy(root, (64, 128), 1, 7, 0, seed=3)
    convert_cityscapes.main(['--cityscapes_path', str(root), '--num_workers', '1'])
    for path, (label_id, *where) in zip(sorted(root.glob('gtFine/val/*/*_instanceIds.png')), VOID_OBJECTS):
        for kind, value in (('instanceIds', 1000 * label_id), ('labelIds', label_id), ('labelTrainIds', 255)):
            file = path.with_name(path.name.replace('instanceIds', kind))
            pixels = np.array(Image.open(file))
            pixels[tuple(where)] = value
            Image.fromarray(pixels).save(file)
    return root


@pytest.fixture(scope='session')
def tiny(toy, tmp_path_factory):
    """(config, weights) of a tiny network on the toy dataset, whose predictions vary over an image."""
    from common.builder import Builder
    from common.config import Config

    folder = tmp_path_factory.mktemp('tiny')
    config = write_tiny_config(folder / 'tiny.yml', toy, optimizer=None)
    model = Builder(Config(str(config), [], with_pretrained=False)).model
    fill.weights(model)
    paddle.save(model.state_dict(), str(folder / 'model.pdparams'))
    return config, folder / 'model.pdparams'
