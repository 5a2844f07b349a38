"""The networks, pictures and tolerances of the checks."""
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from common.builder import Builder
from common.config import Config
from tools.machine.rows import Settings
from tools.toy.scene import compose

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {'recipe': ROOT / 'configs/mscale_ocr_cityscapes_autolabel_mapillary.yml', 'toy': ROOT / 'configs/toy.yml'}
HARD = 0.05  # min_K as a share of the crop, as in the recipe
BLOCK, VOID = 16, 0.1  # side in pixels of a block of one label, share of blocks without
# Spacing of the numbers between 1 and 2. TF32, which fp32 convolutions take on GPUs since Ampere, has that of fp16.
EPS = {'fp32': 2.0**-23, 'tf32': 2.0**-10, 'fp16': 2.0**-10, 'bf16': 2.0**-7}
# fp32: results may differ by FACTOR times what a disturbance of the last bits of input and weights does, the largest of
# some, and by the rounding of the last sum, over 512 channels. (Disturbing the input alone says too little: only one in
# four disturbances brings a ReLU to its corner, which moves a gradient 30 times as far.) The lower precisions, whose
# sums are fp32: by HALF_FACTOR times what rounding input and weights to them does, because activations are rounded at
# every layer as well, and by EPS.
FACTOR, SUM = 8, 512
HALF_FACTOR = 2


def builder_of(settings: Settings, *options: str) -> Builder:
    """The builder of the network's config, with options as of --opts and losses that fit the size."""
    builder = Builder(Config(CONFIGS[settings.network], options, with_pretrained=False))
    for layer in builder.loss['types']:
        if hasattr(layer, 'min_K'):
            layer.min_K = max(1, int(HARD * settings.size[0] * settings.size[1]))
    paddle.seed(settings.seed)
    return builder


def picture(size: Sequence[int], seed: int) -> np.ndarray:
    """A toy street, normalised: float32 (1, 3, H, W)."""
    height, width = size
    drawn, _ = compose((height, width), np.random.default_rng(seed))
    image = (np.asarray(drawn, np.float32) / 255 - 0.45) / 0.225
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None])


def pictures(size: Sequence[int], count: int, seed: int) -> np.ndarray:
    """float32 (count, 3, H, W)."""
    return np.concatenate([picture(size, seed + i) for i in range(count)])


def labels_in_blocks(size: Sequence[int], count: int, seed: int, classes: int = 19) -> np.ndarray:
    """int64 (count, H, W) in blocks of one class, some of them void (255)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (count, -(-size[0] // BLOCK), -(-size[1] // BLOCK)))
    labels[rng.random(labels.shape) < VOID] = 255
    return labels.repeat(BLOCK, 1).repeat(BLOCK, 2)[:, :size[0], :size[1]]


def batch_of(size: Sequence[int], count: int, seed: int) -> dict[str, paddle.Tensor]:
    """{'img', 'label'} on the current device."""
    return {'img': paddle.to_tensor(pictures(size, count, seed)),
            'label': paddle.to_tensor(labels_in_blocks(size, count, seed))}


@paddle.no_grad()
def fit_statistics(model: paddle.nn.Layer, size: Sequence[int], seed: int) -> None:
    """Give batch norm statistics of a picture, so that a random network has activations of a trained one's scale.

    A training pass updates each of them for two scales, at momentum 0.9: new = 0.81 old + 0.09 low + 0.1 high.
    """
    def statistics() -> dict[str, paddle.Tensor]:
        return {name: value for name, value in model.state_dict().items() if name.endswith(('_mean', '_variance'))}

    before = {name: value.clone() for name, value in statistics().items()}
    training, model.training = model.training, True
    model.train()
    model(paddle.to_tensor(picture(size, seed)))
    for name, value in statistics().items():
        value.set_value((value - 0.81 * before[name]) / 0.19)
    if not training:
        model.eval()


def arrays(model: paddle.nn.Layer) -> dict[str, np.ndarray]:
    """The weights as arrays, for another device."""
    return {name: value.numpy() for name, value in model.state_dict().items()}


def rounded(x: np.ndarray, precision: str) -> np.ndarray:
    """float32 array, rounded to the numbers of a precision (of fp16 without its limits)."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa / EPS[precision]) * EPS[precision], exponent).astype(np.float32)


def disturbed(x: np.ndarray, seed: int) -> np.ndarray:
    """float32 array of which every number is the next one above or below, by chance."""
    up = np.random.default_rng(seed).random(x.shape) < 0.5
    return np.nextafter(x, np.where(up, np.inf, -np.inf).astype(np.float32))


def disturbances(run: Callable[[np.ndarray], Any], model: paddle.nn.Layer, x: np.ndarray, count: int) -> Iterator[Any]:
    """run(x), which uses the model, with the last bits of x and of all weights disturbed, `count` times."""
    weights = arrays(model)
    for seed in range(count):
        model.set_state_dict({name: paddle.to_tensor(disturbed(value, seed)) for name, value in weights.items()})
        yield run(disturbed(x, seed))
    model.set_state_dict({name: paddle.to_tensor(value) for name, value in weights.items()})


def conditions(run: Callable[[np.ndarray], np.ndarray], model: paddle.nn.Layer, x: np.ndarray, expected: np.ndarray,
               measure: Callable[[np.ndarray, np.ndarray], float] | None,
               precisions: Sequence[str]) -> dict[str, float]:
    """{precision: how far its rounding moves run(x)}; run uses the model, expected is run(x). measure: of_logits of the
    precision if there is none.
    """
    found, weights = {}, arrays(model)
    for precision in precisions:
        distance = measure or of_logits(precision)
        if precision == 'fp32':
            found[precision] = max(distance(other, expected) for other in disturbances(run, model, x, 2))
            continue
        model.set_state_dict({name: paddle.to_tensor(rounded(value, precision)) for name, value in weights.items()})
        found[precision] = distance(run(rounded(x, precision)), expected)
        model.set_state_dict({name: paddle.to_tensor(value) for name, value in weights.items()})
    return found


def allowed(condition: float, precision: str) -> float:
    """The relative difference that rounding explains."""
    if precision == 'fp32':
        return FACTOR * condition + float(np.sqrt(SUM)) * EPS[precision]
    return HALF_FACTOR * condition + EPS[precision]


def of_logits(precision: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """How logits are compared: every one in fp32; as a whole below, where single ones of random weights may be far off.
    """
    return largest if precision == 'fp32' else in_norm


def largest(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference relative to the range of what is expected; infinite where something is not finite."""
    if not np.isfinite(found).all():
        return float('inf')
    return float(np.abs(found.astype(np.float64) - expected).max() / max(float(np.ptp(expected)), 1e-30))


def in_norm(found: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference relative to that of what is expected; infinite where something is not finite."""
    if not np.isfinite(found).all():
        return float('inf')
    return float(np.linalg.norm(found.astype(np.float64) - expected) / max(float(np.linalg.norm(expected)), 1e-30))


def gradient_of(model: paddle.nn.Layer) -> np.ndarray:
    """The gradients of all parameters, one after the other."""
    return np.concatenate([p.grad.numpy().astype(np.float32).ravel() for p in model.parameters() if p.grad is not None])


def on_gpu() -> bool:
    return str(paddle.get_device()).startswith('gpu')


def wait() -> None:
    """Until the device has done what it was told; a CPU is never behind."""
    if on_gpu():
        paddle.device.synchronize()


def outputs_of(network: Any, image: np.ndarray) -> np.ndarray:
    """The first output for an image, in evaluation."""
    with paddle.no_grad():
        return network(paddle.to_tensor(image))[0].numpy()
