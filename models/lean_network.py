"""MscaleOCRNet for evaluation, of the parts of models.lean: strips within a scale, then the fusion of scales."""
import numpy as np
import paddle

from models import lean
from models.layers import resize, scaled_size
from models.lean_ops import PaddleOps

CPU_STRIP = 1 << 15  # pixels at the backbone's resolution
GPU_STRIP = 1 << 18
CHUNK = 1 << 24  # floats of an enlarged image that exist at once


class PaddleParts:
    """The parts of models.lean by Paddle, for an MscaleOCRNet that models.lean.supports; arrays are tensors."""

    def __init__(self, model, dtype='float32'):
        net, head = model.ocrnet.backbone, model.ocrnet.head
        self.ops, self.net, self.attention = PaddleOps(dtype), net, model.scale_attn
        self.weights = lean.head_weights(head, net.branch_channels)
        self.object_weights = lean.object_weights(head.spatial_ocr.attention_block)
        self.strip = CPU_STRIP if paddle.get_device() == 'cpu' else GPU_STRIP

    def backbone(self, image):
        return lean.backbone(self.ops, self.net, image.astype(self.ops.dtype))

    def pixels(self, finest, coarser, enlarge, enlarge_shifted):
        pixels, *statistics = lean.pixels_and_statistics(
            self.ops, self.weights, finest, coarser, self.ops.tensor(enlarge), self.ops.tensor(enlarge_shifted))
        return pixels, [x.numpy() for x in statistics]

    def logits(self, pixels, key, context, inside):
        attention = None if inside is None else self.attention
        key, context, inside = (None if x is None else self.ops.tensor(x) for x in (key, context, inside))
        logits, attention = lean.logits_and_attention(self.ops, self.weights, attention, pixels, key, context, inside)
        return [None if x is None else x.astype('float32') for x in (logits, attention)]

    def join(self, strips):
        return strips[0] if len(strips) == 1 else paddle.concat(strips, axis=2)

    def zeros(self, x, rows):
        return paddle.zeros([1, x.shape[1], rows, x.shape[3]], x.dtype)


class LeanNetwork:
    """(1, 3, H, W) float32 tensor -> [logits (1, K, H, W) float32], those of MscaleOCRNet.hierarchy up to rounding.

    parts: PaddleParts, or an object like it with NumPy arrays. n_scales: as of the model. Of the enlarged features,
    those of the head and the logits at the highest scale there never is more than a strip.
    """

    def __init__(self, parts, n_scales):
        self.parts, self.n_scales = parts, list(n_scales)

    @paddle.no_grad()
    def __call__(self, x):
        size, fused = x.shape[2:], None
        for scale in sorted(self.n_scales, reverse=True):
            scaled = scaled_size(size, scale)
            logits, attention = self.one_scale(resize(x, scaled), attend=fused is not None)
            if fused is None:
                fused, above = logits, scaled
                continue
            fused = through(fused, above, scaled if scale >= 1 else size)
            logits, attention = resize(logits, scaled), resize(attention, scaled)
            if scale >= 1:  # attention * logits + (1 - attention) * fused
                fused.add_(logits.subtract_(fused).multiply_(attention))
                above = scaled
            else:
                fused.multiply_(1 - resize(attention, size)).add_(resize(logits.multiply_(attention), size))
                above = size
        return [through(fused, above, size)]

    @paddle.no_grad()
    def attention_map(self, x, scale):
        """As MscaleOCRNet.attention_map: (1, 3, H, W) -> (1, 1, H, W) in (0, 1)."""
        scaled = scaled_size(x.shape[2:], scale)
        return resize(resize(self.one_scale(resize(x, scaled), attend=True)[1], scaled), x.shape[2:])

    def one_scale(self, image, attend):
        """(logits (1, K, h, w), attention (1, 1, h, w) or None), float32 tensors at the backbone's resolution."""
        parts = self.parts
        finest, *coarser = parts.backbone(image)
        del image  # 0.1 GB at 2048x4096
        height, width = finest.shape[2:]
        strips, counts = lean.strips(height, [x.shape[2] for x in coarser], max(1, parts.strip // width))
        pixels, statistics = [], []
        for s in strips:
            rows = [x[:, :, low:low + count] for x, low, count in zip(coarser, s.low, counts)]
            features, values = parts.pixels(self._window([finest], s.start - 1, s.stop + 1), rows, s.enlarge,
                                            s.enlarge_shifted)
            pixels.append(features)
            statistics.append(values)
        del finest, coarser
        key, context = lean.objects(parts.object_weights, _regions(*zip(*statistics)))
        logits, attentions = [], []
        for i, s in enumerate(strips):
            inside = None
            x = pixels[i]
            if attend:
                x = self._window(pixels, s.start - lean.HALO, s.stop + lean.HALO)
                rows = np.arange(s.start - lean.HALO, s.stop + lean.HALO)
                inside = ((rows >= 0) & (rows < height)).astype(np.float32).reshape(1, 1, -1, 1)
            else:
                pixels[i] = None
            strip_logits, attention = parts.logits(x, key, context, inside)
            logits.append(strip_logits)
            attentions.append(attention)
        return [_tensor(parts.join(x)) if x[0] is not None else None for x in (logits, attentions)]

    def _window(self, strips, start, stop):
        """Rows [start, stop) of what the strips hold one below the other; zeros for rows that they do not have."""
        pieces, first = [], 0
        for x in strips:
            low, high = max(start - first, 0), min(stop - first, x.shape[2])
            if low < high:
                pieces.append(x[:, :, low:high])
            first += x.shape[2]
        if start < 0:
            pieces.insert(0, self.parts.zeros(strips[0], -start))
        if stop > first:
            pieces.append(self.parts.zeros(strips[0], stop - first))
        return self.parts.join(pieces)


def _tensor(x):
    return x if isinstance(x, paddle.Tensor) else paddle.to_tensor(x)


def _regions(tops, totals, sums):
    """Object regions (K, C): the pixels' mean weighted by a softmax over space, of the sums over strips."""
    top = np.max(tops, axis=0)
    gains = [np.exp(t - top) for t in tops]
    return sum(s * g for s, g in zip(sums, gains)) / sum(t * g for t, g in zip(totals, gains))


def through(x, above, size):
    """resize(resize(x, above), size) for (1, K, h, w), without ever having the large image whole.

    Rows: both maps as one matrix. Columns: one map after the other, for a few rows at a time.
    """
    if list(above) == list(size):
        return resize(x, size)
    rows = lean.bilinear_rows(above[0], size[0]) @ lean.bilinear_rows(x.shape[2], above[0])
    x = paddle.matmul(paddle.to_tensor(rows), x)
    step = max(1, CHUNK // (x.shape[1] * above[1]))
    return paddle.concat([resize(resize(part, [part.shape[2], above[1]]), [part.shape[2], size[1]])
                          for part in (x[:, :, i:i + step] for i in range(0, size[0], step))], axis=2)
