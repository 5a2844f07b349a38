"""Strict loading: everything fits or nothing is loaded."""
import logging

import numpy as np
import paddle
import pytest

from models.hrnet import HRNet
from models.mscale_ocrnet import MscaleOCRNet
from models.weights import load_weights


def build(num_classes=3, **kwargs):
    backbone = HRNet(2, modules=(1, 1, 1), blocks=1, stem=(1, 4))
    return MscaleOCRNet(num_classes, backbone, [0], ocr_mid_channels=8, ocr_key_channels=4, attn_channels=4, **kwargs)


def state_of(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


def saved(path, state):
    paddle.save({name: paddle.to_tensor(value) for name, value in state.items()}, str(path))
    return str(path)


def test_all_entries_arrive(tmp_path):
    source, target = build(), build()
    path = saved(tmp_path / 'w.pdparams', state_of(source))
    assert any((a != b).any() for a, b in zip(state_of(source).values(), state_of(target).values()))
    load_weights(target, path)
    for name, value in state_of(target).items():
        np.testing.assert_array_equal(value, source.state_dict()[name].numpy())


def test_missing_unexpected_and_reshaped_are_listed_and_nothing_is_loaded(tmp_path):
    model = build()
    state = state_of(build())
    del state['ocrnet.head.cls_head.bias']
    state['extra.weight'] = np.zeros(3, 'float32')
    state['scale_attn.atten_head.2.weight'] = np.zeros([2, 4, 1, 1], 'float32')
    before = state_of(model)
    with pytest.raises(ValueError) as error:
        load_weights(model, saved(tmp_path / 'w.pdparams', state))
    text = str(error.value)
    assert text.startswith(str(tmp_path / 'w.pdparams')) and '3 do not fit' in text
    assert 'missing: ocrnet.head.cls_head.bias' in text and 'unexpected: extra.weight' in text
    assert 'shape: scale_attn.atten_head.2.weight expected [1, 4, 1, 1], found [2, 4, 1, 1]' in text
    assert all((before[name] == value).all() for name, value in state_of(model).items())


def test_only_the_first_ten_are_listed(tmp_path):
    with pytest.raises(ValueError, match='and \\d+ more') as error:
        load_weights(build(), saved(tmp_path / 'w.pdparams', {'a': np.zeros(1, 'float32')}))
    assert len(str(error.value).splitlines()) == 12


@pytest.mark.parametrize('content, text', [(b'', 'does not load'), (b'not weights', 'does not load'),
                                           (None, 'found nothing')])
def test_files_that_are_no_weights(tmp_path, content, text):
    path = tmp_path / 'w.pdparams'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, OSError), match=text):
        load_weights(build(), str(path))


def test_an_optimizer_state_is_not_mistaken_for_weights(tmp_path):
    paddle.save({'LR_Scheduler': {'last_epoch': 3}}, str(tmp_path / 'm.pdopt'))
    with pytest.raises(ValueError, match='is it an optimizer state'):
        load_weights(build(), str(tmp_path / 'm.pdopt'))


@pytest.mark.parametrize('prefix', ['ocrnet.', ''])
def test_pretrained_without_attention_is_named_in_the_log(tmp_path, caplog, prefix):
    state = {name.replace('ocrnet.', prefix, 1): value for name, value in state_of(build()).items()
             if name.startswith('ocrnet.')}
    path = saved(tmp_path / 'pre.pdparams', state)
    with caplog.at_level(logging.INFO):
        model = build(pretrained=path)
    assert f'{path} has no scale attention' in caplog.text
    for name, value in state.items():
        np.testing.assert_array_equal(model.state_dict()['ocrnet.' + name.removeprefix('ocrnet.')].numpy(), value)


def test_another_number_of_classes_needs_the_flag(tmp_path):
    path = saved(tmp_path / 'pre.pdparams', state_of(build(num_classes=7)))
    with pytest.raises(ValueError, match='model.fresh_head to True'):
        build(num_classes=3, pretrained=path)
    model = build(num_classes=3, pretrained=path, fresh_head=True)
    assert model.ocrnet.head.cls_head.weight.shape[0] == 3
    source = paddle.load(path)
    name = 'ocrnet.head.conv3x3_ocr._conv.weight'
    np.testing.assert_array_equal(model.state_dict()[name].numpy(), source[name].numpy())


def test_fresh_head_still_refuses_everything_else(tmp_path):
    state = state_of(build(num_classes=7))
    del state['ocrnet.head.conv3x3_ocr._conv.bias']
    with pytest.raises(ValueError, match='missing: ocrnet.head.conv3x3_ocr._conv.bias'):
        build(num_classes=3, pretrained=saved(tmp_path / 'pre.pdparams', state), fresh_head=True)
