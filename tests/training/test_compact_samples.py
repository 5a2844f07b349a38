"""Training with images that come from the workers before Normalize: the same bits as with Normalize there."""
import numpy as np
import paddle
import paddleseg.transforms as T
import pytest

import train
from datasets import cityscapes_autolabeling, paddleseg_dataset
from datasets.cityscapes_autolabeling import CityscapesAutolabeling
from datasets.normalization import Normalization
from datasets.sampling import EpochStream
from tests.conftest import run_script
from tests.datasets.test_normalization import CROP, MEAN, RECIPE, STD, AtItsPlace
from tests.test_paddleseg_models import write_config
from training.loader import training_batches

MIXED = [T.RandomNoise(0.5), CROP]  # half of the images have no integers any more


@pytest.fixture
def arrived(monkeypatch):
    """The types of the images as they come from the workers, in order."""
    found, original = [], Normalization.on_device

    def noted(self, images):
        found.append(images.dtype)
        return original(self, images)

    monkeypatch.setattr(Normalization, 'on_device', noted)
    return found


def batches_of(toy, before, normalize, num_workers):
    dataset = CityscapesAutolabeling([*before, normalize(MEAN, STD)], str(toy), seed=1)
    return [{key: value.numpy() for key, value in batch.items()}
            for batch in training_batches(dataset, EpochStream(dataset, 2, 12, seed=1), num_workers)]


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('before, types', [(RECIPE, {paddle.uint8}), (RECIPE[:3], {paddle.float32}),
                                           (MIXED, {paddle.uint8, paddle.float32})])
def test_batches_have_the_same_bits(toy, arrived, before, types, num_workers):
    found, expected = (batches_of(toy, before, normalize, num_workers) for normalize in (T.Normalize, AtItsPlace))
    assert len(found) == len(expected) == 12 and set(arrived) == types and len(arrived) == 12
    for one, other in zip(found, expected):
        assert one.keys() == other.keys() == {'img', 'label'}
        assert one['img'].dtype == np.float32 and one['label'].dtype == np.int64
        assert all(one[key].tobytes() == other[key].tobytes() for key in one)


def ours(tmp_path, toy, tiny_config):
    return tiny_config


def theirs(tmp_path, toy, tiny_config):
    return write_config(tmp_path / 'theirs.yml', toy, {'type': 'ENet', 'num_classes': 19})


@pytest.mark.parametrize('config', [ours, theirs])
def test_training_ends_with_the_same_bytes(config, toy, tmp_path, tiny_config, arrived, monkeypatch):
    """Without workers, with two, and continued after the first step; of fine and coarse images where there are any."""
    config = config(tmp_path, toy, tiny_config)
    common = '--config', config, '--iters', 3, '--save_interval', 1, '--accum_steps', 2
    for workers in (0, 2):
        assert run_script(train.main, *common, '--save_dir', tmp_path / f'{workers}', '--num_workers', workers) is None
    assert len(arrived) == 12 and set(arrived) == {paddle.uint8}
    assert run_script(train.main, *common, '--save_dir', tmp_path / 'again', '--num_workers', 1, '--resume_model',
                      tmp_path / '0/iter_1') is None
    for module in (cityscapes_autolabeling, paddleseg_dataset):
        monkeypatch.setattr(module, 'put_off', lambda transforms: (list(transforms), None))
    arrived.clear()
    assert run_script(train.main, *common, '--save_dir', tmp_path / 'whole', '--num_workers', 2) is None
    assert not arrived
    expected, *others = ([value.numpy().tobytes() for name in ('model.pdparams', 'model.pdopt')
                          for value in paddle.load(str(tmp_path / run / 'iter_3' / name)).values()
                          if isinstance(value, paddle.Tensor)] for run in ('whole', '0', '2', 'again'))
    assert len(expected) > 100 and all(found == expected for found in others)
