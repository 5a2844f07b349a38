"""The network against values measured on the published implementation, and against the paper's formula."""
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from models import hrnet, layers
from models.mscale_ocrnet import MscaleOCRNet
from tests import fill, rounding

REFERENCE = Path(__file__).parents[1] / 'reference'
STATISTICS = ['scale_attn.atten_head.0._batch_norm._mean', 'scale_attn.atten_head.1._batch_norm._variance',
              'ocrnet.backbone.conv_layer1_1._batch_norm._mean']


def build(backbone=hrnet.HRNet_W18_NV_Small_V1, **kwargs):
    return MscaleOCRNet(num_classes=19, backbone=backbone(), backbone_indices=[0], **kwargs)


@pytest.fixture(scope='module')
def reference():
    return np.load(REFERENCE / 'mscale_ocrnet_w18_small_v1.npz')


@pytest.fixture
def filled():
    model = build(dropout=0.0)
    fill.weights(model)
    return model


@pytest.mark.parametrize('name', ['HRNet_W18_NV_Small_V1', 'HRNet_W48_NV'])
def test_state_dict_is_the_published_one(name):
    expected = [(e['name'], e['shape']) for e in json.loads((REFERENCE / f'state_dict_{name}.json').read_text())]
    found = [(key, list(value.shape)) for key, value in build(getattr(hrnet, name)).state_dict().items()]
    assert found == expected


def evaluated(model, x, scales):
    """Logits of float32 images, in the model's dtype, at every fourth pixel as the reference has them."""
    model.eval()
    with paddle.no_grad():
        return model.hierarchy(paddle.to_tensor(x.astype(dtype_of(model))), scales).numpy()[:, :, ::4, ::4]


def trained(model, x):
    """{key of the reference: array} after one forward pass in training mode, from the filled statistics on."""
    fill.weights(model)
    model.train()
    with paddle.no_grad():
        outputs = model(paddle.to_tensor(x.astype(dtype_of(model))))
    assert [output.shape for output in outputs] == [[2, 19, 64, 128]] * 4
    state = model.state_dict()
    return {**{f'train_{i}': output.numpy()[:, :, ::4, ::4] for i, output in enumerate(outputs)},
            **{f'after_train:{name}': state[name].numpy() for name in STATISTICS}}


def dtype_of(model):
    return str(model.parameters()[0].dtype).split('.')[-1]


@pytest.mark.parametrize('key, scales', [('eval_s1', [1.0]), ('eval_s3', [0.5, 1.0, 2.0]),
                                         ('eval_s5', [2.5, 0.5, 1.5, 2.0, 1.0])])
def test_evaluation_equals_the_published_model(filled, reference, key, scales):
    x = fill.image(7, [1, 3, 64, 128])
    filled.n_scales = scales
    filled.eval()
    with paddle.no_grad():
        (logits,) = filled(paddle.to_tensor(x))
    assert logits.shape == [1, 19, 64, 128]
    with rounding.in_float64(filled):
        exact = evaluated(filled, x, scales)
        # One trial: with fixed statistics the deviation of one draw is that of the next.
        condition = rounding.sensitivity(lambda x: evaluated(filled, x, scales), x, exact, trials=1)
    rounding.assert_close(exact, reference[key], condition, rounding.ONE_SIDE)
    rounding.assert_close(logits.numpy()[:, :, ::4, ::4], reference[key], condition, rounding.BOTH_SIDES)


@pytest.fixture(scope='module')
def training(reference):
    """The training case: image, results in float64 and their condition, by key of the reference.

    Batch norm makes it ill-conditioned: at 0.5x the last branch of HRNet has 1 x 2 pixels, so that 4 values make a
    variance. The last bit of the input moves the logits by 2e-5 even if everything else is exact.
    """
    model, x = build(dropout=0.0), fill.image(8, [2, 3, 64, 128])
    with rounding.in_float64(model):
        exact = trained(model, x)
        return SimpleNamespace(x=x, exact=exact,
                               condition=rounding.sensitivity(lambda x: trained(model, x), x, exact))


def test_training_equals_the_published_model(filled, reference, training):
    expected = {key: reference[key] for key in training.exact}
    assert sorted(expected) == sorted(key for key in reference.files if 'train' in key) and len(expected) == 7
    rounding.assert_close(training.exact, expected, training.condition, rounding.ONE_SIDE)
    rounding.assert_close(trained(filled, training.x), expected, training.condition, rounding.BOTH_SIDES)


def wrong_momentum(model, monkeypatch):
    """0.1 is PyTorch's way to write what Paddle writes 0.9."""
    for layer in model.sublayers():
        if hasattr(layer, '_momentum'):
            layer._momentum = 0.1


def wrong_corners(model, monkeypatch):
    interpolate = F.interpolate
    monkeypatch.setattr(F, 'interpolate', lambda *args, **kwargs: interpolate(*args, **{**kwargs,
                                                                                       'align_corners': True}))


