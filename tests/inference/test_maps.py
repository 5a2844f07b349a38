"""Confidence, entropy and the weights of the scales against their formulas, in every form of the network."""
import math

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from scipy import ndimage

from common.errors import UserError
from inference import backends, maps, memory
from inference.fused_network import FusedNetwork
from inference.predictor import Predictor
from models.hrnet import HRNet
from models.mscale_ocrnet import MscaleOCRNet
from tests import fill, rounding
from tests.built import Built
from tests.rounding import EPS

K, SIZE = 7, (75, 106)
FORMS = ['the model', 'plain', *backends.installed()]


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Weights of a small network whose attention varies strongly over the image."""
    model = network()
    fill.weights(model)
    *_, last = model.scale_attn.layers()
    last.weight.set_value(6 * last.weight)
    path = tmp_path_factory.mktemp('weights') / 'model.pdparams'
    paddle.save(model.state_dict(), str(path))
    return str(path)


def network(scales=(0.5, 1.0, 2.0)):
    backbone = HRNet(8, modules=(1, 1, 1), blocks=1, stem=(1, 16))
    return MscaleOCRNet(K, backbone, [0], scales, ocr_mid_channels=24, ocr_key_channels=12, attn_channels=8,
                        dropout=0.0)


def plain_model(weights, scales=(0.5, 1.0, 2.0)):
    model = network(scales)
    model.set_state_dict(paddle.load(weights))
    model.eval()
    return model


def of_form(form, weights, monkeypatch, scales=(0.5, 1.0, 2.0), strip=300):
    """The network in one of FORMS: as trained, for GPUs, or of a backend, in strips of rows."""
    if form == 'the model':
        return plain_model(weights, scales)
    if form == 'plain':
        for name, value in (('on_gpu', True), ('used', 0), ('available', math.inf)):
            monkeypatch.setattr(memory, name, lambda device, value=value: value)
        return backends.fuse_for_inference(plain_model(weights, scales))
    found = backends.create(Built(network(scales)), weights, form)
    found.executor.strip, found.strips = strip, [strip]
    return found


def image(seed=7, size=SIZE):
    return paddle.to_tensor(fill.image(seed, [1, 3, *size]))


@paddle.no_grad()
def parts(model, x, scales):
    """{scale: (its own logits, its attention)}, float64 (1, K or 1, h, w) at the size of the scaled image."""
    found = {}
    for scale in scales:
        scaled = [int(side * scale) for side in x.shape[2:]]
        resized = F.interpolate(x, scaled, mode='bilinear') if scale != 1 else x
        logits, _, ocr = model.ocrnet(resized)
        found[scale] = [F.interpolate(y, scaled, mode='bilinear').astype('float64')
                        for y in (logits, model.scale_attn(ocr))]
    return found


def sized(y):
    return F.interpolate(y, SIZE, mode='bilinear')


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('scales', [(0.5, 1, 2), (1, 0.25, 2.5, 0.5), (1, 1.5), (1,)], ids=str)
def test_weights_are_the_products_of_the_attentions(weights, monkeypatch, form, scales):
    """Eq. (1) of the paper by hand: a scale has its attention's share of what the scales below it leave."""
    x = image()
    model = plain_model(weights, scales)
    own = parts(model, x, scales)
    *others, highest = sorted(scales)
    expected, left = {}, paddle.ones([1, 1, *SIZE], 'float64')
    for scale in others:
        attention = sized(own[scale][1])
        assert attention.max() - attention.min() > 0.1, 'the attention must say something'
        expected[scale], left = left * attention, left * (1 - attention)
    expected[highest] = left
    found = Predictor(of_form(form, weights, monkeypatch, scales)).maps({'img': x[0].numpy()}).attention
    assert list(found) == sorted(scales)
    condition = rounding.sensitivity(rounding.of_network(
        lambda x: paddle.concat([sized(attention) for _, attention in parts(model, x, scales).values()])), x.numpy())
    for scale, weight in found.items():
        assert weight.dtype == np.float32 and weight.shape == SIZE
        # relative to the largest weight possible, 1; a product of n attentions has n times their deviation
        off = np.abs(weight - expected[scale][0, 0].numpy()).max()
        assert off <= rounding.allowed(len(scales) * condition, floor=rounding.FLOOR + rounding.of_positions(*SIZE))
    # Of each of the n - 1 fusions, and of as many interpolations, three roundings.
    np.testing.assert_allclose(sum(found.values()), 1, atol=6 * len(scales) * EPS)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('scales', [(1, 2), (1, 1.5), (0.5, 1, 2), (0.5, 1)], ids=str)
