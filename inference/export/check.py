"""An exported file against the network of val.py, on images made here."""
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle
from tqdm import tqdm

from common.errors import UserError
from inference.export.whole import Settings
from inference.predictor import Predictor

logger = logging.getLogger(__name__)

SIZES = ((96, 160), (75, 106), (131, 97))  # (H, W) where any size will do: even, scaled sizes that round, odd
RANGE = 1e-3  # of fp32: of the range of the logits
CLASSES = 1e-3  # of fp16: of the pixels


class Case(NamedTuple):
    """image: what the exported file takes. logits: of the network of val.py, float32 (1, K, H, W)."""
    image: np.ndarray
    logits: np.ndarray


def cases(network: Any, settings: Settings, transforms: Callable[[dict[str, Any]], dict[str, Any]]) -> list[Case]:
    """Three cases; network: of inference.backends.create. transforms: of the validation images, from BGR."""
    predict = Predictor(network, flip_horizontal=settings.flip)
    found = []
    sizes = [settings.size] * 3 if settings.size else list(SIZES)
    for seed, size in enumerate(tqdm(sizes, desc="check, val.py's network", unit='image')):
        image = picture(seed, size)
        normalised = transforms({'img': image[..., ::-1].astype(np.float32)})['img'][None]
        logits = predict.logits(paddle.to_tensor(normalised)).numpy()
        found.append(Case(image if settings.preprocessing else normalised, logits))
    return found


def picture(seed: int, size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, 3): patches of plain colours at several distances, with a little noise."""
    rng = np.random.default_rng(seed)
    image = np.zeros([*size, 3])
    for step in (64, 24, 8):
        grid = rng.uniform(0, 255, [-(-size[0] // step), -(-size[1] // step), 3])
        patches = grid.repeat(step, 0).repeat(step, 1)[:size[0], :size[1]]
        image = np.where(rng.random(grid.shape[:2]).repeat(step, 0).repeat(step, 1)[:size[0], :size[1], None] < 0.5,
                         patches, image)
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def compare(run: Callable[[np.ndarray], np.ndarray], found: Sequence[Case], settings: Settings,
            classes: str = 'uint8') -> None:
    """UserError if what an exported file gives differs by more than RANGE (fp32) or CLASSES (fp16).

    classes: their type.
    """
    for case in found:
        size = case.logits.shape[2:]
        where = f'{size[0]}x{size[1]}'
        result = run(case.image)
        shape, dtype = expected(case.logits, settings, classes)
        if result.shape != shape or result.dtype != dtype:
            raise _different(where, f'{dtype} {shape}', f'{result.dtype} {result.shape}')
        off, others = differences(result, case.logits, settings)
        text = (f'{off:.1e} of the range of the {"logits" if settings.output == "classes" else settings.output}, '
                f'{others} of {size[0] * size[1]} classes')
        logger.info('check: image of %s: off by %s', where, text)
        if settings.precision == 'fp32' and not off <= RANGE:
            raise _different(where, f'a difference of at most {RANGE:g} of the range', text)
        if settings.precision != 'fp32' and not (np.isfinite(off) and others <= CLASSES * size[0] * size[1]):
            raise _different(where, f'at most {CLASSES:.1%} other classes', text)


def expected(logits: np.ndarray, settings: Settings, classes: str) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of the output."""
    if settings.output != 'classes':
        return logits.shape, 'float32'
    return (logits.shape[2:] if settings.preprocessing else (1, *logits.shape[2:])), classes


def differences(result: np.ndarray, logits: np.ndarray, settings: Settings) -> tuple[float, int]:
    """(largest difference relative to the range, number of other classes).

    Of classes, the difference is what the logits of the chosen class lack to the highest; logits that agree within d
    can only choose a class that lacks 2 d.
    """
    wanted = logits.argmax(1)
    if settings.output == 'classes':
        chosen = result.reshape(wanted.shape).astype(np.int64)
        if chosen.max() >= logits.shape[1]:
            return np.inf, int((chosen != wanted).sum())
        lack = logits.max(1) - np.take_along_axis(logits, chosen[:, None], 1)[:, 0]
        return float(lack.max() / np.ptp(logits)), int((chosen != wanted).sum())
    if settings.output == 'probabilities':
        powers = np.exp(logits - logits.max(1, keepdims=True))
        logits, span = powers / powers.sum(1, keepdims=True), 1.0
    else:
        span = float(np.ptp(logits))
    return float(np.abs(result - logits).max() / span), int((result.argmax(1) != wanted).sum())


def _different(where: str, wanted: str, found: str) -> UserError:
    return UserError(f'check of the exported file with an image of {where}: expected {wanted} from the network of '
                     f'val.py, found {found}; nothing was written: try --precision fp32, else report it')
