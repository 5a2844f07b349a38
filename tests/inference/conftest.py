"""A tiny network with weights, for everything that runs on files."""
import paddle
import pytest

from tests import fill
from tests.conftest import write_tiny_config


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
