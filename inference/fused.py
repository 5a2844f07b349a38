"""The network rearranged for inference: the same logits up to rounding, with three fifths of the work and in strips.

The rearrangement uses these facts (docs/performance.md):
- batch norm folds into the convolution before it;
- convolution and bilinear enlargement are linear, so a layer that reads the enlarged, concatenated branches of the
  backbone runs per branch, before the enlargement, where that is cheaper;
- the object context is a mix of K vectors, so the linear map after it acts on the K vectors, and the convolution over
  [context, pixels] is a sum of two;
- a softmax over space can be summed strip by strip; everything after the object regions is pixel-wise except for
  3x3 convolutions: it runs in strips of rows.

The functions below define the computation; an `ops` object carries out each operation: `PaddleOps`
(inference.paddle_operations) computes it, `OnnxOps` (inference.onnx_writer) writes it into a graph. The backbone has
its own `walk`. All for one image: (1, C, rows, width), float32. inference.fused_network combines the parts; tests
compare the result with MscaleOCRNet.hierarchy.
"""
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle

from common.errors import UserError
from models.layers import ConvBN
from models.ocr import OCRHead
from models.operations import Value
from models.scale_attention import ScaleAttention

# For the branches at 1/8, 1/16, 1/32: whether the 3x3 convolution runs at the branch's own width, as 9 taps that are
# enlarged afterwards. If not, the branch is enlarged in width first: its few channels are cheaper to enlarge than
# 9 x 512 sums.
AT_OWN_WIDTH = (False, True, True)
HALO = 2  # rows beyond a strip that the attention's two 3x3 convolutions read


class HeadWeights(NamedTuple):
    """float32 arrays; C pixels' channels, K classes, D key channels, branch b with C_b channels.

    aux: per branch (A, C_b). aux_bias (A,). aux_classifier: (weight (K, A), bias (K,)).
    pixels: of the finest branch (C, C_0, 3, 3); of the others for each dy (C, C_b, 1, 3), or where the taps run at the
    branch's own width for each dy and dx (C, C_b). pixels_bias (C,).
    query: two times (weight, bias). join: (C, C) of the context, (C, C) of the pixels, bias. classifier: (weight,
    bias).
    """
    aux: list[np.ndarray]
    aux_bias: np.ndarray
    aux_classifier: tuple[np.ndarray, np.ndarray]
    pixels: list[Any]
    pixels_bias: np.ndarray
    query: list[tuple[np.ndarray, np.ndarray]]
    join: tuple[np.ndarray, np.ndarray, np.ndarray]
    classifier: tuple[np.ndarray, np.ndarray]
    num_classes: int


class FoldedOperations:
    """Base of all `ops`: every weight is passed to `tensor` once; walks of layers run with folded batch norm."""

    def __init__(self) -> None:
        self._once: dict[int, tuple[Any, tuple[Value, ...]]] = {}

    def tensor(self, array: np.ndarray) -> Value:
        raise NotImplementedError

    def conv(self, x: Value, weight: Value, bias: Value | None = None, stride: int = 1,
             padding: int | Sequence[int] = (0, 0), add: Value | None = None, relu: bool = False) -> Value:
        raise NotImplementedError

    def relu(self, x: Value) -> Value:
        raise NotImplementedError

    def sum(self, terms: Sequence[Value]) -> Value:
        raise NotImplementedError

    def once(self, key: Any, arrays: Callable[[], Iterable[np.ndarray]]) -> tuple[Value, ...]:
        """The results of `tensor` for the arrays that the function returns, at the first call with this key object."""
        if id(key) not in self._once:
            self._once[id(key)] = key, tuple(self.tensor(array) for array in arrays())
        return self._once[id(key)][1]

    def folded(self, layer: ConvBN) -> tuple[Value, Value]:
        """(weight, bias) of a ConvBN."""
        weight, bias = self.once(layer, layer.folded)
        return weight, bias

    # -------------------------------- as models.operations.Operations

    def conv_bn(self, layer: ConvBN, x: Value, shortcut: Value | None = None) -> Value:
        weight, bias = self.folded(layer)
        return self.conv(x, weight, bias, stride=layer.stride, padding=layer.padding, add=shortcut,
                         relu=layer.relu or shortcut is not None)

    def sum_relu(self, terms: Iterable[Value]) -> Value:
        return self.relu(self.sum(list(terms)))

    def run(self, layer: Any, *inputs: Value) -> Value:
        return layer.walk(self, *inputs)

    def recompute(self, function: Callable[..., Value], layers: Sequence[paddle.nn.Layer], *inputs: Value) -> Value:
        return function(*inputs)


