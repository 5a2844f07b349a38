"""The losses as their definitions read, for autograd: what the library's results are compared with.

In float64, where sums over 38000 pixels matter: in float32 these formulas are off by 1e-5 themselves.
"""
import paddle
import paddle.nn.functional as F

from tests.rounding import EPS, of_sum


def tolerance(pixels):
    """Relative error of a float32 loss, and of its gradient against its largest element, where the truth is float64.

    The argument of an exponential, a difference of logits of up to 24 in these tests, is off by 24 * EPS / 2, and so
    is the probability, relatively; it is there twice, in a sum and in front of it. A sum over pixels goes through at
    least 8 partial sums (the lanes of AVX2).
    """
    return 24 * EPS + of_sum(pixels / 8)


TOLERANCE = tolerance(2 * 6 * 7)  # 3.2e-6: of the small cases, measured up to 7e-7


def dice(logits, labels, ignore_index=255):
    num_classes = logits.shape[1]
    valid = labels != ignore_index
    mask = valid.astype(logits.dtype).unsqueeze(1)
    target = paddle.where(valid, labels, paddle.zeros_like(labels))
    p = F.softmax(logits, axis=1) * mask
    y = F.one_hot(target, num_classes).astype(logits.dtype).transpose([0, 3, 1, 2]) * mask
    intersection, union = (p * y).sum([0, 2, 3]), (p + y).sum([0, 2, 3])
    return (1 - 2 * intersection / (union + 1e-5)).mean()


def bootstrapped_cross_entropy(logits, labels, min_K, loss_th, ignore_index=255):
    valid = labels != ignore_index
    target = paddle.where(valid, labels, paddle.zeros_like(labels))
    log_p = paddle.take_along_axis(F.log_softmax(logits, axis=1), target.unsqueeze(1), 1).squeeze(1)
    images = []
    for nll in paddle.where(valid, -log_p, paddle.zeros_like(log_p)).flatten(1):
        if int((nll > loss_th).sum()) > min_K:
            images.append(nll.masked_select(nll > loss_th).mean())
        else:
            images.append(paddle.sort(nll, descending=True)[:min_K].mean())
    return sum(images) / len(images)
