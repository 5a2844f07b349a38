"""The whole network of inference.export.whole as one ONNX graph, of standard operators and without loops."""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from common.errors import UserError
from inference.export import whole
from inference.export.rearranged_head import RearrangedHead
from inference.export.scaled_sizes import as_fraction, sides_at
from inference.onnx_writer import OPSET, OnnxOps
from inference.row_strips import bilinear_rows
from models.layers import scaled_size
from models.mscale_ocrnet import MscaleOCRNet

IR_VERSION = 9
Size = tuple[int, int] | str  # (H, W), or the name of an int64 (2,) value where it is known at run time only
LAST = (1 << 31) - 1  # an end after the last element
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
        self._matrices: dict[tuple[Any, ...], str] = {}
        self._biases: dict[str, np.ndarray] = {}
        self._read: set[str] = set()  # those of a convolution

    def take(self, name: str, channels: int, size: Size | None) -> str:
        """An input that is an image."""
        self._images[name] = channels, size
        return name

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        y = super().node(kind, *inputs, outputs=outputs, **attributes)
        if kind == 'Conv':
            _, size = self._images[inputs[0]]
            out, _, *kernel = self._shapes[inputs[1]]
            strides = attributes.get('strides', [1, 1])
            if isinstance(size, tuple):
                stride, (top, left, bottom, right) = strides[0], attributes['pads']
                size = ((size[0] + top + bottom - kernel[0]) // stride + 1,
                        (size[1] + left + right - kernel[1]) // stride + 1)
            elif strides != [1, 1]:
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
        if array.ndim == 1:
            self._biases[name] = array
        return name

    def conv(self, x: str, weight: np.ndarray | str, bias: np.ndarray | str | None = None, stride: int = 1,
             padding: int | Sequence[int] = (0, 0), add: str | None = None, relu: bool = False) -> str:
        """As OnnxOps; weights are stored once for all scales, biases for each: OpenVINO adds one within the convolution
        only if nothing else reads it.
        """
        if bias is not None:
            bias = self.weight(bias)
            bias = self._stored(self._biases[bias]) if bias in self._read else bias
            self._read.add(bias)
        return super().conv(x, weight, bias, stride, padding, add, relu)

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

    def resize_width(self, x: str, like: str) -> str:
        own, other = self.size(x), self.size(like)
        if isinstance(own, tuple) and isinstance(other, tuple):
            size: Size = (own[0], other[1])
        else:
            sides = (self.node('Gather', str(name), self.ints(axis)) for axis, name in enumerate((own, other)))
            size = self.node('Concat', *sides, axis=0)
        y = self.resize_to(x, size)
        self.channels[y] = self._images[x][0]
        return y

    def enlarged_rows(self, xs: Sequence[str], like: str, shifts: Sequence[int]) -> str:
        """Sum of images (1, C, r, W) of one size, as wide as `like`, enlarged to its rows and moved by shifts.

        Row i of the n-th enlarged image becomes row i - shifts[n]; what is outside is 0.
        """
        own, size = self.size(xs[0]), self.size(like)
        key = (own, size, *shifts)
        if key not in self._matrices:
            self._matrices[key] = self._shifted(own, size, shifts)
        rows = xs[0] if len(xs) == 1 else self.node('Concat', *xs, axis=2)
        y = self.node('MatMul', self._matrices[key], rows)
        self._images[y] = self._images[xs[0]][0], size
        return y

    def _shifted(self, own: Size, size: Size, shifts: Sequence[int]) -> str:
        """(R, r times the number of shifts): the matrix that enlarges r rows to R, for each shift."""
        if isinstance(own, tuple) and isinstance(size, tuple):
            padded = np.pad(bilinear_rows(own[0], size[0]), [(1, 1), (0, 0)])
            return self.tensor(np.concatenate([padded[1 + shift:][:size[0]] for shift in shifts], axis=1))
        low, high = (self.node('Gather', str(name), self._scalar(0)) for name in (own, size))
        matrix = self.working_precision(self._enlarging(low, high))
        if tuple(shifts) == (0,):
            return matrix
        padded = self.node('Pad', matrix, self.ints(1, 0, 1, 0))
        return self.node('Concat', *(self._slice(padded, 0, 1 + shift, shift - 1 or LAST) for shift in shifts), axis=1)

    def _scalar(self, number: int) -> str:
        if ('scalar', number) not in self._matrices:
            self._matrices['scalar', number] = self._stored(np.array(number, np.int64))
        return self._matrices['scalar', number]

    def _enlarging(self, low: str, high: str) -> str:
        """bilinear_rows of numbers of rows that are known at run time only, int64 scalars."""
        def real(x: str) -> str:
            return self.node('Cast', x, to=onnx.TensorProto.FLOAT)

        zero, one, two = map(self._scalar, (0, 1, 2))
        rows, columns = (self.node('Range', zero, number, one) for number in (high, low))
        # A row is at ((2 row + 1) low - high) / (2 high), within the first and the last one; in integers, since float32
        # has not enough digits for it.
        double = self.node('Mul', high, two)
        place = self.node('Sub', self.node('Mul', self.node('Add', self.node('Mul', rows, two), one), low), high)
        last = self.node('Mul', double, self.node('Sub', low, one))
        place = self.node('Unsqueeze', self.node('Min', self.node('Max', place, zero), last), self.ints(1))
        whole = self.node('Div', place, double)
        part = self.node('Div', real(self.node('Sub', place, self.node('Mul', whole, double))), real(double))
        apart = self.node('Abs', self.node('Add', real(self.node('Sub', whole, columns)), part))
        return self.relu(self.node('Sub', self._stored(np.array(1, np.float32)), apart))

    def like(self, x: str, other: str) -> str:
        size = self.size(other)
        shape = self.node('Concat', self.ints(1, -1), size, axis=0) if isinstance(size, str) \
            else self.ints(1, -1, *size)
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

    def times(self, x: str, factor: float, full: bool = False) -> str:
        """full: x is float32 whatever the network computes in."""
        return self.node('Mul', x, (self._stored if full else self.tensor)(np.array(factor, np.float32)))

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


def build(model: MscaleOCRNet, settings: whole.Settings, metadata: Mapping[str, str],
          rearranged: bool = False) -> onnx.ModelProto:
    """A model in evaluation mode with these settings as one graph, checked; metadata: its metadata_props.

    rearranged: with inference.export.rearranged_head.
    """
    ops = WholeOps(half=settings.precision == 'fp16')
    height, width = settings.size or ('H', 'W')
    found = whole.network(ops, model, ops.take('image', 3, settings.size), settings,
                          RearrangedHead(model) if rearranged else None)
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
