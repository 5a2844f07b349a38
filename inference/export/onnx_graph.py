"""The whole network of inference.export.whole as one ONNX graph, of standard operators and without loops."""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from common.errors import UserError
from inference.export import whole
from inference.export.scaled_sizes import as_fraction, sides_at
from inference.onnx_writer import OPSET, OnnxOps
from models.layers import scaled_size
from models.mscale_ocrnet import MscaleOCRNet

IR_VERSION = 9
Size = tuple[int, int] | str  # (H, W), or the name of an int64 (2,) value where it is known at run time only
BACKWARDS = -(1 << 31) + 1  # an end before the first element, within 32 bits
KEEPS = ('Add', 'Sub', 'Mul', 'Relu', 'Sigmoid', 'Cast', 'Softmax', 'Slice')  # the size of their first input


class WholeOps(OnnxOps):
    """OnnxOps with known sizes where the image's is, so that no size is computed at run time then.

    half: weights and activations of the network are float16.
    """

    def __init__(self, half: bool = False) -> None:
        super().__init__()
        self.half = half
        self._shapes: dict[str, tuple[int, ...]] = {}  # of weights
        self._images: dict[str, tuple[int, Size | None]] = {}  # (channels, size) of (1, C, H, W) values
        self._tables: dict[float, str] = {}

    def take(self, name: str, channels: int, size: Size | None) -> str:
        """An input that is an image."""
        self._images[name] = channels, size
        return name

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        y = super().node(kind, *inputs, outputs=outputs, **attributes)
        if kind == 'Conv':
            _, size = self._images[inputs[0]]
            out, _, *kernel = self._shapes[inputs[1]]
            if isinstance(size, tuple):
                stride, (top, left, bottom, right) = attributes['strides'][0], attributes['pads']
                size = ((size[0] + top + bottom - kernel[0]) // stride + 1,
                        (size[1] + left + right - kernel[1]) // stride + 1)
            elif attributes['strides'] != [1, 1]:
                size = None
            self._images[y] = out, size
        elif kind in KEEPS and inputs[0] in self._images:
            self._images[y] = self._images[inputs[0]]
        return y

    def tensor(self, array: np.ndarray) -> str:
        if self.half and array.dtype == np.float32:
            with np.errstate(over='ignore'):
                array = array.astype(np.float16)
            if not np.isfinite(array).all():
                raise UserError('--precision fp16: expected weights within 65504, the largest float16 number, found '
                                'larger ones; use --precision fp32')
        return self._stored(array)

    def _stored(self, array: np.ndarray) -> str:
        name = super().tensor(array)
        self._shapes[name] = array.shape
        return name

    # -------------------------------- sizes

    def size(self, x: str) -> Size:
        channels, size = self._images[x]
        if size is None:
            size = self.node('Shape', x, start=2)
            self._images[x] = channels, size
        return size

    def scaled_size(self, size: Size, scale: float) -> Size:
        if not isinstance(size, str):
            height, width = scaled_size(size, scale)
            return height, width
        if scale == 1:
            return size
        fraction = as_fraction(scale)
        if fraction is None:
            if scale not in self._tables:
                self._tables[scale] = self._stored(sides_at(scale))
            return self.node('Gather', self._tables[scale], size)
        scaled: str = size
        for kind, number, needed in (('Mul', fraction.numerator, fraction.numerator > 1),
                                     ('Div', fraction.denominator, fraction.denominator > 1), ('Max', 1, scale < 1)):
            if needed:
                scaled = self.node(kind, scaled, self.ints(number))
        return scaled

    def resize_to(self, x: str, size: Size) -> str:
        channels, own = self._images[x]
        if own == size:
            return x
        sizes = self.node('Concat', self.ints(1, channels), size, axis=0) if isinstance(size, str) \
            else self.ints(1, channels, *size)
        y = self.node('Resize', x, '', '', sizes, mode='linear', coordinate_transformation_mode='half_pixel')
        self._images[y] = channels, size
        return y

    def resize(self, x: str, like: str) -> str:
        return self.resize_to(x, self.size(like))

    def like(self, x: str, other: str) -> str:
        channels, size = self._images[other][0], self.size(other)
        shape = self.node('Concat', self.ints(1, channels), size, axis=0) if isinstance(size, str) \
            else self.ints(1, channels, *size)
        y = self.node('Reshape', x, shape)
        self._images[y] = self._images[other]
        return y

    def concat(self, xs: Sequence[str]) -> str:
        y = super().concat(xs)
        self._images[y] = sum(self._images[x][0] for x in xs), self._images[xs[0]][1]
        return y

    def vectors(self, x: str) -> str:
        y = super().vectors(x)
        self._images[y] = 0, None
        return y

    def mirrored(self, x: str) -> str:
        return self.node('Slice', x, self.ints(-1), self.ints(BACKWARDS), self.ints(3), self.ints(-1))

    # -------------------------------- precision

    def times(self, x: str, factor: float) -> str:
        return self.node('Mul', x, self.tensor(np.array(factor, np.float32)))

    def working_precision(self, x: str) -> str:
        return self.node('Cast', x, to=onnx.TensorProto.FLOAT16) if self.half else x

    def full_precision(self, x: str) -> str:
        return self.node('Cast', x, to=onnx.TensorProto.FLOAT) if self.half else x

    def cast_as(self, x: str, other: str) -> str:
        return self.working_precision(x)

    # -------------------------------- before and after the network

    def normalised(self, image: str, mean: Sequence[float], std: Sequence[float]) -> str:
        """uint8 (H, W, 3) -> float32 (1, 3, H, W)."""
        # TensorRT takes uint8 as input and output of a network only: the first and the last node convert.
        x = self.node('Transpose', self.node('Cast', image, to=onnx.TensorProto.FLOAT), perm=[2, 0, 1])
        x = self.node('Unsqueeze', x, self.ints(0))
        for kind, values in (('Sub', 255 * np.array(mean)), ('Div', 255 * np.array(std))):
            x = self.node(kind, x, self._stored(values.astype(np.float32).reshape(1, 3, 1, 1)))
        self._images[x] = self._images[image]
        return x

    def classes(self, logits: str, whole: bool) -> str:
        """float32 (1, K, H, W) -> uint8 (1, H, W), or (H, W) if not `whole`."""
        x = self.node('ArgMax', logits, axis=1, keepdims=0)
        x = x if whole else self.node('Squeeze', x, self.ints(0))
        return self.node('Cast', x, to=onnx.TensorProto.UINT8)


def build(model: MscaleOCRNet, settings: whole.Settings, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """A model in evaluation mode with these settings as one graph, checked; metadata: its metadata_props."""
    ops = WholeOps(half=settings.precision == 'fp16')
    height, width = settings.size or ('H', 'W')
    found = whole.network(ops, model, ops.take('image', 3, settings.size), settings)
    ops.nodes[-1].output[0] = settings.output  # of the node that has written `found`
    assert found.startswith(ops.nodes[-1].op_type.lower())
    kinds = onnx.TensorProto
    takes = (kinds.UINT8, [height, width, 3]) if settings.preprocessing else (kinds.FLOAT, [1, 3, height, width])
    gives = (kinds.FLOAT, [1, len(model.ocrnet.head.layers().classifier.bias), height, width])
    if settings.output == 'classes':
        gives = kinds.UINT8, [1, height, width][settings.preprocessing:]
    graph = helper.make_graph(
        ops.nodes, 'mscale_ocrnet', [helper.make_tensor_value_info('image', *takes)],
        [helper.make_tensor_value_info(settings.output, *gives)], ops.initializers)
    result = helper.make_model(graph, opset_imports=[helper.make_opsetid('', OPSET)], ir_version=IR_VERSION,
                               producer_name='mscale_ocrnet', producer_version=metadata.get('version', ''))
    helper.set_model_props(result, dict(metadata))
    onnx.checker.check_model(result, full_check=True)
    return result
