"""The statistics that softmax-based losses need of a batch, computed without storing the batch's softmax.

The loss of a 2048x1024 crop with 19 classes has 160 MB of logits per output. Autograd over the textbook formulas keeps
several arrays of that size per loss. Here one pass over strips of pixels reduces the logits to one number per pixel and
a few per class, from which the losses are computed. The backward pass recomputes the softmax strip by strip.
"""
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar

import paddle
from paddle.autograd import PyLayer

from common.errors import UserError

# Pixels per strip. On a CPU a strip of 19 float32 classes (2.5 MB) should stay in the cache, and be small enough for
# malloc to reuse its pages: temporaries in fresh pages cost four times as much. A GPU wants few large kernels.
CPU_STRIP = 1 << 15
GPU_STRIP = 1 << 18

Parameters = ParamSpec('Parameters')
Result = TypeVar('Result')


class SoftmaxStatistics(NamedTuple):
    """Sums and losses of `p = softmax(logits)` over the valid pixels.

    nll: (N, H*W), -log p of the labelled class; 0 at void.
    probability: (C,), sum of p over batch and space.
    intersection: (C,), the same sum over the pixels labelled with the class.
    class_count: (C,), number of pixels labelled with the class; carries no gradient.
    All are float32, or float64 if the logits are.
    """
    nll: paddle.Tensor
    probability: paddle.Tensor
    intersection: paddle.Tensor
    class_count: paddle.Tensor


