"""The rearranged network: every step against the plain formula, then the whole against MscaleOCRNet."""
import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from common.errors import UserError
from inference import fused, fused_network, memory
from inference.backends import fuse_for_inference
from inference.backends.paddle_backend import PaddleExecutor
from inference.converted import write_parts
from inference.fused_network import FusedNetwork
from inference.paddle_operations import PaddleOps
from inference.row_strips import bilinear_rows, split_rows
from models import layers
from models.hrnet import HRNet
from models.layers import ConvBN
from models.mscale_ocrnet import MscaleOCRNet
from tests import fill, rounding
from tests.rounding import of_network, sensitivity

K = 7


@pytest.fixture(scope='module')
def model():
    """A small network with weights that keep activations near 1, in evaluation mode."""
    backbone = HRNet(8, modules=(1, 1, 1), blocks=1, stem=(1, 16))
    model = MscaleOCRNet(K, backbone, [0], ocr_mid_channels=24, ocr_key_channels=12, attn_channels=8, dropout=0.0)
    fill.weights(model)
    model.eval()
    return model


@pytest.fixture(scope='module')
def executor(model):
    return PaddleExecutor(model)


def enlarged(x, size):
    return F.interpolate(x, size, mode='bilinear')


def close(found, expected, condition=0.0, floor=rounding.FLOOR):
    """Equal up to rounding, see tests/rounding.py: the same sums in another order, both of them in float32."""
    rounding.assert_close(np.asarray(found), np.asarray(expected), condition, rounding.SPREAD, floor)


def test_batch_norm_folds_into_the_convolution():
    layer = ConvBN(5, 4, 3, bias=True, relu=False)
    fill.weights(layer)
    layer.eval()
    x = fill.image(1, [1, 5, 20, 24])
    weight, bias = (paddle.to_tensor(a) for a in layer.folded())
    close(F.conv2d(paddle.to_tensor(x), weight, bias, padding=1), layer(paddle.to_tensor(x)),
          sensitivity(of_network(layer), x), rounding.of_sum(5 * 9))


@pytest.mark.parametrize('size,out', [(5, 20), (7, 27), (20, 9), (6, 6), (1, 4)])
def test_rows_as_a_matrix(size, out):
    x = fill.image(2, [1, 3, 32, 16])[:, :, :size]
    close(bilinear_rows(size, out) @ x, enlarged(paddle.to_tensor(x), [out, 16]),
          floor=rounding.of_sum(2) + rounding.of_positions(size))


@pytest.mark.parametrize('height,coarse', [(38, (19, 10, 5)), (37, (19, 10, 5)), (64, (32, 16, 8)), (3, (2, 1, 1))])
@pytest.mark.parametrize('rows', [4, 16, 100])
def test_strips_take_the_rows_they_need(height, coarse, rows):
    strips, counts = split_rows(height, coarse, rows)
    assert [s.start for s in strips] == [0, *[s.stop for s in strips[:-1]]] and strips[-1].stop == height
    assert all(s.stop - s.start <= rows for s in strips)
    places = np.cumsum([0, *counts])
    for b, size in enumerate(coarse):
        full = np.pad(bilinear_rows(size, height), [(1, 1), (0, 0)])  # the rows above and below are zero
        for s in strips:
            window = slice(s.low[b], s.low[b] + counts[b])
            assert window.stop <= size and s.low[b] >= 0
            np.testing.assert_array_equal(s.enlarge[:, places[b]:places[b + 1]], full[s.start + 1:s.stop + 1, window])
            shifted = s.enlarge_shifted[:, 3 * places[b]:3 * places[b + 1]]
            for part, dy in zip(np.split(shifted, 3, axis=1), (0, 1, 2)):
                expected = full[s.start + dy:s.stop + dy]
                np.testing.assert_array_equal(part, expected[:, window])
                assert np.delete(expected, range(size)[window], axis=1).sum() == 0


