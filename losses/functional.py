"""The recipe's two losses as pure functions of logits and labels, or of the statistics both have in common."""
from typing import Literal

import paddle

from common.errors import UserError

from .statistics import SoftmaxStatistics, full_precision, is_on_host, softmax_statistics


def dice(logits: paddle.Tensor, labels: paddle.Tensor, ignore_index: int = 255) -> paddle.Tensor:
    """Soft dice loss, averaged over the classes (Milletari et al. 2016, here with plain sums in the denominator as in
    the recipe's published training code).

    With p the softmax over classes, y the one-hot labels and sums over batch and space:
    `mean_c 1 - 2 sum(p_c y_c) / (sum(p_c) + sum(y_c) + 1e-5)`. Void pixels are in none of the sums. A batch that is all
    void has loss 0.

    Args:
        logits (Tensor): (N, C, H, W), any float dtype.
        labels (Tensor): (N, H, W) or (N, 1, H, W), integer; not modified.
        ignore_index (int): the label of void pixels.

    Returns:
        Tensor: 0-d, float32 (float64 for float64 logits).

    Raises:
        UserError: see `softmax_statistics`.
    """
    return dice_from_statistics(softmax_statistics(logits, labels, ignore_index))


def bootstrapped_cross_entropy(logits: paddle.Tensor, labels: paddle.Tensor, min_K: int, loss_th: float,
                               ignore_index: int = 255) -> paddle.Tensor:
    """Cross entropy of an image's hardest pixels, averaged over the images (the recipe's published configuration).

    Per image: if more than `min_K` pixels have a loss above `loss_th`, the mean over those, else the sum of the `min_K`
    largest losses divided by `min_K`. An image with fewer than `min_K` valid pixels uses all of them and still divides
    by `min_K`, as the published code does: the few pixels of a crop that is nearly all void get no extra weight. (For
    an image with fewer than `min_K` pixels, void or not, that is the mean over its pixels.) An image that is all void
    adds 0 to the mean over images. Pixels that tie for the last of the `min_K` places share the remaining weight
    equally.

    Args:
        logits (Tensor): (N, C, H, W), any float dtype.
        labels (Tensor): (N, H, W) or (N, 1, H, W), integer; not modified.
        min_K (int): the least number of pixels, at least 1.
        loss_th (float): the loss from which a pixel counts as hard, at least 0.
        ignore_index (int): the label of void pixels.

    Returns:
        Tensor: 0-d, float32 (float64 for float64 logits).

    Raises:
        UserError: see `softmax_statistics`; `min_K` or `loss_th` out of range.
    """
    check_bootstrap(min_K, loss_th)
    return bootstrapped_from_statistics(softmax_statistics(logits, labels, ignore_index), min_K, loss_th)


@full_precision
def dice_from_statistics(statistics: SoftmaxStatistics) -> paddle.Tensor:
    """`dice` from `SoftmaxStatistics`."""
    _, probability, intersection, count = statistics
    loss = (1 - 2 * intersection / (probability + count + 1e-5)).mean()
    return loss * (count.sum() > 0).astype(loss.dtype)


@full_precision
def bootstrapped_from_statistics(statistics: SoftmaxStatistics, min_K: int, loss_th: float) -> paddle.Tensor:
    """`bootstrapped_cross_entropy` from `SoftmaxStatistics`."""
    return (statistics.nll * _bootstrap_weights(statistics.nll, min_K, loss_th)).sum()


@paddle.no_grad()
def _bootstrap_weights(nll: paddle.Tensor, min_K: int, loss_th: float) -> paddle.Tensor:
    """The weight of every pixel (N, H*W) in the batch's loss, given its losses, which are 0 at void.

    Void pixels may be among the `min_K`: their loss and its gradient are 0 whatever their weight.
    """
    num_images, num_pixels = nll.shape
    places = min(min_K, num_pixels)
    threshold = paddle.full([num_images, 1], loss_th, nll.dtype)
    num_above = _per_image(nll > threshold)
    enough = num_above > min_K
    # Early in training this avoids the selection, a fifth of the forward pass on a CPU; a GPU would have to wait.
    if not is_on_host(nll) or not enough.all():
        threshold = paddle.where(enough, threshold, _kth_largest(nll, places))
    above, tied = nll > threshold, nll == threshold
    size = paddle.where(enough, num_above, paddle.full_like(num_above, places)).astype(nll.dtype)
    share = (size - _per_image(above).astype(nll.dtype)) / _per_image(tied).clip(min=1).astype(nll.dtype)
    return (above.astype(nll.dtype) + tied.astype(nll.dtype) * share) / (size * num_images)


def _kth_largest(x: paddle.Tensor, k: int) -> paddle.Tensor:
    """The k-th largest of each row of non-negative numbers, (N, 1).

    On a GPU Paddle's topk gives each image to one block of threads, which for a k below a quarter of the pixels
    searches them k / 5 times: 20,000 times for 100,000. There the bits of the result are found instead, the highest
    first: as integers, non-negative floats have the same order.
    """
    if is_on_host(x):
        return paddle.topk(x, k, axis=1, sorted=False)[0].min(axis=1, keepdim=True)
    number: Literal['int32', 'int64'] = 'int64' if x.dtype == paddle.float64 else 'int32'
    bits = paddle.view(x, number)
    found = paddle.zeros([x.shape[0], 1], number)
    for bit in reversed(range(63 if number == 'int64' else 31)):
        candidate = found + paddle.full([], 1 << bit, number)
        found = paddle.where(_per_image(bits >= candidate) >= k, candidate, found)
    return paddle.view(found, 'float64' if number == 'int64' else 'float32')


def _per_image(mask: paddle.Tensor) -> paddle.Tensor:
    return mask.astype('int64').sum(axis=1, keepdim=True)


def check_bootstrap(min_K: float, loss_th: float) -> None:
    """UserError if `min_K` or `loss_th` is out of range."""
    if min_K < 1 or min_K != int(min_K):
        raise UserError(f'min_K: expected a whole number of pixels, at least 1, found {min_K}; the recipe has 100000')
    if not loss_th >= 0:
        raise UserError(f'loss_th: expected a loss of at least 0, found {loss_th}; the recipe has 0.05')