def test_weighted_logits_add_up_to_the_fused_ones(weights, monkeypatch, form, scales):
    """Exactly where no product is enlarged. Below 1.0 the network enlarges attention * logits: the interpolation of a
    product and the product of interpolations differ by a covariance of the neighbours, by Gruess's inequality at most
    a quarter of the range of the one times the range of the other."""
    x = image()
    model = plain_model(weights, scales)
    predict = Predictor(of_form(form, weights, monkeypatch, scales))
    fused, own = predict.logits(x).numpy()[0], parts(model, x, scales)
    weight = predict.maps({'img': x[0].numpy()}).attention
    found = sum(weight[scale] * sized(own[scale][0])[0].numpy() for scale in scales)
    bound = np.zeros_like(found)
    if 0.5 in scales:
        logits, attention = (y[0].numpy() for y in own[0.5])
        # rows and columns of the half scale's neighbours that an interpolation may read, and one more
        rows, cols = (np.minimum((np.arange(n) * m / n).astype(int), m - 1)
                      for n, m in zip(SIZE, logits.shape[1:]))
        ranges = [(ndimage.maximum_filter(y, (1, 3, 3)) - ndimage.minimum_filter(y, (1, 3, 3)))[:, rows][:, :, cols]
                  for y in (logits, attention)]
        bound = ranges[0] * ranges[1] / 4
    condition = rounding.sensitivity(rounding.of_network(lambda x: model.hierarchy(x, scales)), x.numpy(), trials=2)
    floor = rounding.FLOOR + rounding.of_positions(*SIZE)
    assert (np.abs(found - fused) <= bound + rounding.allowed(condition, floor=floor) * np.abs(fused).max()).all()
    equal = sum(sized(own[scale][0])[0].numpy() for scale in scales) / len(scales)
    assert (np.abs(equal - fused) > bound + 0.01 * np.abs(fused).max()).mean() > 0.3, 'other weights must not fit'


@pytest.mark.parametrize('form', FORMS)
def test_asking_for_weights_does_not_change_the_logits(weights, monkeypatch, form):
    run = of_form(form, weights, monkeypatch, (0.5, 1, 1.5, 2))
    with paddle.no_grad():
        plain, marked = run(image())[0], run.with_scale_weights()(image())[0]
    assert marked.shape == [1, K + 4, *SIZE]
    np.testing.assert_array_equal(marked[:, :K].numpy(), plain.numpy())
    with paddle.no_grad():
        np.testing.assert_array_equal(run(image())[0].numpy(), plain.numpy())


def test_a_prediction_without_maps_asks_for_none(weights):
    class Network:
        n_scales = (1.0,)

        def __call__(self, x):
            assert paddle.is_grad_enabled() is False
            return [x]

        def with_scale_weights(self):
            raise AssertionError('asked for weights')

    predict = Predictor(Network())
    assert predict({'img': np.zeros([3, 4, 5], np.float32)}).shape == (4, 5)
    with pytest.raises(AssertionError, match='asked for weights'):
        predict.maps({'img': np.zeros([3, 4, 5], np.float32)})


