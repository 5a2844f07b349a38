"""Paddle Inference's program and parameters, of paddle.jit.save: model.json (Paddle 3) or model.pdmodel (2.6)."""
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F

from inference.export import whole
from inference.export.scaled_sizes import as_fraction, sides_at
from inference.paddle_operations import PaddleOps
from models.layers import scaled_size
from models.mscale_ocrnet import MscaleOCRNet

Size = list[int] | paddle.Tensor  # [H, W], or int64 (2,) where it is known at run time only
PARAMETERS = 'model.pdiparams'


def write(model: MscaleOCRNet, settings: whole.Settings, metadata: Mapping[str, str], folder: Path) -> dict[str, str]:
    """As inference.export.onnx_file; the format has no place for metadata, config.json beside it holds the same."""
    height, width = settings.size or (-1, -1)
    shape = [height, width, 3] if settings.preprocessing else [1, 3, height, width]
    layer = _Whole(model, settings)
    layer.eval()
    with paddle.no_grad():
        image = paddle.static.InputSpec(shape, _type(settings), 'image')
        paddle.jit.save(paddle.jit.to_static(layer, [image], full_graph=True), str(folder / 'model'))
    program, = (path.name for path in folder.glob('model.*') if path.suffix in ('.json', '.pdmodel'))
    (folder / 'model.pdiparams.info').unlink(missing_ok=True)  # of training
    return {'model': program, 'params': PARAMETERS}


def load(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The files as a function of the input, run by Paddle Inference on the CPU."""
    from paddle import inference

    program, = (path for path in folder.glob('model.*') if path.suffix in ('.json', '.pdmodel'))
    config = inference.Config(str(program), str(folder / PARAMETERS))
    config.disable_gpu()
    config.disable_glog_info()
    if hasattr(config, 'disable_mkldnn'):  # Paddle 3.3.1's oneDNN kernels fail on interpolation (Unimplemented)
        config.disable_mkldnn()
    predictor = inference.create_predictor(config)
    image = predictor.get_input_handle(predictor.get_input_names()[0])
    output = predictor.get_output_handle(predictor.get_output_names()[0])

    def run(array: np.ndarray) -> np.ndarray:
        image.reshape(array.shape)
        image.copy_from_cpu(np.ascontiguousarray(array))
        predictor.run()
        return output.copy_to_cpu()

    return run


def _type(settings: whole.Settings) -> Any:  # of the input
    return 'uint8' if settings.preprocessing else 'float32'


class _Whole(paddle.nn.Layer):
    def __init__(self, model: MscaleOCRNet, settings: whole.Settings) -> None:
        super().__init__()
        ops = _StaticOps(self)
        # Plain functions of the network, of which nothing is to be rewritten: loops over layers end while it is traced.
        self._output = paddle.jit.not_to_static(lambda image: whole.network(ops, model, image, settings))
        # Weights become parameters where they are first used; in a program that is traced, it would be too late.
        shape = [32, 32, 3] if settings.preprocessing else [1, 3, 32, 32]
        with paddle.no_grad():
            self._output(paddle.zeros(shape, _type(settings)))

    def forward(self, image: paddle.Tensor) -> paddle.Tensor:
        return self._output(image)


class _StaticOps(PaddleOps):
    """PaddleOps while a program is traced: new values only, sizes that may be known at run time, weights of a layer."""

    def __init__(self, layer: paddle.nn.Layer) -> None:
        super().__init__()
        self._layer = layer

    def tensor(self, array: np.ndarray) -> paddle.Tensor:
        weight = self._layer.create_parameter(list(array.shape), dtype='float32',
                                              default_initializer=paddle.nn.initializer.Assign(array))
        self._layer.add_parameter(f'weight_{len(self._layer.parameters())}', weight)
        return weight

    # -------------------------------- as PaddleOps, into new values

    def conv(self, x: paddle.Tensor, weight: np.ndarray | paddle.Tensor, bias: np.ndarray | paddle.Tensor | None = None,
             stride: int = 1, padding: int | Sequence[int] = (0, 0), add: paddle.Tensor | None = None,
             relu: bool = False) -> paddle.Tensor:
        y = F.conv2d(x, self.weight(weight), None if bias is None else self.weight(bias), stride=stride,
                     padding=padding if isinstance(padding, int) else list(padding))
        y = y if add is None else y + add
        return F.relu(y) if relu else y

    def sum(self, terms: Sequence[paddle.Tensor]) -> paddle.Tensor:
        first, *rest = terms
        for term in rest:
            first = first + term
        return first

    def add(self, x: paddle.Tensor, y: paddle.Tensor) -> paddle.Tensor:
        return x + y

    def relu(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.relu(x)

    # -------------------------------- sizes

    def size(self, x: paddle.Tensor) -> Size:
        found = list(x.shape[2:])
        return found if min(found) > 0 else paddle.shape(x)[2:].astype('int64')

    def scaled_size(self, size: Size, scale: float) -> Size:
        if isinstance(size, list):
            return scaled_size(size, scale)
        fraction = as_fraction(scale)
        if fraction is None:
            return paddle.gather(paddle.to_tensor(sides_at(scale)), size)
        return paddle.clip(size * fraction.numerator // fraction.denominator, min=1)

    def resize_to(self, x: paddle.Tensor, size: Size) -> paddle.Tensor:
        if isinstance(size, list) and list(x.shape[2:]) == size:
            return x
        return F.interpolate(x, size=size, mode='bilinear', align_corners=False)

    def resize(self, x: paddle.Tensor, like: paddle.Tensor) -> paddle.Tensor:
        return self.resize_to(x, self.size(like))

    def like(self, x: paddle.Tensor, other: paddle.Tensor) -> paddle.Tensor:
        height, width = self.size(other)
        return x.reshape([1, other.shape[1], height, width])

    def mirrored(self, x: paddle.Tensor) -> paddle.Tensor:
        return x.flip([3])

    # -------------------------------- before and after the network

    def working_precision(self, x: paddle.Tensor) -> paddle.Tensor:
        return x

    def normalised(self, image: paddle.Tensor, mean: Sequence[float], std: Sequence[float]) -> paddle.Tensor:
        """uint8 (H, W, 3) -> float32 (1, 3, H, W)."""
        x = image.astype('float32').transpose([2, 0, 1]).unsqueeze(0)
        shift, divisor = (paddle.to_tensor(255 * np.array(values, np.float32)).reshape([1, 3, 1, 1])
                          for values in (mean, std))
        return (x - shift) / divisor

    def classes(self, logits: paddle.Tensor, whole: bool) -> paddle.Tensor:
        """float32 (1, K, H, W) -> int32 (1, H, W), as PaddleSeg's tools expect it; uint8 (H, W) if not `whole`."""
        found = logits.argmax(axis=1, dtype='int32')
        return found if whole else found.squeeze(0).astype('uint8')
