"""Inference against PaddleSeg's own aug_inference and slide_inference, and against formulas."""
import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddleseg.core import infer

from common import flags
from inference.predictor import Predictor, restore_size
from tests import fill, rounding


class Blur(paddle.nn.Layer):
    """A stand-in for the network whose logits depend on neighbours and on the place in the window."""

    def __init__(self):
        super().__init__()
        self.weight = paddle.to_tensor(fill.image(1, [5, 3, 5, 5]))

    def forward(self, x):
        y = F.conv2d(x, self.weight, padding=2)
        ramp = paddle.linspace(0, 1, x.shape[3]).reshape([1, 1, 1, -1])
        return [y + ramp]


@pytest.fixture
def image():
    return paddle.to_tensor(fill.image(2, [1, 3, 45, 70]))


@pytest.mark.parametrize('flips', [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize('window', [None, ((32, 20), (24, 16)), ((100, 100), (50, 50)), ((70, 13), (1, 13))])
def test_equals_paddleseg(image, flips, window):
    """Window given as (w, h), as PaddleSeg has it."""
    model = Blur()
    scales = [0.75, 1.0, 1.5]
    slide = {} if window is None else {'is_slide': True, 'crop_size': window[0], 'stride': window[1]}
    with paddle.no_grad():
        ids, expected = infer.aug_inference(model, image, trans_info=[('resize', (31, 50))], scales=scales,
                                            flip_horizontal=flips[0], flip_vertical=flips[1], **slide)
    options = flags.predictor_options({'aug': True, 'scales': scales, 'flip_horizontal': flips[0],
                                       'flip_vertical': flips[1], **slide})
    predict = Predictor(model, **options)
    logits = rounding.of_network(lambda x: restore_size(predict.logits(x), [('resize', (31, 50))]))
    condition = rounding.sensitivity(logits, image.numpy(), trials=2)
    rounding.assert_close(logits(image.numpy()), expected.numpy(), condition)
    sample = {'img': image[0].numpy(), 'trans_info': [('resize', (31, 50))]}
    train_ids = predict(sample)
    assert train_ids.dtype == np.uint8 and train_ids.shape == (31, 50)
    assert (train_ids == ids.numpy()[0, 0]).mean() > 0.999


def test_undo_reverses_the_last_transform_first():
    logits = paddle.to_tensor(fill.image(3, [1, 2, 20, 30]))
    found = restore_size(logits, [('resize', (10, 14)), ('padding', (16, 28))])
    expected = F.interpolate(logits[:, :, :16, :28], [10, 14], mode='bilinear')
    np.testing.assert_array_equal(found.numpy(), expected.numpy())


def test_undo_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="found 'rotate' in trans_info"):
        restore_size(paddle.zeros([1, 1, 2, 2]), [('rotate', (2, 2))])


def test_a_stride_larger_than_the_window_is_refused():
    with pytest.raises(ValueError, match=r'--stride: expected at least 1 and at most the crop size'):
        Predictor(Blur(), crop_size=(10, 10), stride=(10, 11))


@pytest.mark.parametrize('given, text', [({'is_slide': True}, '--crop_size: expected width and height'),
                                         ({'is_slide': True, 'crop_size': [8, 8]}, '--stride: expected'),
                                         ({'aug': True, 'scales': [0.0]}, '--scales: expected numbers above 0')])
def test_flags_that_do_not_fit_together(given, text):
    with pytest.raises(ValueError, match=text):
        flags.predictor_options(given)


def test_scales_and_flips_count_only_with_the_aug_flag():
    assert flags.predictor_options({'aug': False, 'scales': [2.0], 'flip_horizontal': True}) == {}