@pytest.mark.parametrize('rows', [3, 8, 100])
@pytest.mark.parametrize('size', [(96, 128), (150, 210)])
def test_head_on_branches_equals_head_on_their_concatenation(model, executor, rows, size):
    """1x1 and 3x3 convolutions per branch, and the softmax over space strip by strip."""
    branches = model.ocrnet.backbone.branches(paddle.to_tensor(fill.image(3, [1, 3, *size])))
    head = model.ocrnet.head

    def plain(finest):
        features = paddle.concat([enlarged(b, finest.shape[2:]) for b in (finest, *branches[1:])], axis=1)
        pixels = head.conv3x3_ocr(features)
        weights = F.softmax(head.aux_head(features).flatten(2), axis=2)
        return pixels, paddle.matmul(weights[0], pixels.flatten(2)[0], transpose_y=True)

    pixels, regions = plain(branches[0])
    conditions = [sensitivity(of_network(lambda x, i=i: plain(x)[i]), branches[0].numpy(), trials=2) for i in (0, 1)]
    finest = np.pad(branches[0].numpy(), [(0, 0), (0, 0), (1, 1), (0, 0)])
    strips, counts = split_rows(branches[0].shape[2], [b.shape[2] for b in branches[1:]], rows)
    found, statistics = zip(*[executor.pixels(
        paddle.to_tensor(finest[:, :, s.start:s.stop + 2]),
        [b[:, :, low:low + n] for b, low, n in zip(branches[1:], s.low, counts)], s.enlarge, s.enlarge_shifted)
        for s in strips])
    floor = rounding.FLOOR + rounding.of_positions(max(branches[1].shape[2:]))
    close(paddle.concat(list(found), axis=2), pixels, conditions[0], floor)
    close(fused_network._regions(*zip(*statistics)), regions, conditions[1], floor)


def test_the_sum_over_strips_survives_large_logits():
    """exp(100) is beyond float32: the maximum of each strip is taken out."""
    rng = np.random.default_rng(0)
    logits, pixels = 100 * rng.standard_normal((3, 40)), rng.standard_normal((5, 40))
    statistics = []
    for part in (slice(0, 8), slice(8, 40)):
        top = logits[:, part].max(1, keepdims=True)
        e = np.exp(logits[:, part] - top)
        statistics.append((top, e.sum(1, keepdims=True), e @ pixels[:, part].T))
    softmax = np.exp(logits - logits.max(1, keepdims=True))
    expected = softmax / softmax.sum(1, keepdims=True) @ pixels.T
    # float64: exp of arguments up to about 500 is off by 500 * 2**-53 = 6e-14, on both sides and in both of the sums
    np.testing.assert_allclose(fused_network._regions(*zip(*statistics)), expected, rtol=1e-12)


def test_object_context_as_a_mix_of_vectors(model, executor):
    rng = np.random.default_rng(0)
    pixels = paddle.to_tensor(fill.image(4, [1, 24, 16, 32]))
    regions = rng.standard_normal([K, 24]).astype('float32')
    head = model.ocrnet.head
    ocr = head.spatial_ocr(pixels, paddle.to_tensor(regions.T.reshape([1, 24, K, 1])))
    key, context = fused.objects(executor.object_weights, regions)
    logits, attention = executor.logits(pixels, key, context, None)
    region_vectors = paddle.to_tensor(regions.T.reshape([1, 24, K, 1]))
    conditions = [sensitivity(of_network(lambda x, last=last: last(head.spatial_ocr(x, region_vectors))),
                              pixels.numpy()) for last in (head.cls_head, model.scale_attn)]
    close(logits, head.cls_head(ocr), conditions[0])
    assert attention is None

    inside = np.ones([1, 1, 20, 1], 'float32')
    inside[:, :, [0, 1, -2, -1]] = 0
    anything = paddle.full([1, 24, 2, 32], 3.0)  # rows outside of the image
    logits, attention = executor.logits(paddle.concat([anything, pixels, anything], axis=2), key, context, inside)
    close(logits, head.cls_head(ocr), conditions[0])
    close(attention, model.scale_attn(ocr), conditions[1])