def test_flips_windows_and_scales_average_the_weights(weights):
    """As Predictor averages logits; here each part by hand."""
    run = backends.fuse_for_inference(plain_model(weights))
    x, size, parts = image(3, (96, 128)), [96, 128], []
    predict = Predictor(run, scales=[1.0, 1.5], flip_horizontal=True, crop_size=(96, 96), stride=(96, 32))
    marked = run.with_scale_weights()
    for scale in (1.0, 1.5):
        scaled = F.interpolate(x, [int(side * scale) for side in size], mode='bilinear') if scale != 1 else x
        for flip in (False, True):
            given = scaled.flip([3]) if flip else scaled
            total, count = np.zeros([K + 3, *given.shape[2:]]), np.zeros(given.shape[2:])
            for top in sorted({0, given.shape[2] - 96}):
                for left in sorted({*range(0, given.shape[3] - 96, 32), given.shape[3] - 96}):
                    rows, cols = slice(top, top + 96), slice(left, left + 96)
                    total[:, rows, cols] += marked(given[:, :, rows, cols])[0].numpy()[0]
                    count[rows, cols] += 1
            mean = paddle.to_tensor((total / count)[None].astype('float32'))
            mean = mean.flip([3]) if flip else mean
            parts.append(F.interpolate(mean, size, mode='bilinear').numpy()[0])
    expected = np.mean(parts, axis=0)
    sample = {'img': x[0].numpy(), 'trans_info': [('padding', (90, 120))]}
    found = predict.maps(sample)
    for scale, weight in zip((0.5, 1.0, 2.0), expected[K:]):
        np.testing.assert_allclose(found.attention[scale], weight[:90, :120], atol=1e-6)
    assert (found.classes == predict(sample)).all() and found.classes.shape == (90, 120)
    np.testing.assert_allclose(sum(found.attention.values()), 1, atol=1e-6)


def test_scales_that_occur_twice_share_a_map(weights):
    predict = Predictor(FusedNetwork(backends.fuse_for_inference(plain_model(weights)).executor, [1.0, 2.0, 1.0],
                                     memory.footprint(plain_model(weights))))
    found = predict.maps({'img': image()[0].numpy()}).attention
    assert list(found) == [1.0, 2.0]
    np.testing.assert_allclose(sum(found.values()), 1, atol=20 * EPS)


class Logits:
    """A network without scales, with these logits whatever it sees."""

    def __init__(self, logits):
        self.logits = paddle.to_tensor(np.asarray(logits, np.float32))

    def __call__(self, x):
        return [self.logits]


def test_confidence_and_entropy_are_those_of_the_softmax(monkeypatch):
    logits = 4 * np.random.default_rng(0).standard_normal([1, K, 45, 71]).astype(np.float32)
    logits[0, :, 0, 0] = 0  # a uniform guess
    logits[0, :, 0, 1] = [1000, *[-1000] * (K - 1)]  # exp() of these is beyond float32
    logits[0, :, 0, 2] = [50, 50, *[0] * (K - 2)]
    found = Predictor(Logits(logits)).maps({'img': np.zeros([3, 45, 71], np.float32)})
    exact = logits[0].astype(np.float64)
    share = np.exp(exact - exact.max(0))
    share /= share.sum(0)
    entropy = -(share * np.log(np.maximum(share, 1e-300))).sum(0) / np.log(K)
    np.testing.assert_array_equal(found.classes, exact.argmax(0))
    np.testing.assert_allclose(found.confidence, share.max(0), rtol=rounding.of_sum(K) + EPS * 32)  # |x| < 32 in exp
    np.testing.assert_allclose(found.entropy, entropy, atol=rounding.of_sum(K) + EPS * 32)
    assert found.confidence.dtype == found.entropy.dtype == np.float32 and found.classes.dtype == np.uint8
    assert found.attention == {}
    # Paddle's softmax takes exp(-64) for what is smaller
    assert found.entropy[0, 0] == pytest.approx(1) and found.entropy[0, 1] < 1e-20 and found.confidence[0, 1] == 1
    assert found.entropy.min() >= 0 and found.entropy.max() <= 1

    monkeypatch.setattr(maps, 'STRIP', 1)  # 16 rows at a time
    again = Predictor(Logits(logits)).maps({'img': np.zeros([3, 45, 71], np.float32)})
    for one, other in zip(found[:3], again[:3]):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(  # as the whole array gives it
        found.confidence, F.softmax(paddle.to_tensor(logits), axis=1).max(axis=1)[0].numpy())


def test_one_class_is_certain():
    found = Predictor(Logits(np.ones([1, 1, 4, 5]))).maps({'img': np.zeros([3, 4, 5], np.float32)})
    assert (found.confidence == 1).all() and (found.entropy == 0).all() and (found.classes == 0).all()


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite(bad):
    logits = np.zeros([1, 2, 4, 5])
    logits[0, 1, 3, 4] = bad
    with pytest.raises(UserError, match='expected finite logits, found NaN or infinity; check --model_path'):
        Predictor(Logits(logits)).maps({'img': np.zeros([3, 4, 5], np.float32)})
