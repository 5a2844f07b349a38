"""The table of PaddleSeg's configs, tests/zoo.py: of a made-up checkout, and its parts."""
import os
import subprocess
import sys

import pytest

from tests import zoo
from tests.conftest import PATIENCE, ROOT

BASE = '''batch_size: 4
iters: 80000
train_dataset:
  type: Cityscapes
  dataset_root: data/cityscapes
  mode: train
  transforms: [{type: ResizeStepScaling}, {type: RandomPaddingCrop, crop_size: [1024, 512]}, {type: Normalize}]
val_dataset: {type: Cityscapes, dataset_root: data/cityscapes, mode: val, transforms: [{type: Normalize}]}
optimizer: {type: SGD, momentum: 0.9, weight_decay: 4.0e-5}
lr_scheduler: {type: PolynomialDecay, learning_rate: 0.01, end_lr: 0, power: 0.9}
loss: {types: [{type: CrossEntropyLoss}], coef: [1]}
'''
FAMILIES = {
    'enet/enet_cityscapes.yml': 'model: {type: ENet, num_classes: 19, pretrained: https://example.com/enet.tar.gz}',
    'pnet/pnet_cityscapes.yml': 'model: {type: PNet}',
    'enet/enet_optic.yml': 'model: {type: ENet, num_classes: 2}\ntrain_dataset: {type: OpticDiscSeg}\n'
                           'val_dataset: {type: OpticDiscSeg}'}


def run(checkout, out, *more):
    command = [sys.executable, str(ROOT / 'tests/zoo.py'), '--paddleseg', str(checkout), '--out', str(out), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_made_up_checkout(tmp_path):
    folder = tmp_path / 'configs'
    for name, text in {'_base_/cityscapes.yml': BASE, **FAMILIES}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text if name.startswith('_') else f'_base_: ../_base_/cityscapes.yml\n{text}\n')
    status, text = run(tmp_path, tmp_path / 'out', '--all')
    assert '| enet | `enet_cityscapes` | yes | yes | yes | yes |  |' in text
    assert '| pnet | `pnet_cityscapes` | no | no | no | no | key \'model.type\': expected a registered type' in text
    assert '| OpticDiscSeg | 1 | 1 | 0 |' in text and '1 of 2 families pass.' in text and status == 1
    assert run(tmp_path, tmp_path / 'out', '--only', 'enet')[0] == 0  # kept
    assert not list((tmp_path / 'out/work').rglob('*.pdparams'))
    status, text = run(tmp_path, tmp_path / 'out', '--only', 'ennet')
    assert (status, text.count('\n')) == (1, 1) and '--only ennet: expected families (enet, pnet)' in text


def test_without_a_checkout_it_is_skipped_by_name():
    environment = {key: value for key, value in os.environ.items() if key != 'PADDLESEG'}
    done = subprocess.run([sys.executable, str(ROOT / 'tests/zoo.py')], capture_output=True, text=True,
                          env=environment, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.startswith('skipped: the zoo of PaddleSeg: PADDLESEG is not set')
    assert done.stdout.count('\n') == 1


def test_a_folder_that_is_no_checkout(tmp_path, capsys):
    assert zoo.main(['--paddleseg', str(tmp_path)]) == 1
    assert capsys.readouterr().err == (f'error: {tmp_path}: expected a checkout of PaddleSeg 2.8, found no '
                                       'configs/_base_\n')


def test_what_makes_a_config_small():
    dic = {'train_dataset': {'transforms': [{'type': 'Resize', 'target_size': [512, 512]},
                                            {'type': 'RandomPaddingCrop', 'crop_size': [1024, 512]}]},
           'val_dataset': {'common_transforms': [{'type': 'ScalePadding', 'target_size': [224, 224]}]},
           'model': {'pretrained': None, 'backbone': {'type': 'X', 'pretrained': 'https://a/b.tar.gz'}},
           'test_config': {'is_slide': True, 'crop_size': [769, 769], 'stride': [512, 512]},
           'loss': {'types': [{'type': 'X', 'crop_size': [1, 1]}]}}
    assert zoo.small(dic, {'train_dataset': {'dataset_root': '/toy'}, 'other': {'dataset_root': '/x'}}) == [
        'train_dataset.dataset_root=/toy', 'train_dataset.transforms.0.target_size=[128, 128]',
        'train_dataset.transforms.1.crop_size=[96, 96]', 'model.backbone.pretrained=null',
        'test_config.crop_size=[96, 96]', 'test_config.stride=[64, 64]']


def result(**steps):
    return {'family': 'a', 'config': 'a/b.yml', 'dataset': 'ADE20K', 'steps': steps}


def test_rows_and_counts():
    refused = result(trains="error: /x/y/b.yml: key 'model.type': expected | none")
    assert zoo.refused(refused) and zoo.row(refused, zoo.STEPS) == (
        "| a | `b` | no | no | no | no | key 'model.type': expected / none |")
    broken = result(trains='', evaluates='internal error: KeyError: 3')
    assert not zoo.refused(broken) and not zoo.passed(broken)
    assert zoo.row(broken, zoo.STEPS) == '| a | `b` | yes | no | no | no | internal error: KeyError: 3 |'
    text = zoo.counts([refused, result(trains='')])
    assert '| ADE20K | 2 | 1 | 1 |' in text and "- `a/b.yml`: key 'model.type'" in text


def test_the_tables_are_written_between_their_marks(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('a\n<!-- zoo -->\nold\n<!-- /zoo -->\nb\n')
    zoo.write_between(page, 'zoo', 'new')
    assert page.read_text() == 'a\n<!-- zoo -->\nnew\n<!-- /zoo -->\nb\n'
