"""What the keys of PaddleSeg's configs mean here: the rate of every step, groups of parameters, clipping, bases in
other folders, and validation transforms that change the size. Expected values are formulas by hand."""
import json

import cv2
import numpy as np
import paddle
import pytest
import yaml

import train
import val
from common.builder import Builder
from common.config import Config
from tests import rounding
from tests.paddleseg_models import RUNS
from tests.test_paddleseg_models import NORMALIZE, run, write_config

BASE, START, END, POWER, ITERS = 0.01, 1e-3, 1e-4, 0.9, 20


@pytest.fixture
def config(toy, tmp_path):
    return write_config(tmp_path / 'a.yml', toy, {'type': 'BiseNetV1', **RUNS['BiseNetV1'][0]}, 3)


def rates(config, *opts):
    schedule = Builder(Config(config, [f'iters={ITERS}', *opts])).lr_scheduler
    found = []
    for _ in range(ITERS):
        found.append(schedule())
        schedule.step()
    return found


@pytest.mark.parametrize('warmup', [0, 5])
def test_polynomial_decay_after_a_linear_warm_up(config, warmup):
    """The decay takes what is left of the iterations; warm-up goes from its start to the rate."""
    given = [f'lr_scheduler.learning_rate={BASE}', f'lr_scheduler.end_lr={END}', f'lr_scheduler.power={POWER}']
    if warmup:
        given += [f'lr_scheduler.warmup_iters={warmup}', f'lr_scheduler.warmup_start_lr={START}']
    left = ITERS - warmup
    expected = [START + (BASE - START) * i / warmup if i < warmup else
                (BASE - END) * (1 - (i - warmup) / left) ** POWER + END for i in range(ITERS)]
    assert rates(config, *given) == pytest.approx(expected, rel=1e-12)


def test_steps(config):
    schedule = '{"type": "StepDecay", "learning_rate": 0.01, "step_size": 8, "gamma": 0.5}'
    assert rates(config, f'lr_scheduler={schedule}') == pytest.approx([0.01 * 0.5 ** (i // 8) for i in range(ITERS)])


def stepped(config, *opts):
    """{parameter: change by one step with gradients of 1, in units of the rate 0.5}."""
    builder = Builder(Config(config, ['lr_scheduler.learning_rate=0.5', *opts]))
    model, optimizer = builder.model, builder.optimizer
    before = {}
    for name, p in model.named_parameters():
        if not p.stop_gradient:
            before[name] = p.numpy().copy()
            p.grad = paddle.ones_like(p)
    optimizer.step()
    return {name: (before[name] - p.numpy()) / 0.5 for name, p in model.named_parameters() if name in before}


def test_rates_of_groups_of_parameters(config):
    """custom_cfg: the first group whose name is part of the parameter's name."""
    groups = '[{"name": "backbone", "lr_mult": 0.1}, {"name": "ffm", "lr_mult": 4.0}, {"name": "conv", "lr_mult": 2.0}]'
    changes = stepped(config, 'optimizer={"type": "SGD"}', f'optimizer.custom_cfg={groups}')
    seen = set()
    for name, change in changes.items():
        factor = 0.1 if 'backbone' in name else 4 if 'ffm' in name else 2 if 'conv' in name else 1
        seen.add(factor)
        # Of weights below 8, whose last bit is below 2^-20: what is subtracted is rounded to that
        np.testing.assert_allclose(change, factor, atol=2**-19, err_msg=name)
    assert {0.1, 4, 2} <= seen


@pytest.mark.parametrize('cfg, expected', [
    ({'name': 'ClipGradByValue', 'max': 0.25}, lambda count, total: 0.25),
    ({'name': 'ClipGradByNorm', 'clip_norm': 0.5}, lambda count, total: min(1, 0.5 / count**0.5)),
    ({'name': 'ClipGradByGlobalNorm', 'clip_norm': 3.0}, lambda count, total: 3 / total**0.5)])
def test_gradient_clipping(cfg, expected, config):
    changes = stepped(config, 'optimizer={"type": "SGD"}', f'optimizer.grad_clip_cfg={json.dumps(cfg)}')
    total = sum(change.size for change in changes.values())
    for name, change in changes.items():
        # float32 sums of so many ones are exact below 2^24; the quotient and the subtraction round
        np.testing.assert_allclose(change, expected(change.size, total), rtol=rounding.of_sum(8), atol=2**-19,
                                   err_msg=name)


def test_bases_are_relative_to_their_own_folder(config, tmp_path):
    for folder in ('bases', 'bases/deep', 'net'):
        (tmp_path / folder).mkdir()
    config.rename(tmp_path / 'bases/deep/first.yml')
    (tmp_path / 'bases/second.yml').write_text('_base_: deep/first.yml\niters: 7\n')
    (tmp_path / 'net/mine.yml').write_text("_base_: ['../bases/second.yml']\nbatch_size: 3\n"
                                           'optimizer: {_inherited_: False, type: Adam}\n')
    dic = Config(tmp_path / 'net/mine.yml').dic
    assert (dic['iters'], dic['batch_size'], dic['model']['type']) == (7, 3, 'BiseNetV1')
    assert dic['optimizer'] == {'type': 'Adam'}


@pytest.mark.parametrize('transforms', [
    [{'type': 'Resize', 'target_size': [96, 64]}], [{'type': 'Padding', 'target_size': [160, 96]}],
    [{'type': 'ResizeByShort', 'short_size': 32}, {'type': 'Padding', 'target_size': [128, 64]}],
    [{'type': 'ResizeByLong', 'long_size': 96}]], ids=str)
def test_scores_of_validation_transforms_are_those_of_the_original_size(transforms, toy, tmp_path):
    """Logits are brought back to the image's size, whose labels count."""
    path = write_config(tmp_path / 'a.yml', toy, {'type': 'ENet'})
    config = yaml.safe_load(path.read_text())
    config['val_dataset']['transforms'] = [*transforms, NORMALIZE]
    path.write_text(yaml.safe_dump(config))
    assert run(train.main, '--config', path, '--save_dir', tmp_path / 'run', '--iters', 1) is None
    weights = tmp_path / 'run/iter_1/model.pdparams'
    assert run(val.main, '--config', path, '--model_path', weights) is None
    report = json.loads(next(weights.parent.glob('evaluation_*.json')).read_text())
    labels = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
              for file in sorted((toy / 'gtFine/val').rglob('*labelTrainIds.png'))]
    builder = Builder(Config(path, with_pretrained=False))
    model = builder.model
    model.set_state_dict(paddle.load(str(weights)))
    model.eval()
    right = 0
    for index, label in enumerate(labels):
        sample = builder.val_dataset[index]
        ids = paddle.nn.functional.interpolate(restored(model, sample), label.shape, mode='bilinear').argmax(1)[0]
        right += (ids.numpy() == label).sum()
    assert report['accuracy'] == pytest.approx(right / sum((label != 255).sum() for label in labels), abs=1e-4)


@paddle.no_grad()
def restored(model, sample):
    """Logits without the padding of the last transform."""
    logits = model(paddle.to_tensor(sample['img']).unsqueeze(0))[0]
    height, width = next((size for kind, size in reversed(sample['trans_info']) if kind == 'padding'), logits.shape[2:])
    return logits[:, :, :height, :width]
