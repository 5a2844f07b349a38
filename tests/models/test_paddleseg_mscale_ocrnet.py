"""PaddleSeg's own MscaleOCRNet beside this repository's: which is meant, its weights, and its logits in our form."""
import json

import numpy as np
import paddle
import paddleseg.models
import pytest
import yaml
from paddleseg.cvlibs import manager
from paddleseg.models.backbones.hrnet import HRNet as PaddleSegHRNet
from paddleseg.models.mscale_ocrnet import MscaleOCRNet as PaddleSegs

import predict
import train
import val
from common import registry
from common.builder import Builder
from common.config import Config
from inference import backends, forms
from models.hrnet import HRNet
from models.mscale_ocrnet import MscaleOCRNet
from models.paddleseg_mscale_ocrnet import PaddleSegMscaleOCRNet, of_config
from models.weight_names import from_paddleseg
from models.weights import load_weights
from tests import fill, rounding
from tests.test_paddleseg_models import run, write_config

PSA = {'type': 'HRNet_W18_Small_V1', 'use_psa': True, 'padding_same': False}
LOSSES = [{'type': 'CrossEntropyLoss'}, {'type': 'MixedLoss', 'losses': [
    {'type': 'RMILoss', 'num_classes': 19}, {'type': 'CrossEntropyLoss'}], 'coef': [1.0, 1.0]},
    {'type': 'CrossEntropyLoss'}, {'type': 'CrossEntropyLoss'}]


def small_backbone(use_psa=True, **options):
    """PaddleSeg's HRNet with one block everywhere."""
    widths = [8, 16, 32, 64]
    return PaddleSegHRNet(
        stage1_num_blocks=[1], stage1_num_channels=[8], stage2_num_blocks=[1] * 2, stage2_num_channels=widths[:2],
        stage3_num_modules=1, stage3_num_blocks=[1] * 3, stage3_num_channels=widths[:3], stage4_num_modules=1,
        stage4_num_blocks=[1] * 4, stage4_num_channels=widths, use_psa=use_psa, **{'padding_same': False, **options})


def filled(kind, mscale=(0.5, 1.0, 2.0), **options):
    model = kind(5, small_backbone(**options), mscale=list(mscale))
    fill.weights(model)
    model.eval()
    return model


@pytest.mark.parametrize('cfg, kind', [
    ({'backbone': {'type': 'HRNet_W48', 'use_psa': True, 'padding_same': False}}, PaddleSegMscaleOCRNet),  # published
    ({'backbone': {'type': 'HRNet_W48'}, 'backbone_indices': [0], 'mscale': [1.0]}, PaddleSegMscaleOCRNet),
    ({'backbone': {'type': 'HRNet_W48'}, 'backbone_indices': [0]}, MscaleOCRNet),
    ({'backbone': {'type': 'HRNet_W48_NV'}, 'backbone_indices': [0], 'n_scales': [0.5, 1.0, 2.0]}, MscaleOCRNet),
    ({'backbone': {'type': 'HRNet_W48_NV'}}, MscaleOCRNet), ({'backbone': {'type': 'HRNet', 'width': 8}}, MscaleOCRNet),
    ({'backbone': {'type': 'HRNet_W48'}, 'attn_channels': 8}, MscaleOCRNet),
    ({'backbone': HRNet(8, (1, 1, 1), 1, (1, 8)), 'num_classes': 5}, MscaleOCRNet)])
def test_the_config_tells_which_is_meant(cfg, kind):
    assert of_config({'type': 'MscaleOCRNet', **cfg}) is kind


def test_state_dict_is_that_of_paddlesegs_class():
    ours, theirs = filled(PaddleSegMscaleOCRNet), filled(PaddleSegs)
    shapes = [{name: list(value.shape) for name, value in m.state_dict().items()} for m in (ours, theirs)]
    assert shapes[0] == shapes[1] and list(shapes[0]) == list(shapes[1])
    own = ours.own_form().state_dict()
    assert {name: list(value.shape) for name, value in own.items()} == from_paddleseg(shapes[0])


# An odd size at 0.5: PaddleSeg places pixels by the scale; (69, 101) at 0.75 is 51 x 75.
@pytest.mark.parametrize('mscale, size, use_psa', [
    ((0.5, 1.0, 2.0), (64, 96), True), ((0.5, 1.0, 2.0), (67, 99), True), ((1.0, 0.75), (69, 101), True),
    ((1.0,), (64, 64), False), ((), (65, 97), True)])
