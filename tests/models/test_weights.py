"""Strict loading: everything fits or nothing is loaded."""
import copy
import logging

import numpy as np
import paddle
import pytest

from common.errors import UserError
from models.hrnet import HRNet, HRNet_W18_NV_Small_V1
from models.mscale_ocrnet import MscaleOCRNet
from models.weights import load_weights
from tests import fill, rounding
from tests.built import Built
from tests.models import crafted


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


@pytest.fixture(scope='module')
def paddlesegs_ocrnet():
    """PaddleSeg's own OCRNet on its own HRNet of the size of HRNet_W18_NV_Small_V1."""
    from paddleseg.models import OCRNet
    from paddleseg.models.backbones import HRNet_W18_Small_V1

    paddle.seed(5)
    return OCRNet(19, HRNet_W18_Small_V1(), [0])


def test_paddlesegs_ocrnet_starts_the_recipe(paddlesegs_ocrnet, tmp_path, caplog):
    """The recipe's pretraining: every entry of PaddleSeg's state dict has its place, the attention starts anew."""
    path = saved(tmp_path / 'pretrained.pdparams', state_of(paddlesegs_ocrnet))
    with caplog.at_level(logging.INFO):
        model = MscaleOCRNet(19, HRNet_W18_NV_Small_V1(), [0], pretrained=path)
    assert 'has no scale attention: it starts from random weights' in caplog.text
    mine = state_of(model)
    for name, value in state_of(paddlesegs_ocrnet).items():
        if not name.endswith('_conv.bias') or f'ocrnet.{name}' in mine:
            np.testing.assert_array_equal(mine.pop(f'ocrnet.{name}'), value, err_msg=name)
    assert mine and all(name.startswith('scale_attn.') for name in mine)


def test_biases_before_a_batch_norm_change_nothing(paddlesegs_ocrnet, tmp_path, caplog):
    """PaddleSeg 2.8's head has seven that the network lacks; with them in the means, its head gives the same logits."""
    rng = np.random.default_rng(2)
    paddlesegs_ocrnet = copy.deepcopy(paddlesegs_ocrnet)
    source = paddlesegs_ocrnet.head
    for name, value in source.state_dict().items():
        if name.endswith(('_conv.bias', '_mean')):
            value.set_value(rng.normal(0, 0.2, value.shape).astype('float32'))
    path = saved(tmp_path / 'pretrained.pdparams', state_of(paddlesegs_ocrnet))
    with caplog.at_level(logging.INFO):
        model = MscaleOCRNet(19, HRNet_W18_NV_Small_V1(), [0], pretrained=path)
    assert '7 biases of convolutions before a batch norm, as PaddleSeg 2.8 has them' in caplog.text
    source.eval(), model.eval()
    features = fill.image(4, [1, model.ocrnet.backbone.feat_channels[0], 16, 24])
    head = rounding.of_network(lambda x: model.ocrnet.head([x])[0])
    found = head(features)
    rounding.assert_close(found, source([paddle.to_tensor(features)])[0].numpy(),
                          rounding.sensitivity(head, features, found))


def test_paddlesegs_ocrnet_itself_is_evaluated_with_its_weights(paddlesegs_ocrnet, tmp_path):
    from paddleseg.models import OCRNet
    from paddleseg.models.backbones import HRNet_W18_Small_V1

    from inference import backends

    path = saved(tmp_path / 'model.pdparams', state_of(paddlesegs_ocrnet))
    network = backends.create(Built(OCRNet(19, HRNet_W18_Small_V1(), [0])), path)
    x = paddle.to_tensor(fill.image(1, [1, 3, 64, 96]))
    paddlesegs_ocrnet.eval()
    np.testing.assert_array_equal(network(x)[0].numpy(), paddlesegs_ocrnet(x)[0].numpy())
    with pytest.raises(UserError, match=r'expected the \d+ entries of MscaleOCRNet.*do not fit'):
        load_weights(MscaleOCRNet(19, HRNet_W18_NV_Small_V1(), [0]), path)


def test_names_that_are_numbers_are_refused(tmp_path):
    path = tmp_path / 'w.pdparams'
    path.write_bytes(crafted.dumps({0: np.zeros(3, 'float32')}))
    with pytest.raises(UserError, match='expected a state dict of arrays'):
        load_weights(build(), path)
