"""An exported file against the network of val.py, on images made here; in int8 on photographs."""
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddleseg.transforms import Compose, Normalize
from tqdm import tqdm

from common.errors import UserError
from inference.export.whole import Settings
from inference.predictor import Predictor

logger = logging.getLogger(__name__)

SIZES = ((96, 160), (75, 106), (131, 97))  # (H, W) where any size will do: even, scaled sizes that round, odd
RANGE = 1e-3  # of fp32: of the range of the logits
CLASSES = {'fp16': 1e-3, 'int8': 1e-2}  # of the pixels; of int8 in all images, a limit of ours: what 8 bits leave

Transforms = Callable[[dict[str, Any]], dict[str, Any]]


def normalising(builder: Any) -> Transforms:
    """Of the validation images of a config: Normalize alone, from BGR."""
    return Compose([step for step in builder.val_transforms if isinstance(step, Normalize)])


class Case(NamedTuple):
    """image: what the exported file takes. logits: of the network of val.py, float32 (1, K, H, W)."""
    image: np.ndarray
    logits: np.ndarray


def cases(network: Any, settings: Settings, transforms: Transforms, images: Sequence[np.ndarray] = ()) -> list[Case]:
    """Cases of the images, uint8 (H, W, 3) RGB, or of three made here.

    network: of inference.backends.create. transforms: of the validation images, from BGR.
    """
    predict = Predictor(network, flip_horizontal=settings.flip)
    found = []
    sizes = [settings.size] * 3 if settings.size else list(SIZES)
    images = images or [picture(seed, size) for seed, size in enumerate(sizes)]
    for image in tqdm(images, desc="check, val.py's network", unit='image'):
        logits = predict.logits(paddle.to_tensor(normalised(image, transforms))).numpy()
        found.append(Case(network_input(image, settings, transforms), logits))
    return found


def network_input(image: np.ndarray, settings: Settings, transforms: Transforms) -> np.ndarray:
    """What the exported network takes for an image, uint8 (H, W, 3) RGB."""
    return image if settings.preprocessing else normalised(image, transforms)


def normalised(image: np.ndarray, transforms: Transforms) -> np.ndarray:
    """float32 (1, 3, H, W)."""
    return transforms({'img': image[..., ::-1].astype(np.float32)})['img'][None]


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
            classes: str = 'uint8') -> float:
    """UserError if what an exported file gives differs by more than RANGE (fp32) or CLASSES (fp16, int8).

    classes: their type. Returns the share of pixels with equal classes.
    """
    pixels = unequal = 0
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
        if settings.precision == 'fp16' and not (np.isfinite(off) and others <= CLASSES['fp16'] * size[0] * size[1]):
            raise _different(where, f'at most {CLASSES["fp16"]:.1%} other classes', text)
        if not np.isfinite(off):
            raise _different(where, 'finite logits and known classes', text)
        pixels, unequal = pixels + size[0] * size[1], unequal + others
    if settings.precision == 'int8':
        logger.info('check: %.2f %% of the classes are equal', 100 * (1 - unequal / pixels))
        if unequal > CLASSES['int8'] * pixels:
            raise UserError(f'check of the exported file with {len(found)} images: expected at least '
                            f'{1 - CLASSES["int8"]:.0%} of the classes of the network of val.py, found '
                            f'{1 - unequal / pixels:.2%}; nothing was written: give more images (--calibration_count) '
                            "that are like the network's own (--calibration_images), or try --precision fp32")
    return 1 - unequal / pixels


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
