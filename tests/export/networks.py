"""Small networks for the tests of inference.export, and what they give by the plain formula."""
import numpy as np
import paddle

from models.hrnet import HRNet
from models.mscale_ocrnet import MscaleOCRNet
from tests import fill, rounding

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def network(n_scales=(0.5, 1.0, 2.0), classes=5):
    model = MscaleOCRNet(classes, HRNet(8, modules=(1, 1, 1), blocks=1, stem=(1, 16)), [0], n_scales=n_scales,
                         ocr_mid_channels=24, ocr_key_channels=12, attn_channels=8, dropout=0.0)
    fill.weights(model)
    model.eval()
    return model


def plain(model, flip=False):
    """float32 array (1, 3, H, W) -> logits (1, K, H, W) of the layers themselves."""
    def logits(x):
        with paddle.no_grad():
            return model.hierarchy(paddle.to_tensor(np.ascontiguousarray(x)), model.n_scales).numpy()

    return (lambda x: (logits(x) + logits(x[..., ::-1])[..., ::-1]) / 2) if flip else logits


def expected(model, x, flip=False):
    """(logits, their condition)."""
    function = plain(model, flip)
    return function(x), rounding.sensitivity(function, x, trials=2)


def picture(seed, size):
    """uint8 (H, W, 3), smooth, with a little noise."""
    x = fill.image(seed, [1, 3, *size])[0].transpose(1, 2, 0)
    return np.clip(128 + 40 * x, 0, 255).astype(np.uint8)


def normalised(image):
    """float32 (1, 3, H, W)."""
    return ((image / 255 - MEAN) / STD).transpose(2, 0, 1)[None].astype(np.float32)