def wrong_attention(model, monkeypatch):
    """The weights of 0.5x come from the attention of 1.0x; everything else, running statistics too, is right."""
    def two_scales(x):
        size = x.shape[2:]
        low, low_aux, _ = model._one_scale(x, 0.5)
        high, high_aux, ocr = model.ocrnet(x)
        attention = layers.resize(model.scale_attn(ocr), low.shape[2:])
        high, high_aux, rest = (layers.resize(y, size) for y in (high, high_aux, 1 - attention))
        return [layers.resize(attention * low, size) + rest * high,
                layers.resize(attention * low_aux, size) + rest * high_aux, layers.resize(low, size), high]

    monkeypatch.setattr(model, 'two_scales', two_scales)


WRONG = {wrong_momentum: ('after_train:',), wrong_corners: ('train_', 'after_train:'),
         wrong_attention: ('train_0', 'train_1')}  # and what of the reference each of them touches


@pytest.mark.parametrize('mistake', WRONG, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_no_rounding(filled, reference, training, monkeypatch, mistake):
    """Every result that a mistake touches is off by over 100 times what the test above allows; the rest holds."""
    mistake(filled, monkeypatch)
    found = trained(filled, training.x)
    for key, value in found.items():
        allowed = rounding.allowed(training.condition[key], rounding.BOTH_SIDES)
        margin = rounding.error(value, reference[key]) / allowed
        print(f'{mistake.__name__}, {key}: {margin:.3g} times the {allowed:.2g} allowed')
        assert margin > 100 if key.startswith(WRONG[mistake]) else margin <= 1, f'{key}: {margin:.3g}'
    with pytest.raises(AssertionError, match='expected a relative error of at most'):
        rounding.assert_close(found, {key: reference[key] for key in found}, training.condition, rounding.BOTH_SIDES)


def test_fusion_at_an_odd_size_is_the_papers_formula(filled):
    """eq. (1) written out: shrink the result of the higher scale, weigh by the lower scale's attention."""
    filled.eval()
    x = paddle.to_tensor(fill.image(5, [2, 3, 67, 101]))

    def at(scale):
        size = [int(67 * scale), int(101 * scale)]
        scaled = F.interpolate(x, size, mode='bilinear')
        logits, _, features = filled.ocrnet(scaled)
        return [F.interpolate(y, size, mode='bilinear') for y in (logits, filled.scale_attn(features))]

    with paddle.no_grad():
        (high, _), (middle, attention), (low, low_attention) = at(1.5), at(1.0), at(0.5)
        joint = attention * middle + (1 - attention) * F.interpolate(high, [67, 101], mode='bilinear')
        expected = F.interpolate(low_attention * low, [67, 101], mode='bilinear') + \
            (1 - F.interpolate(low_attention, [67, 101], mode='bilinear')) * joint
        found = filled.hierarchy(x, [0.5, 1.0, 1.5])
    assert found.shape == [2, 19, 67, 101]
    # The same operators on the same numbers, hence the rounding of the last sum at most.
    rounding.assert_close(found.numpy(), expected.numpy(), name='fusion')


@pytest.mark.parametrize('backbone', hrnet.BACKBONES, ids=lambda b: b.__name__)
def test_every_width_has_its_channels_and_sizes(backbone):
    width = int(''.join(c for c in backbone.__name__.split('_')[1] if c.isdigit()))
    if backbone is hrnet.HRNet_W18_NV_Small_V1:
        width = 16
    model = backbone()
    model.eval()
    with paddle.no_grad():
        x = paddle.rand([1, 3, 35, 45])
        (features,) = model(x)
        branches = model.branches(x)
    assert features.shape == [1, 15 * width, 9, 12] and model.feat_channels == [15 * width]
    assert [b.shape[1] for b in branches] == [width, 2 * width, 4 * width, 8 * width]


def test_two_backbone_indices_feed_both_heads():
    class TwoOutputs(paddle.nn.Layer):
        feat_channels = (4, 8)

        def forward(self, x):
            return [F.avg_pool2d(x[:, :1], 4).tile([1, c, 1, 1]) for c in self.feat_channels]

    model = MscaleOCRNet(3, TwoOutputs(), [0, 1], ocr_mid_channels=8, ocr_key_channels=4, attn_channels=4)
    assert model.ocrnet.head.aux_head[0]._conv.weight.shape[1] == 4
    assert model.ocrnet.head.conv3x3_ocr._conv.weight.shape[1] == 8
    model.eval()
    assert model(paddle.rand([1, 3, 32, 32]))[0].shape == [1, 3, 32, 32]


@pytest.mark.parametrize('scales', [[0.5, 2.0], [1.0, 0.0], [1.0, -1]])
def test_scales_without_one_or_not_positive_are_refused(scales):
    with pytest.raises(ValueError, match='model.n_scales: expected positive scales with 1.0 among them'):
        build(n_scales=scales)
