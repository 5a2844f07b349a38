"""The evaluated network, rearranged: the same logits up to rounding, with three fifths of the work and in strips.

What the rearrangement rests on (README, "What runs it"):
- batch norm folds into the convolution before it;
- convolution and bilinear enlargement are linear, so what reads the enlarged, concatenated branches of HRNet runs per
  branch, before the enlargement, as far as that is cheaper;
- the object context is a mix of K vectors, so the linear map after it acts on the K vectors, and the convolution over
  [context, pixels] is a sum of two;
- a softmax over space can be summed strip by strip; everything after the object regions is pixel-wise but for 3x3
  convolutions: it runs in strips of rows.

The functions below say what is computed, an `ops` object with what: `PaddleOps` (models.lean_ops) computes, `OnnxOps`
(engine.onnx_graph) writes a graph. All for one image; (1, C, rows, width), float32. models.lean_network puts the parts
together; tests hold the whole against MscaleOCRNet.hierarchy.
"""
from typing import NamedTuple

import numpy as np

from models.hrnet import HRNet

# Of the branches at 1/8, 1/16, 1/32: does the 3x3 convolution run at the branch's own width, as 9 taps that are
# enlarged afterwards? Else the branch is enlarged in width first: few channels, cheaper to enlarge than 9 x 512 sums.
AT_OWN_WIDTH = (False, True, True)
HALO = 2  # rows that the attention's two 3x3 convolutions see beyond a strip


class HeadWeights(NamedTuple):
    """float32 arrays; C pixels' channels, K classes, D key channels, branch b with C_b channels.

    aux: per branch (A, C_b). aux_bias (A,). aux_classifier: (weight (K, A), bias (K,)).
    pixels: of the finest branch (C, C_0, 3, 3); of the others for each dy (C, C_b, 1, 3), or where the taps run at the
    branch's own width for each dy and dx (C, C_b). pixels_bias (C,).
    query: two times (weight, bias). join: (C, C) of the context, (C, C) of the pixels, bias. classifier: (weight,
    bias).
    """
    aux: list
    aux_bias: np.ndarray
    aux_classifier: tuple
    pixels: list
    pixels_bias: np.ndarray
    query: list
    join: tuple
    classifier: tuple
    num_classes: int


def supports(model):
    """Whether a model can be rearranged: HRNet's four branches, of which both heads read the concatenation."""
    ocrnet = getattr(model, 'ocrnet', None)
    return isinstance(getattr(ocrnet, 'backbone', None), HRNet) and len(set(ocrnet._indices)) == 1


def fold(layer):
    """ConvBN in evaluation mode -> (weight (out, in, k, k), bias (out,)) float32 of the one convolution that it is."""
    conv, norm = layer._conv, layer._batch_norm
    weight, gamma, beta, mean, variance = (
        x.numpy().astype(np.float64) for x in (conv.weight, norm.weight, norm.bias, norm._mean, norm._variance))
    gain = gamma / np.sqrt(variance + norm._epsilon)
    bias = 0 if conv.bias is None else conv.bias.numpy().astype(np.float64)
    return (weight * gain[:, None, None, None]).astype(np.float32), (beta + (bias - mean) * gain).astype(np.float32)


class Operations:
    """What all `ops` share: every weight is handed to `tensor` once."""

    def __init__(self):
        self._once = {}

    def once(self, key, arrays):
        """The results of `tensor` for the arrays that the function returns, at the first call with this key object."""
        if id(key) not in self._once:
            self._once[id(key)] = key, tuple(self.tensor(array) for array in arrays())
        return self._once[id(key)][1]

    def folded(self, layer):
        """(weight, bias) of a ConvBN."""
        return self.once(layer, lambda: fold(layer))


