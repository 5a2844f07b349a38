"""The network against values measured on the published implementation, and against the paper's formula."""
import json
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from models import hrnet
from models.mscale_ocrnet import MscaleOCRNet
from tests import fill

REFERENCE = Path(__file__).parents[1] / 'reference'


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


def relative_error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize('name', ['HRNet_W18_NV_Small_V1', 'HRNet_W48_NV'])
def test_state_dict_is_the_published_one(name):
    expected = [(e['name'], e['shape']) for e in json.loads((REFERENCE / f'state_dict_{name}.json').read_text())]
    found = [(key, list(value.shape)) for key, value in build(getattr(hrnet, name)).state_dict().items()]
    assert found == expected


@pytest.mark.parametrize('key, scales', [('eval_s1', [1.0]), ('eval_s3', [0.5, 1.0, 2.0]),
                                         ('eval_s5', [2.5, 0.5, 1.5, 2.0, 1.0])])
def test_evaluation_equals_the_published_model(filled, reference, key, scales):
    filled.n_scales = scales
    filled.eval()
    with paddle.no_grad():
        (logits,) = filled(paddle.to_tensor(fill.image(7, [1, 3, 64, 128])))
    assert logits.shape == [1, 19, 64, 128]
    assert relative_error(logits.numpy()[:, :, ::4, ::4], reference[key]) < 1e-5


def test_training_equals_the_published_model(filled, reference):
    filled.train()
    outputs = filled(paddle.to_tensor(fill.image(8, [2, 3, 64, 128])))
    assert [output.shape for output in outputs] == [[2, 19, 64, 128]] * 4
    for i, output in enumerate(outputs):
        assert relative_error(output.numpy()[:, :, ::4, ::4], reference[f'train_{i}']) < 1e-4
    state = filled.state_dict()
    statistics = [key for key in reference.files if key.startswith('after_train:')]
    assert len(statistics) == 3
    for key in statistics:
        assert relative_error(state[key.split(':')[1]].numpy(), reference[key]) < 1e-5


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
    assert relative_error(found.numpy(), expected.numpy()) < 1e-5


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