def check_folding(model: paddle.nn.Layer) -> None:
    """UserError, which names the layer, if a folded batch norm is beyond float32: a ReLU can turn its NaN into 0."""
    for name, layer in model.named_sublayers():
        if isinstance(layer, ConvBN) and not all(np.isfinite(array).all() for array in layer.folded()):
            raise UserError('--model_path: expected weights that are finite with the batch norm folded in, found NaN '
                            f'or infinity in {name}; use an earlier checkpoint')


def head_weights(head: OCRHead, channels: Sequence[int]) -> HeadWeights:
    """HeadWeights of an OCRHead that reads branches of these numbers of channels."""
    def matrix(layer: ConvBN) -> tuple[np.ndarray, np.ndarray]:
        weight, bias = layer.folded()
        return weight[:, :, 0, 0], bias

    def classifier(layer: paddle.nn.Conv2D) -> tuple[np.ndarray, np.ndarray]:
        return layer.weight.numpy()[:, :, 0, 0], layer.bias.numpy()

    layers = head.layers()
    aux, aux_bias = matrix(layers.aux)
    pixels, pixels_bias = layers.pixels.folded()
    starts = np.cumsum(channels)[:-1]
    finest, *coarser = np.split(pixels, starts, axis=1)
    taps = [[[w[:, :, dy, dx] for dx in range(3)] if own_width else w[:, :, dy:dy + 1] for dy in range(3)]
            for w, own_width in zip(coarser, AT_OWN_WIDTH)]
    join, join_bias = matrix(layers.join)
    of_context, of_pixels = np.split(join, 2, axis=1)
    return HeadWeights(
        aux=np.split(aux, starts, axis=1), aux_bias=aux_bias, aux_classifier=classifier(layers.aux_classifier),
        pixels=[finest, *taps], pixels_bias=pixels_bias, query=[matrix(layer) for layer in layers.query],
        join=(of_context, of_pixels, join_bias), classifier=classifier(layers.classifier),
        num_classes=len(layers.aux_classifier.bias))


# ---------------------------------------------------------------- the parts

def pixels_and_statistics(ops: Any, w: HeadWeights, finest: Value, coarser: Sequence[Value], enlarge: Value,
                          enlarge_shifted: Value) -> tuple[Value, Value, Value, Value]:
    """A strip of R rows of the pixel features, and its statistics for the object regions.

    finest: (1, C_0, R + 2, W), with one extra row on both sides, zero outside of the image. coarser: three
    (1, C_b, r_b, w_b) with the rows that the strip depends on. enlarge: (R, r_1 + r_2 + r_3), the matrices that
    interpolate these rows bilinearly, side by side. enlarge_shifted: (R, 3 r_1 + 3 r_2 + 3 r_3), for each branch the
    same matrix for the row above, the row and the row below; zero for rows outside of the image.
    Returns pixels (1, C, R, W); and of the auxiliary logits a: top (K, 1), their maximum m over the strip; total
    (K, 1), the sum of exp(a - m); regions (K, C), the sum of exp(a - m) * pixels.
    """
    def widened(x: Value) -> Value:
        return ops.resize_width(x, finest)

    aux = ops.linear(ops.rows(finest, 1, -1), w.aux[0], w.aux_bias)
    aux = ops.add(aux, ops.mix_rows(enlarge, [widened(ops.linear(x, weight)) for x, weight in zip(coarser, w.aux[1:])]))
    aux = ops.linear(ops.relu(aux), *w.aux_classifier)

    sums = []
    for x, by_row, own_width in zip(coarser, w.pixels[1:], AT_OWN_WIDTH):
        wide = None if own_width else widened(x)
        for weight in by_row:
            if own_width:
                sums.append(ops.sum_shifted([widened(ops.linear(x, tap)) for tap in weight]))
            else:
                sums.append(ops.conv(wide, weight, padding=(0, 1)))
    pixels = ops.conv(finest, w.pixels[0], w.pixels_bias, padding=(0, 1))
    pixels = ops.relu(ops.add(pixels, ops.mix_rows(enlarge_shifted, sums)))

    a, p = ops.flat(ops.full_precision(aux)), ops.flat(ops.full_precision(pixels))
    top = ops.max(a)
    e = ops.exp(ops.subtract(a, top))
    return pixels, top, ops.total(e), ops.matmul(e, p, transpose_y=True)


