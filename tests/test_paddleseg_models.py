"""PaddleSeg's models through our command lines: two steps, evaluation, prediction, resume; the others are refused."""
import functools
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import paddle
import pytest
import yaml
from paddleseg.cvlibs import manager
from PIL import Image

import predict
import train
import val
from common import cli, registry
from models.paddleseg_models import REFUSED
from tests.conftest import PATIENCE, ROOT
from tests.paddleseg_models import LOSSES, RUNS

QUICK = ('OCRNet', 'PPLiteSeg', 'SegFormer', 'FastSCNN', 'ENet', 'SFNet', 'GSCNN')
NORMALIZE = {'type': 'Normalize', 'mean': [0.485, 0.456, 0.406], 'std': [0.229, 0.224, 0.225]}


def run(main, *argv):
    with pytest.raises(SystemExit) as stop:
        cli.run(main, [str(a) for a in argv])
    return stop.value.code


def run_alone(main, *argv):
    command = [sys.executable, str(ROOT / f'{main.__module__}.py'), *map(str, argv)]
    return subprocess.run(command, timeout=PATIENCE).returncode or None


def write_config(path, toy, model, outputs=1, losses=None, **sections):
    """A config as PaddleSeg's own have it, on PaddleSeg's Cityscapes."""
    losses = losses or ['CrossEntropyLoss']
    config = {
        'batch_size': 2, 'iters': 2,
        'train_dataset': {'type': 'Cityscapes', 'dataset_root': str(toy), 'mode': 'train', 'transforms': [
            {'type': 'ResizeStepScaling', 'min_scale_factor': 0.75, 'max_scale_factor': 1.5, 'scale_step_size': 0.25},
            {'type': 'RandomPaddingCrop', 'crop_size': [64, 64]}, {'type': 'RandomHorizontalFlip'},
            {'type': 'RandomDistort', 'brightness_range': 0.4, 'contrast_range': 0.4, 'saturation_range': 0.4},
            NORMALIZE]},
        'val_dataset': {'type': 'Cityscapes', 'dataset_root': str(toy), 'mode': 'val', 'transforms': [NORMALIZE]},
        'model': model,
        'optimizer': {'type': 'sgd', 'momentum': 0.9, 'weight_decay': 4.0e-5},
        'lr_scheduler': {'type': 'PolynomialDecay', 'learning_rate': 0.01, 'end_lr': 0, 'power': 0.9},
        'loss': {'types': [{'type': loss} if isinstance(loss, str) else loss for loss in losses],
                 'coef': [1] + [0.4] * (outputs - 1)}, **sections}
    config['train_dataset']['edge'] = any(loss.get('edge_label', False) for loss in config['loss']['types'])
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def check_run(config, toy, folder, capsys, tolerance=1e-6, run=run):
    """Train with evaluation, score, predict, and resume to the same weights.

    tolerance: of the mIoU of both scores. run: in this process, or each command in its own.
    """
    common = ['--config', config, '--save_interval', 1, '--log_iters', 1]
    status = run(train.main, *common, '--save_dir', folder / 'run', '--do_eval')
    assert status is None, capsys.readouterr().err
    weights = folder / 'run/iter_2/model.pdparams'
    assert run(val.main, '--config', config, '--model_path', weights) is None
    report = json.loads(next(weights.parent.glob('evaluation_*.json')).read_text())
    records = [json.loads(line) for line in (folder / 'run/metrics.jsonl').read_text().splitlines()]
    last = [record for record in records if record['kind'] == 'eval'][-1]
    assert len(report['images']) == 3 and report['miou'] == pytest.approx(last['miou'], abs=tolerance)
    image = next((toy / 'leftImg8bit/val').rglob('*.png'))
    assert run(predict.main, '--config', config, '--model_path', weights, '--image_path', image, '--save_dir',
               folder / 'pictures') is None
    with Image.open(folder / 'pictures/pseudo_color_prediction' / image.name) as picture:
        assert np.array(picture).shape == (64, 128)
    shutil.copytree(folder / 'run/iter_1', folder / 'again/iter_1')
    assert run(train.main, *common, '--save_dir', folder / 'again', '--resume', 'auto') is None
    first, second = (paddle.load(str(folder / name / 'iter_2/model.pdparams')) for name in ('run', 'again'))
    assert list(first) == list(second)
    assert all(np.array_equal(np.asarray(first[name]), np.asarray(second[name])) for name in first)


@pytest.mark.parametrize('name', [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
                                  for name in RUNS])
def test_model_trains_evaluates_predicts_and_resumes(name, toy, tmp_path, capsys):
    parameters, outputs = RUNS[name]
    config = write_config(tmp_path / 'model.yml', toy, {'type': name, **parameters}, outputs, LOSSES.get(name))
    check = functools.partial(check_run, config, toy, tmp_path, capsys)
    if name == 'SegNeXt':  # it draws random numbers in evaluation
        check(tolerance=0.05)
    elif name == 'PortraitNet':  # its backbone names its parameters, and Paddle takes a name once in a process
        check(run=run_alone)
    else:
        check()


def refused(name, parameters, toy, tmp_path, capsys):
    config = write_config(tmp_path / 'model.yml', toy, {'type': name, **parameters})
    status = run(train.main, '--config', config, '--save_dir', tmp_path / 'run')
    lines = capsys.readouterr().err.splitlines()
    assert status == 1 and not (tmp_path / 'run').exists()
    return lines[-1]