def head_weights(head, channels):
    """HeadWeights of an OCRHead that reads branches of these numbers of channels."""
    def matrix(layer):
        weight, bias = fold(layer)
        return weight[:, :, 0, 0], bias

    def classifier(layer):
        return layer.weight.numpy()[:, :, 0, 0], layer.bias.numpy()

    first, last = head.aux_head
    aux, aux_bias = matrix(first)
    pixels, pixels_bias = fold(head.conv3x3_ocr)
    starts = np.cumsum(channels)[:-1]
    finest, *coarser = np.split(pixels, starts, axis=1)
    taps = [[[w[:, :, dy, dx] for dx in range(3)] if own_width else w[:, :, dy:dy + 1] for dy in range(3)]
            for w, own_width in zip(coarser, AT_OWN_WIDTH)]
    join, join_bias = matrix(head.spatial_ocr.conv1x1[0])
    query = [matrix(layer) for layer in head.spatial_ocr.attention_block.f_pixel]
    return HeadWeights(
        aux=np.split(aux, starts, axis=1), aux_bias=aux_bias, aux_classifier=classifier(last),
        pixels=[finest, *taps], pixels_bias=pixels_bias, query=query, join=(*np.split(join, 2, axis=1), join_bias),
        classifier=classifier(head.cls_head), num_classes=len(last.bias))


# ---------------------------------------------------------------- the parts

def backbone(ops, net, image):
    """HRNet.branches with folded batch norm: (1, 3, H, W) -> four branches."""
    def conv(layer, x, add=None):
        return ops.conv(x, *ops.folded(layer), stride=layer._conv._stride[0], padding=layer._conv._padding, add=add,
                        relu=layer._relu or add is not None)

    def bottleneck(block, x):
        shortcut = x if block.conv_down is None else conv(block.conv_down, x)
        return conv(block.conv3, conv(block.conv2, conv(block.conv1, x)), add=shortcut)

    def module(layer, x):
        x = list(x)
        for b in range(len(x)):
            for i in range(layer._blocks):
                block = layer.branches_func[layer._block(b + 1, i + 1)]
                x[b] = conv(block.conv2, conv(block.conv1, x[b]), add=x[b])
        return [ops.relu(ops.sum([bring(layer.fuse_func, x, i, j) for j in range(len(x))])) for i in range(len(x))]

    def bring(fusion, x, i, j):
        prefix = f'residual_{fusion._name}_layer_{i + 1}_{j + 1}'
        if j > i:
            return ops.resize(conv(fusion[prefix], x[j]), x[i])
        y = x[j]
        for k in range(i - j):
            y = conv(fusion[f'{prefix}_{k + 1}'], y)
        return y

    def stage(layers, x):
        for layer in layers:
            x = module(layer, x)
        return x

    x = conv(net.conv_layer1_2, conv(net.conv_layer1_1, image))
    for block in net.la1:
        x = bottleneck(block, x)
    x = stage(net.st2, [conv(layer, x) for layer in net.tr1.values()])
    x = stage(net.st3, [*x, conv(net.tr2['transition_tr2_layer_3'], x[-1])])
    return stage(net.st4, [*x, conv(net.tr3['transition_tr3_layer_4'], x[-1])])


def pixels_and_statistics(ops, w, finest, coarser, enlarge, enlarge_shifted):
    """A strip of R rows of the pixel features, and what the object regions need of it.

    finest: (1, C_0, R + 2, W), one row more on both sides, zero outside of the image. coarser: three (1, C_b, r_b, w_b)
    with the rows that the strip depends on. enlarge: (R, r_1 + r_2 + r_3), bilinear interpolation of these rows, side
    by side. enlarge_shifted: (R, 3 r_1 + 3 r_2 + 3 r_3), of each branch the same for the row above, the row, the row
    below; zero for rows outside of the image.
    Returns pixels (1, C, R, W); and of the auxiliary logits a: top (K, 1), their maximum m over the strip; total
    (K, 1), the sum of exp(a - m); regions (K, C), the sum of exp(a - m) * pixels.
    """
    def widened(x):
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