def full_precision(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorator: run `function` outside automatic mixed precision: float16 holds neither the sums over millions of
    pixels nor weights of about 1e-6."""

    @functools.wraps(function)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with paddle.amp.auto_cast(enable=False):
            return function(*args, **kwargs)

    return wrapped


@full_precision
def softmax_statistics(logits: paddle.Tensor, labels: paddle.Tensor, ignore_index: int = 255) -> SoftmaxStatistics:
    """Reduce logits to `SoftmaxStatistics`, differentiable in the logits.

    The graph keeps the logits, the labels and one float per pixel (the log of the softmax's denominator).

    Args:
        logits (Tensor): (N, C, H, W), any float dtype. The gradient has the same dtype; the arithmetic is float32, or
            float64 for float64 logits.
        labels (Tensor): (N, H, W) or (N, 1, H, W), integer class ids or `ignore_index`. Read only.
        ignore_index (int): the label of void pixels, which contribute nothing.

    Raises:
        UserError: shapes that do not fit, labels that are not integers; on a CPU also labels outside of the classes.
            On a GPU, where the check would wait for the device, these make every loss NaN (see `check_range`).
    """
    labels = _checked_labels(logits, labels)
    num_classes = logits.shape[1]
    on_host = is_on_host(logits)
    if on_host:
        check_range(labels, num_classes, ignore_index)
    else:
        outside = _outside(labels, num_classes, ignore_index)
        labels = paddle.where(outside, paddle.full_like(labels, ignore_index), labels)
    nll, probability, intersection = _Statistics.apply(logits, labels, ignore_index)
    bins = paddle.where(labels == ignore_index, paddle.full_like(labels, num_classes), labels).flatten()
    count = _sums_by_class(bins, None, num_classes).astype(nll.dtype)
    if not on_host:
        broken = paddle.where(outside.any(), paddle.full([], float('nan'), nll.dtype), paddle.zeros([], nll.dtype))
        nll, count = nll + broken, count + broken
    return SoftmaxStatistics(nll, probability, intersection, count)


def is_on_host(x: paddle.Tensor) -> bool:
    """Whether reading a value of x costs nothing. On a device, a read waits for all work that was started before."""
    return x.place.is_cpu_place()


def check_range(labels: paddle.Tensor, num_classes: int, ignore_index: int) -> None:
    """UserError if labels are neither a class nor ignore_index."""
    outside = _outside(labels, num_classes, ignore_index)
    if outside.any():
        found = sorted(set(labels.masked_select(outside).numpy().tolist()))
        raise UserError(f'labels: expected ids 0..{num_classes - 1} or {ignore_index} (void), found {found[:5]}; '
                         'map the label files to train ids')


def _outside(labels: paddle.Tensor, num_classes: int, ignore_index: int) -> paddle.Tensor:
    return (labels != ignore_index) & ((labels < 0) | (labels >= num_classes))


def _sums_by_class(bins: paddle.Tensor, weights: paddle.Tensor | None, num_classes: int) -> paddle.Tensor:
    """(num_classes,), the sum of the float64 weights (None: the number) of each class's entries; others are left out.

    On a GPU Paddle's bincount reads the range of its input back to the host, and adds in an order that varies.
    """
    if is_on_host(bins):
        return paddle.bincount(bins, weights=weights, minlength=num_classes + 1)[:num_classes]
    total = paddle.zeros([num_classes], 'float64')
    classes = paddle.arange(num_classes, dtype=bins.dtype).unsqueeze(1)
    for start in range(0, bins.shape[0], GPU_STRIP):
        one_hot = (classes == bins[start:start + GPU_STRIP]).astype('float64')
        total += one_hot.sum(axis=1) if weights is None else paddle.matmul(one_hot, weights[start:start + GPU_STRIP])
    return total


class _Statistics(PyLayer):
    """(logits, labels) -> nll, probability, intersection. With p the softmax, t a pixel's label, e_t its one-hot vector
    and d the incoming gradients,

        d logits = p * (d_probability + s) - r e_t,
        r = d_nll - d_intersection[t] p_t,  s = r - <d_probability, p>.

    The sums over classes and over pixels are products with vectors: several times faster than `sum` on a CPU, and as
    matrix-vector products they stay out of a GPU's TF32 units.
    """

    @staticmethod
    @full_precision
    def forward(ctx: Any, logits: paddle.Tensor, labels: paddle.Tensor,
                ignore_index: int) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        dtype = _work_dtype(logits)
        num_images, num_classes, _, width = logits.shape
        column, row = paddle.ones([num_classes], dtype), paddle.ones([width], dtype)
        probability = paddle.zeros([num_classes], 'float64')
        nll_strips, normalizer_strips = [], []
        for _, z, target, valid in _strips(logits, labels, ignore_index):
            top = _max_over_classes(z)
            z.subtract_(top)
            z_target = _at_target(z, target)
            total = paddle.matmul(column, z.exp_())
            log_total = total.log()
            nll_strips.append(paddle.where(valid, log_total - z_target, paddle.zeros_like(top)))
            normalizer_strips.append(top + log_total)
            z.multiply_(valid.astype(dtype) / total)
            # Image rows first, then float64: one long float32 sum is off by 3e-5.
            rows = paddle.matmul(z.reshape([num_classes, -1, width]), row)
            probability += rows.astype('float64').sum(axis=1)
        nll, normalizer = (paddle.concat(strips).reshape([num_images, -1])
                           for strips in (nll_strips, normalizer_strips))
        valid = labels != ignore_index
        # float64, because a large class adds up millions of probabilities one after the other.
        p_target = valid.astype('float64') * paddle.exp(-nll).astype('float64')
        bins = paddle.where(valid, labels, paddle.zeros_like(labels)).flatten()
        intersection = _sums_by_class(bins, p_target.flatten(), num_classes)
        ctx.save_for_backward(logits, labels, normalizer)
        ctx.ignore_index = ignore_index
        return nll, probability.astype(dtype), intersection.astype(dtype)

    @staticmethod
    @full_precision
    def backward(  # type: ignore[override]  # Paddle's stub lacks the None of inputs without gradient
            ctx: Any, d_nll: paddle.Tensor, d_probability: paddle.Tensor,
            d_intersection: paddle.Tensor) -> tuple[paddle.Tensor, None]:
        logits, labels, normalizer = ctx.saved_tensor()
        num_images, num_classes, height, width = logits.shape
        grad = paddle.empty([num_images * num_classes * height, width], _work_dtype(logits))
        for (image, pixels), p, target, valid in _strips(logits, labels, ctx.ignore_index):
            p.subtract_(normalizer[image, pixels]).exp_()
            r = d_nll[image, pixels] - d_intersection.gather(target) * _at_target(p, target)
            s = r - paddle.matmul(d_probability, p)
            strip = p * d_probability.unsqueeze(1)
            strip.add_(p.multiply_(s))
            strip.put_along_axis_(target.unsqueeze(0), -r.unsqueeze(0), 0, 'add')
            strip.multiply_(valid.astype(strip.dtype))
            # scatter_ copies row by row and in place, three times faster than assigning to a slice.
            rows = paddle.arange(pixels.start // width, pixels.stop // width)
            rows = (paddle.arange(num_classes) + image * num_classes).unsqueeze(1) * height + rows
            grad.scatter_(rows.flatten(), strip.reshape([-1, width]))
        return grad.reshape(logits.shape).astype(logits.dtype), None


def _strips(logits: paddle.Tensor, labels: paddle.Tensor, ignore_index: int) -> Iterator[
        tuple[tuple[int, slice], paddle.Tensor, paddle.Tensor, paddle.Tensor]]:
    """Yield ((image, slice of pixels), logits (C, pixels), target (pixels,), valid (pixels,)) for whole rows of images.

    The logits are a float32 or float64 copy that may be overwritten; void pixels get target 0.
    """
    logits = logits.astype(_work_dtype(logits))
    num_images, num_classes, height, width = logits.shape
    logits = logits.reshape([num_images, num_classes, height * width])
    size = CPU_STRIP if logits.place.is_cpu_place() else GPU_STRIP
    size = max(size // width, 1) * width
    for image in range(num_images):
        for start in range(0, height * width, size):
            pixels = slice(start, min(start + size, height * width))
            # crop copies with memcpy's speed; indexing gives a view whose copy costs up to ten times as much.
            strip = paddle.crop(logits, [1, num_classes, pixels.stop - start], [image, 0, start]).squeeze(0)
            label = labels[image, pixels]
            valid = label != ignore_index
            yield (image, pixels), strip, paddle.where(valid, label, paddle.zeros_like(label)), valid


def _max_over_classes(z: paddle.Tensor) -> paddle.Tensor:
    """Maximum over axis 0 by halving, a fifth of the time of `max` on a CPU; the halves may overlap."""
    while z.shape[0] > 1:
        half = (z.shape[0] + 1) // 2
        z = paddle.maximum(z[:half], z[-half:])
    return z[0]


def _at_target(values: paddle.Tensor, target: paddle.Tensor) -> paddle.Tensor:
    # No broadcasting: Paddle would copy the values first. Paddle 2.6 reads from the device here to check the indices;
    # `gather` on the flat values does not, and takes twice the time.
    return paddle.take_along_axis(values, target.unsqueeze(0), 0, broadcast=False).squeeze(0)


def _work_dtype(logits: paddle.Tensor) -> Literal['float32', 'float64']:
    return 'float64' if logits.dtype == paddle.float64 else 'float32'


def _checked_labels(logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
    """Labels as int64 (N, H*W)."""
    if logits.ndim != 4:
        raise UserError(f'logits: expected shape (N, C, H, W), found {tuple(logits.shape)}; pass one output at a time')
    num_images, _, height, width = logits.shape
    if tuple(labels.shape) not in ((num_images, height, width), (num_images, 1, height, width)):
        raise UserError(f'labels: expected shape {(num_images, height, width)} to go with logits '
                         f'{tuple(logits.shape)}, found {tuple(labels.shape)}; resize the logits to the labels')
    if labels.dtype not in (paddle.int64, paddle.int32, paddle.int16, paddle.uint8, paddle.int8):
        raise UserError(f'labels: expected integer class ids, found dtype {labels.dtype}; use int64')
    labels = labels.reshape([num_images, -1])
    return labels if labels.dtype == paddle.int64 else labels.astype('int64')