@pytest.mark.parametrize('name', REFUSED)
def test_model_that_cannot_run_is_refused_by_name(name, toy, tmp_path, capsys):
    line = refused(name, {'backbone': {'type': 'ResNet18_vd'}}, toy, tmp_path, capsys)
    assert line.startswith(f"error: {tmp_path}/model.yml: key 'model.type': ") and REFUSED[name] in line


def test_a_vision_transformer_starts_from_a_file_too(tmp_path):
    registry.register()
    transformer = manager.BACKBONES.components_dict['VisionTransformer']
    build = functools.partial(transformer, embed_dim=32, depth=1, num_heads=4)
    first = build(img_size=64)
    paddle.save(first.state_dict(), str(tmp_path / 'weights.pdparams'))
    second = build(img_size=32, pretrained=str(tmp_path / 'weights.pdparams'))
    assert np.array_equal(first.blocks[0].mlp.fc1.weight.numpy(), second.blocks[0].mlp.fc1.weight.numpy())
    resized = second.resize_pos_embed(first.pos_embed, (4, 4), (2, 2))
    assert np.array_equal(second.pos_embed.numpy(), resized.numpy()) and second.pos_embed.shape == [1, 5, 32]


def test_isanet_on_features_that_its_windows_do_not_divide():
    """Features of 9 x 13 are padded to 16 x 16, and cut again: every pixel counts, and none comes from elsewhere."""
    registry.register()
    backbone = manager.BACKBONES.components_dict['ResNet18_vd'](output_stride=8)
    model = manager.MODELS.components_dict['ISANet'](19, backbone, [2, 3], isa_channels=32, down_factor=[8, 8],
                                                     enable_auxiliary_loss=False)
    model.eval()
    seen = []
    model.head.global_relation.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    model.head.in_conv.register_forward_post_hook(lambda layer, inputs, output: seen.append(output))
    assert model(paddle.randn([2, 3, 72, 104]))[0].shape == [2, 19, 72, 104]
    features, windows = seen[0].numpy(), seen[1].numpy()
    assert features.shape == (2, 128, 9, 13)
    padded = np.pad(features, ((0, 0), (0, 0), (3, 4), (1, 2)))
    expected = padded.reshape(2, 128, 2, 8, 2, 8).transpose(0, 3, 5, 1, 2, 4).reshape(-1, 128, 2, 2)
    assert np.array_equal(windows, expected)


def test_weights_to_start_from_are_for_training_alone(toy, tmp_path, capsys):
    """Without a network, training says so with the way out, and weights that are there are scored and used."""
    config = write_config(tmp_path / 'model.yml', toy, {'type': 'PPLiteSeg', **RUNS['PPLiteSeg'][0], 'backbone': {
        'type': 'STDC1', 'pretrained': 'http://127.0.0.1:9/stdc1.tar.gz'}}, 3)
    assert run(train.main, '--config', config, '--save_dir', tmp_path / 'without') == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith('error: http://127.0.0.1:9/stdc1.tar.gz: expected to download it, found no connection')
    assert line.endswith('to train from random weights: --opts model.backbone.pretrained=null')
    assert run(train.main, '--config', config, '--save_dir', tmp_path / 'run', '--opts',
               'model.backbone.pretrained=null') is None
    assert run(val.main, '--config', config, '--model_path', tmp_path / 'run/iter_2/model.pdparams') is None


def test_synchronised_batch_norm_is_refused_on_a_cpu(toy, tmp_path, capsys):
    line = refused('UPerNetViTAdapter', {'backbone': {'type': 'ViTAdapter_Tiny'}, 'backbone_indices': [0]}, toy,
                   tmp_path, capsys)
    assert 'found UPerNetViTAdapter: its batch norm is synchronised' in line


def test_a_model_for_19_classes_is_refused_for_others(toy, tmp_path, capsys):
    line = refused('ESPNetV1', {'num_classes': 5}, toy, tmp_path, capsys)
    assert 'found ESPNetV1: PaddleSeg 2.8 counts its channels for 19 classes, not for 5' in line


@pytest.mark.parametrize('loss, text', [('FocalLoss', 'it is for 2 class(es), not for 5'), (
    'RMILoss', 'its num_classes must be 5, the number of classes; it is 19')])
def test_a_loss_for_other_classes_is_refused_with_the_config(loss, text, toy, tmp_path, capsys):
    config = write_config(tmp_path / 'model.yml', toy, {'type': 'ENet', 'num_classes': 5}, losses=[loss])
    assert run(train.main, '--config', config, '--save_dir', tmp_path / 'run') == 1
    assert f"key 'loss.types.0.type': expected a type that runs here, found {loss}: {text}; see" in \
        capsys.readouterr().err.splitlines()[-1]


def test_every_model_is_listed():
    registry.register()
    assert set(manager.MODELS.components_dict) == {*RUNS, *REFUSED, 'MscaleOCRNet', 'UPerNetViTAdapter'}
    registries = {*manager.MODELS.components_dict, *manager.LOSSES.components_dict}
    rows = [line for line in (ROOT / 'docs/paddleseg.md').read_text().splitlines() if line.startswith('| `')]
    stated = {word: row for row in rows for word in re.findall(r'`(\w+)`', row.split('|')[1])}
    assert registries <= set(stated)
    for name, (_, outputs) in RUNS.items():
        assert f'| {outputs} | yes | yes | yes |' in stated[name]
    assert all('| no | no | no |' in stated[name] for name in REFUSED)
