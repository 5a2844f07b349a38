"""Networks of any kind in OpenVINO and ONNX Runtime: traced by Paddle, written as one ONNX graph, and checked.

A graph is of no use until its logits have been compared with Paddle's, at three sizes; what cannot be converted, or
differs, is refused with the reason.
"""
import importlib
import inspect
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import paddle

from common.atomic_io import sha256_of, write_atomically
from common.errors import UserError
from inference import converted, onnx_writer, paddle_program, program_layers, program_operations, program_writer

logger = logging.getLogger(__name__)

GRAPH = 'network'
SIZES = ((64, 96), (128, 160), (97, 131))  # (H, W) of the images of the check
# How far logits may be from Paddle's: MARGIN times as far as a changed last bit of the image moves Paddle's own, but
# FLOOR times their largest value at least. Of PaddleSeg's networks the farthest was 1e-4 away (ANN, from random
# weights), the median 3e-6; an operation that is translated wrongly moves them by 1e-2 and more.
FLOOR, MARGIN = 2e-4, 16


class Reference(NamedTuple):
    """An image, Paddle's logits, and how far those of another backend may be from them."""
    image: np.ndarray
    logits: np.ndarray
    tolerance: float


class TracedNetwork:
    """(1, 3, H, W) float32 tensor -> [logits (1, K, H, W) float32] of an executor of the graph."""

    def __init__(self, executor: Any) -> None:
        self.executor = executor

    def __call__(self, x: paddle.Tensor) -> list[paddle.Tensor]:
        return [paddle.to_tensor(self.executor.run(GRAPH, {paddle_program.IMAGE: x.numpy()})[0])]


def create(model: paddle.nn.Layer, model_path: str | os.PathLike, model_cfg: dict[str, Any],
           executor: Any, precision: str, cache: bool) -> TracedNetwork:
    """The network in a backend. model: with its weights, in evaluation mode; of no use afterwards.

    model_cfg: `model` of its config, which its graph depends on. executor: the class of the backend's.
    Raises UserError with one line where the network cannot be converted, or its logits differ.
    """
    name, backend = type(model).__name__, executor.name
    key = converted.key_of(
        sha256_of(model_path), str(model_cfg), str(model), paddle.__version__, onnx.__version__,
        *map(inspect.getsource, (onnx_writer, paddle_program, program_layers, program_operations, program_writer)))
    references: list[Reference] = []

    def refer() -> list[Reference]:
        if not references:  # before the trace, which changes the model
            references.extend(_references(model))
        return references

    def write(folder: Path) -> None:
        refer()
        program = paddle_program.trace(model)
        graph = program_writer.write(program, program_operations.OPERATIONS)
        (folder / f'{GRAPH}.onnx').write_bytes(graph.SerializeToString())

    try:
        with converted.kept(key, write, model_path, cache) as folder:
            # Another version of the engine has other kernels.
            passed = folder / f'{backend}-{importlib.import_module(backend).__version__}.checked'
            if not passed.exists():
                _check(_built(executor, folder, 'fp32'), refer())
                if cache:
                    write_atomically(passed, b'')
            return _built(executor, folder, precision)
    except UserError as error:
        if str(error).startswith('--'):
            raise
        raise UserError(f'--backend {backend}: expected a network that can be converted, found {name}: {error}; use '
                        '--backend paddle') from error


def _built(executor: Callable[[Path, str], Any], folder: Path, precision: str) -> TracedNetwork:
    try:
        built = executor(folder, precision)
        built.load(GRAPH)
        return TracedNetwork(built)
    except UserError:
        raise
    except Exception as error:  # the backends have classes of their own for a graph that they do not take
        raise UserError(f'its graph is refused there ({_last_words(error)})') from error


def _last_words(error: Exception) -> str:
    return ' '.join(str(error).split())[-200:]


def _references(model: paddle.nn.Layer) -> list[Reference]:
    """The logits of images of noise; sizes at which the network fails in Paddle are left out."""
    found, failure = [], ''
    for seed, size in enumerate(SIZES):
        random = np.random.default_rng(seed)
        image = random.standard_normal([1, 3, *size]).astype(np.float32)
        try:
            want = _logits(model, image)
        except Exception as error:  # a network may ask for sizes that are multiples of something
            failure = _last_words(error)
            continue
        if not np.isfinite(want).all():
            raise UserError('its logits are not finite in Paddle')
        again, other = _logits(model, image), _logits(model, np.nextafter(image, np.float32(9)))
        if not np.array_equal(again, want):
            raise UserError('its logits differ from one call to the next (it draws random numbers)')
        scale = float(np.abs(want).max())
        # Other kernels round otherwise in every layer, a changed last bit of the image does so in the first.
        found.append(Reference(image, want, max(FLOOR * scale, MARGIN * float(np.abs(other - want).max()))))
    if not found:
        raise UserError(f'it fails in Paddle for images of {", ".join(f"{h}x{w}" for h, w in SIZES)} ({failure})')
    return found


@paddle.no_grad()
def _logits(model: Any, image: np.ndarray) -> np.ndarray:
    return model(paddle.to_tensor(image))[0].numpy()


def _check(network: TracedNetwork, references: list[Reference]) -> None:
    farthest = 0.0  # of the largest value
    for image, want, tolerance in references:
        size = '{}x{}'.format(*image.shape[2:])
        try:
            found = network(paddle.to_tensor(image))[0].numpy()
        except Exception as error:  # RuntimeError and others of the backends
            raise UserError(f'it fails there for an image of {size} ({_last_words(error)})') from error
        if found.shape != want.shape:
            raise UserError(f'its logits are {list(found.shape)} there, {list(want.shape)} in Paddle, for an image of '
                            f'{size}')
        difference = float(np.abs(found - want).max())
        if not difference <= tolerance:  # NaN as well
            raise UserError(f'its logits differ by {difference:.2g} there, where {tolerance:.2g} would be rounding, '
                            f'for an image of {size}')
        farthest = max(farthest, difference / float(np.abs(want).max()))
    logger.info('checked against Paddle, at %d sizes: logits differ by at most %.1e of the largest', len(references),
                farthest)