def logits_and_attention(ops: Any, w: HeadWeights, attention: ScaleAttention | None, pixels: Value, key: Value,
                         context: Value, inside: Value | None = None) -> tuple[Value, Value | None]:
    """The head after the object regions, for a strip of rows.

    pixels: (1, C, R, W); with attention HALO extra rows on both sides, of any value outside of the image.
    key: (K, D), times the scale of the similarity. context: (C, K), the object vectors after f_up's convolution.
    attention: the ScaleAttention, or None where it is not needed. inside: (1, 1, R + 4, 1), 1 for rows of the image,
    else 0.
    Returns logits (1, K, R, W) and attention (1, 1, R, W) or None.
    """
    query = pixels
    for weight, bias in w.query:
        query = ops.relu(ops.linear(query, weight, bias))
    weights = ops.softmax(ops.full_precision(ops.matmul(key, ops.flat(query))))  # (K, R W), over the classes
    objects = ops.like(ops.relu(ops.matmul(context, ops.cast_as(weights, pixels))), pixels)
    of_context, of_pixels, bias = w.join
    ocr = ops.relu(ops.add(ops.linear(objects, of_context, bias), ops.linear(pixels, of_pixels)))
    if attention is None:
        return ops.linear(ocr, *w.classifier), None
    logits = ops.linear(ops.rows(ocr, HALO, -HALO), *w.classifier)
    first, second, last = attention.layers()
    y = ops.multiply(ocr, inside)
    y = ops.multiply(ops.conv(y, *ops.folded(first), padding=(0, 1), relu=True), ops.rows(inside, 1, -1))
    y = ops.conv(y, *ops.folded(second), padding=(0, 1), relu=True)
    y = ops.conv(y, ops.once(last, lambda: (last.weight.numpy(),))[0])
    return logits, ops.sigmoid(ops.full_precision(y))


def object_weights(head: OCRHead) -> dict[str, np.ndarray]:
    """The weights of an OCRHead that `objects` uses: {name: float32 array}."""
    layers = head.layers()
    first, second = layers.key
    folded = {name: layer.folded() for name, layer in (
        ('object_0', first), ('object_1', second), ('down', layers.value), ('up', layers.context))}
    return {'scale': np.array(layers.similarity_scale, np.float32),
            **{f'{name}_weight': weight[:, :, 0, 0] for name, (weight, _) in folded.items()},
            **{f'{name}_bias': bias[:, None] for name, (_, bias) in folded.items()}}


def objects(w: dict[str, np.ndarray], regions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Object regions (K, C) float32 -> (key, context) of `logits_and_attention`, arrays of the sizes there."""
    def layer(name: str, x: np.ndarray) -> np.ndarray:
        return np.maximum(w[f'{name}_weight'] @ x + w[f'{name}_bias'], 0)

    key = layer('object_1', layer('object_0', regions.T))
    # The weights of a pixel's mix sum to 1, so f_up's bias may be added before the mix.
    context = w['up_weight'] @ layer('down', regions.T) + w['up_bias']
    return np.ascontiguousarray(w['scale'] * key.T), context