def logits_and_attention(ops, w, attention, pixels, key, context, inside=None):
    """The head behind the object regions, for a strip of rows.

    pixels: (1, C, R, W); with attention HALO rows more on both sides, anything outside of the image.
    key: (K, D), with the scale of the similarity in it. context: (C, K), the object vectors behind f_up's convolution.
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
    first, second, last = attention.atten_head
    y = ops.multiply(ocr, inside)
    y = ops.multiply(ops.conv(y, *ops.folded(first), padding=(0, 1), relu=True), ops.rows(inside, 1, -1))
    y = ops.conv(y, *ops.folded(second), padding=(0, 1), relu=True)
    y = ops.conv(y, ops.once(last, lambda: (last.weight.numpy(),))[0])
    return logits, ops.sigmoid(ops.full_precision(y))


def object_weights(attention_block):
    """What `objects` needs of an ObjectAttention: {name: float32 array}."""
    layers = {'object_0': attention_block.f_object[0], 'object_1': attention_block.f_object[1],
              'down': attention_block.f_down, 'up': attention_block.f_up}
    folded = {name: fold(layer) for name, layer in layers.items()}
    return {'scale': np.float32(attention_block._scale),
            **{f'{name}_weight': weight[:, :, 0, 0] for name, (weight, _) in folded.items()},
            **{f'{name}_bias': bias[:, None] for name, (_, bias) in folded.items()}}


def objects(w, regions):
    """Object regions (K, C) float32 array -> (key, context) of `logits_and_attention`, arrays of the sizes there."""
    def layer(name, x):
        return np.maximum(w[f'{name}_weight'] @ x + w[f'{name}_bias'], 0)

    key = layer('object_1', layer('object_0', regions.T))
    # The weights of a pixel's mix sum to 1, so f_up's bias may be added before the mix.
    context = w['up_weight'] @ layer('down', regions.T) + w['up_bias']
    return np.ascontiguousarray(w['scale'] * key.T), context


# ---------------------------------------------------------------- rows

def bilinear_rows(size, out):
    """float32 (out, size): interpolation of `size` rows to `out`, half-pixel centres (as models.layers.resize)."""
    matrix = np.zeros([out, size])
    source = np.maximum((np.arange(out) + 0.5) * (size / out) - 0.5, 0)
    low = np.minimum(source.astype(int), size - 1)
    part = source - low
    np.add.at(matrix, (np.arange(out), low), 1 - part)
    np.add.at(matrix, (np.arange(out), np.minimum(low + 1, size - 1)), part)
    return matrix.astype(np.float32)


class Strip(NamedTuple):
    """A strip of output rows [start, stop), and what of the coarser branches it needs: rows from low[b] on of each.

    enlarge, enlarge_shifted: as pixels_and_statistics has them.
    """
    start: int
    stop: int
    low: list
    enlarge: np.ndarray
    enlarge_shifted: np.ndarray


def strips(height, coarser_heights, rows):
    """List of Strip of about `rows` rows each, and for the three coarser branches the number of rows they all take."""
    number = -(-height // rows)
    rows = -(-height // number)
    matrices = [bilinear_rows(size, height) for size in coarser_heights]
    bounds = [(start, min(start + rows, height)) for start in range(0, height, rows)]

    def needed(matrix, start, stop):
        used = np.flatnonzero(matrix[max(start - 1, 0):stop + 1].any(axis=0))
        return used[0], used[-1] + 1

    counts = [max(high - low for low, high in (needed(m, *b) for b in bounds)) for m in matrices]
    result = []
    for start, stop in bounds:
        lows, enlarge, shifted = [], [], []
        for matrix, count in zip(matrices, counts):
            low = min(needed(matrix, start, stop)[0], matrix.shape[1] - count)
            padded = np.pad(matrix[:, low:low + count], [(1, 1), (0, 0)])
            lows.append(int(low))
            enlarge.append(padded[start + 1:stop + 1])
            shifted += [padded[start + dy:stop + dy] for dy in range(3)]
        result.append(Strip(start, stop, lows, np.concatenate(enlarge, axis=1), np.concatenate(shifted, axis=1)))
    return result, counts