@pytest.mark.parametrize('backend,form', [('paddle', 'strips'), *((backend, form) for backend in (
    'openvino', 'onnxruntime') for form in ('strips', 'plain'))])
def test_logits_are_those_of_paddlesegs_forward_in_every_backend(mscale, size, use_psa, backend, form, tmp_path,
                                                                 monkeypatch):
    if backend not in backends.installed():
        pytest.skip('not installed')
    monkeypatch.setenv('MSCALE_CACHE', str(tmp_path / 'cache'))
    theirs = filled(PaddleSegs, mscale, use_psa=use_psa)
    paddle.save(theirs.state_dict(), str(tmp_path / 'model.pdparams'))

    class Unfilled:
        model = PaddleSegMscaleOCRNet(5, small_backbone(use_psa=use_psa), mscale=list(mscale))

        @staticmethod
        def release_model():
            pass

    monkeypatch.setattr(forms, 'choose', lambda *_: form)
    network = backends.create(Unfilled, tmp_path / 'model.pdparams', backend)
    if form == 'strips':
        network.executor.strip = 300
    x = fill.image(3, [1, 3, *size])
    plain = rounding.of_network(lambda x: theirs(x)[0])
    want, found = plain(x), network(paddle.to_tensor(x))[0].numpy()
    rounding.assert_close(found, want, rounding.sensitivity(plain, x, trials=2))
    assert (found.argmax(1) == want.argmax(1)).mean() > 0.999 and len(np.unique(want.argmax(1))) > 1


def test_evaluation_during_training_runs_the_same_form():
    model = filled(PaddleSegMscaleOCRNet)
    assert type(backends.fuse_for_inference(model)).__name__ == 'FusedNetwork'
    same = filled(PaddleSegMscaleOCRNet, padding_same=True)  # its padding depends on the size of the image
    assert backends.fuse_for_inference(same) is same


def test_its_weights_load_into_our_class_without_psa(tmp_path):
    theirs = filled(PaddleSegs, use_psa=False)
    paddle.save(theirs.state_dict(), str(tmp_path / 'model.pdparams'))
    ours = MscaleOCRNet(5, HRNet(8, (1, 1, 1), 1, (1, 8)), [0])
    load_weights(ours, tmp_path / 'model.pdparams')
    assert np.array_equal(ours.scale_attn.atten_head[2].weight.numpy(), theirs.scale_attn.conv2.weight.numpy())


def test_config_trains_evaluates_and_predicts(toy, tmp_path, capsys):
    config = write_config(tmp_path / 'model.yml', toy, {'type': 'MscaleOCRNet', 'backbone': PSA})
    content = yaml.safe_load(config.read_text())
    content['loss'] = {'types': LOSSES, 'coef': [0.4, 1.0, 0.05, 0.05]}
    config.write_text(yaml.safe_dump(content))
    assert type(Builder(Config(config)).model) is PaddleSegMscaleOCRNet
    status = run(train.main, '--config', config, '--save_dir', tmp_path / 'run', '--do_eval', '--save_interval', 2)
    assert status is None, capsys.readouterr().err
    weights = tmp_path / 'run/iter_2/model.pdparams'
    assert run(val.main, '--config', config, '--model_path', weights, '--aug_eval', '--flip_horizontal') is None
    report = json.loads(next(weights.parent.glob('evaluation_*.json')).read_text())
    assert len(report['images']) == 3
    image = next((toy / 'leftImg8bit/val').rglob('*.png'))
    assert run(predict.main, '--config', config, '--model_path', weights, '--image_path', image, '--save_dir',
               tmp_path / 'pictures', '--save_attention') is None


def test_scales_without_one_are_refused(toy, tmp_path, capsys):
    config = write_config(tmp_path / 'model.yml', toy, {'type': 'MscaleOCRNet', 'backbone': PSA, 'mscale': [0.5, 2.0]})
    assert run(train.main, '--config', config, '--save_dir', tmp_path / 'run') == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert 'found MscaleOCRNet: its mscale must be positive scales with 1.0 among them, and is [0.5, 2.0]' in line


def test_registry_builds_the_one_that_is_meant():
    registry.register()
    build = manager.MODELS['MscaleOCRNet']
    assert type(build(num_classes=5, backbone=small_backbone())) is PaddleSegMscaleOCRNet
    assert type(build(num_classes=5, backbone=HRNet(8, (1, 1, 1), 1, (1, 8)), backbone_indices=[0])) is MscaleOCRNet
    assert paddleseg.models.MscaleOCRNet is PaddleSegs  # PaddleSeg's module is not touched
