"""The losses and their gradients against float64 formulas in NumPy, and against tests/reference/losses.npz."""
from collections.abc import Callable, Iterator

import numpy as np
import paddle

from losses import bootstrapped_cross_entropy, dice
from tools.machine.networks import EPS, ROOT
from tools.machine.rows import NOT_RUN, Row, Settings, judged

SHAPE = (2, 19, 48, 80)
VOID = 255
MANY, FEW = (200, 0.05), (2000, 9.0)  # min_K and loss_th: most pixels are above the threshold, hardly any
REFERENCE = ROOT / 'tests/reference/losses.npz'
STEP = 3  # of the gradients that the reference keeps
# An exponential's argument, up to 24 here, is off by 24 EPS / 2, and the probability twice, in a sum and before it; the
# sums over pixels go through at least eight partial sums.
Formula = Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray]]


def tolerance(pixels: int) -> float:
    """Relative error of a float32 loss, and of its gradient against its largest element."""
    return 24 * EPS['fp32'] + float(np.sqrt(pixels / 8)) * EPS['fp32']


def softmax(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities, their logarithms), over axis 1."""
    z = logits - logits.max(1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    return np.exp(log_p), log_p


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """(N, C, H, W), all 0 at void."""
    return (labels[:, None] == np.arange(classes)[:, None, None]).astype(np.float64)


def plain_dice(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """The dice loss as its definition reads, and its gradient; in float64."""
    p, _ = softmax(logits)
    y = one_hot(labels, logits.shape[1])
    valid = (labels != VOID)[:, None]
    axes = (0, 2, 3)
    intersection = (p * y).sum(axes)
    union = (p * valid).sum(axes) + y.sum(axes) + 1e-5
    slope = valid * (2 * (intersection / union**2)[:, None, None] - 2 * y / union[:, None, None]) / len(union)
    gradient = p * (slope - (slope * p).sum(1, keepdims=True))
    return float((1 - 2 * intersection / union).mean()), gradient


def plain_bootstrapped(logits: np.ndarray, labels: np.ndarray, min_k: int,
                       loss_th: float) -> tuple[float, np.ndarray]:
    """The bootstrapped cross entropy as its definition reads, and its gradient; in float64."""
    p, log_p = softmax(logits)
    y = one_hot(labels, logits.shape[1])
    nll = -(log_p * y).sum(1)
    weights = np.zeros_like(nll)
    for image, weight in zip(nll, weights):
        hard = image > loss_th
        if hard.sum() <= min_k:
            hard = np.zeros(image.size, bool)
            hard[np.argsort(-image, axis=None)[:min_k]] = True
            hard = hard.reshape(image.shape)
        weight[hard] = 1 / (hard.sum() * len(nll))
    gradient = weights[:, None] * (p * y.sum(1, keepdims=True) - y)
    return float((weights * nll).sum()), gradient


def value_and_gradient(loss: Callable[..., paddle.Tensor], logits: np.ndarray, labels: np.ndarray,
                       *arguments: float) -> tuple[float, np.ndarray]:
    """By this repository, in float32 on the current device."""
    z = paddle.to_tensor(logits.astype(np.float32), stop_gradient=False)
    value = loss(z, paddle.to_tensor(labels), *arguments)
    value.backward()
    assert z.grad is not None
    return float(value), z.grad.numpy()


def compared(name: str, found: tuple[float, np.ndarray], expected: tuple[float, np.ndarray], limit: float) -> Iterator[
        Row]:
    """Rows for the value and for the gradient."""
    off = abs(found[0] - expected[0]) / max(abs(expected[0]), 1e-30)
    yield judged(f'{name}: loss', off <= limit, f'{expected[0]:.7f} within {limit * abs(expected[0]):.0e}',
                 f'{found[0]:.7f}', data={'off': off, 'allowed': limit})
    scale = max(float(np.abs(expected[1]).max()), 1e-30)
    off = float(np.abs(found[1] - expected[1]).max()) / scale
    yield judged(f'{name}: gradient', bool(off <= limit), f'off by at most {limit:.0e}', f'off by {off:.0e}',
                 data={'off': off, 'allowed': limit})


def losses(settings: Settings) -> Iterator[Row]:
    """Dice and both branches of the bootstrapped cross entropy, with void pixels."""
    rng = np.random.default_rng(settings.seed)
    logits = (rng.normal(size=SHAPE) * 3).astype(np.float32)
    labels = rng.integers(0, SHAPE[1], (SHAPE[0], *SHAPE[2:]))
    labels[rng.random(labels.shape) < 0.3] = VOID
    limit = tolerance(labels.size)
    exact = logits.astype(np.float64)
    yield from compared('dice', value_and_gradient(dice, logits, labels), plain_dice(exact, labels), limit)
    for kind, arguments in (('many hard pixels', MANY), ('few', FEW)):
        yield from compared(f'bootstrapped CE, {kind}',
                            value_and_gradient(bootstrapped_cross_entropy, logits, labels, *arguments),
                            plain_bootstrapped(exact, labels, *arguments), limit)
    yield from reference(settings)


def reference(settings: Settings) -> Iterator[Row]:
    """The recipe's published losses, as their results were kept."""
    if not REFERENCE.is_file():
        yield Row('losses of the published code', status=NOT_RUN,
                  reason='tests/reference/losses.npz is not in this copy of the repository')
        return
    with np.load(REFERENCE) as file:
        kept = dict(file)
    worst, limit = 0.0, tolerance(kept['labels'].size)
    cases: dict[str, tuple[Callable[..., paddle.Tensor], tuple[float, ...]]] = {'dice': (dice, ())}
    for min_k, loss_th in ((100, 0.05), (700, 3.0), (100, 9.0), (700, 9.0)):
        cases[f'bootce_K{min_k}_th{loss_th}'] = bootstrapped_cross_entropy, (min_k, loss_th)
    for name, (loss, arguments) in cases.items():
        for ending, labels in (('noignore', 'labels'), ('ignore', 'labels_ignore')):
            value, gradient = value_and_gradient(loss, kept['logits'], kept[labels].astype(np.int64), *arguments)
            expected, expected_gradient = kept[f'{name}_{ending}'], kept[f'{name}_{ending}_grad']
            worst = max(worst, abs(value - float(expected)) / abs(float(expected)), float(
                np.abs(gradient[:, :, ::STEP, ::STEP] - expected_gradient).max() / np.abs(expected_gradient).max()))
    # The published code computed in float32, too.
    yield judged(f'losses of the published code: {2 * len(cases)} cases', worst <= 2 * limit,
                 f'off by at most {2 * limit:.0e}', f'off by {worst:.0e}', data={'off': worst})