@pytest.mark.parametrize('tall', [False, True])
@pytest.mark.parametrize('shape,above,size', [((24, 32), (96, 128), (48, 64)), ((19, 27), (75, 105), (50, 70)),
                                              ((10, 12), (40, 48), (40, 48)), ((10, 12), (40, 48), (20, 60))])
def test_enlarging_and_shrinking_without_the_large_image(monkeypatch, shape, above, size, tall):
    monkeypatch.setattr(fused_network, 'CHUNK', 5 * K * above[1])  # five rows at a time
    x = paddle.to_tensor(fill.image(5, [1, K, 32, 32])[:, :, :shape[0], :shape[1]])
    if tall:
        monkeypatch.setattr(fused_network, 'MATRIX', 0)
        monkeypatch.setattr(fused_network, 'TALL', 7)
    close(fused_network.resize_via(x, above, size), enlarged(enlarged(x, above), size),
          # from the enlarged image its positions are so many times larger, and its neighbours so many times closer
          floor=rounding.of_sum(8) + rounding.of_positions(max(shape), max(shape)))


@pytest.mark.parametrize('stride,padding,kernel', [(1, 1, 3), (2, 1, 3), (1, (0, 1), 3), (1, 0, 1)])
def test_convolution_in_strips(monkeypatch, stride, padding, kernel):
    monkeypatch.setattr(layers, 'UNFOLDED', 9 * 4 * 20 * 3)
    x, weight = (paddle.to_tensor(fill.image(6, [n, 4, 32, 32])[:, :, :s, :s]) for n, s in ((1, 20), (5, kernel)))
    close(PaddleOps().conv(x, weight, stride=stride, padding=padding),
          F.conv2d(x, weight, stride=stride, padding=padding), floor=rounding.of_sum(4 * kernel**2))


@pytest.mark.parametrize('strip', [64, 1 << 15])
@pytest.mark.parametrize('scales', [(0.5, 1, 2), (0.5, 1, 1.5, 2, 2.5), (1,), (0.25, 0.5, 1), (1, 2)], ids=str)
def test_the_whole_equals_the_plain_network(model, executor, scales, strip):
    image = fill.image(7, [1, 3, 75, 106])
    x = paddle.to_tensor(image)
    with paddle.no_grad():
        expected = model.hierarchy(x, scales)
    executor.strip = strip
    found = FusedNetwork(executor, scales, memory.footprint(model))(x)[0]
    close(found, expected, sensitivity(of_network(lambda x: model.hierarchy(x, scales)), image, trials=2))
    assert (found.argmax(1) == expected.argmax(1)).astype('float32').mean() > 0.999
    assert len(np.unique(expected.argmax(1))) > 2, 'the comparison must have something to compare'


def test_the_model_itself_is_left_alone(model):
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    fuse_for_inference(model)(paddle.to_tensor(fill.image(7, [1, 3, 64, 64])))
    after = model.state_dict()
    assert list(before) == list(after)
    assert all((before[name] == after[name].numpy()).all() for name in before)


@pytest.mark.parametrize('use', [fuse_for_inference, lambda model: write_parts(model, None)])
def test_a_batch_norm_that_folds_beyond_float32_is_named(model, use):
    variance = model.state_dict()['scale_attn.atten_head.1._batch_norm._variance']
    weight = model.state_dict()['scale_attn.atten_head.1._batch_norm.weight']
    before = variance.numpy(), weight.numpy()
    variance.set_value(np.zeros_like(before[0]))
    weight.set_value(np.full_like(before[1], 3e38))
    try:
        with pytest.raises(UserError, match=r'NaN or infinity in scale_attn\.atten_head\.1; use an earlier checkpoint'):
            use(model)
    finally:
        variance.set_value(before[0])
        weight.set_value(before[1])


def test_what_can_be_fused(model):
    assert fuse_for_inference(model) is not model
    other = paddle.nn.Conv2D(3, 4, 1)
    assert fuse_for_inference(other) is other
