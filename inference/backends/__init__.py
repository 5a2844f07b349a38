"""The backends for inference, Paddle, OpenVINO and ONNX Runtime, behind one function `create`.

A new backend is a file here with an inference.fused_network.Executor, and a line in common.backend_table.
"""
import importlib
import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from common import gpu
from common.backend_table import BACKENDS
from common.errors import UserError
from inference import memory
from inference.backends.paddle_backend import PaddleExecutor
from inference.converted import converted
from inference.fused_network import FusedNetwork
from inference.whole_network import WholeNetwork
from models.weights import load_weights

logger = logging.getLogger(__name__)


def installed() -> list[str]:
    """The backends whose packages are there, the fastest first."""
    return [name for name, backend in BACKENDS.items() if all(map(importlib.util.find_spec, backend.packages))]


def create(builder: Any, model_path: str | os.PathLike, backend: str = 'auto', precision: str = 'fp32',
           cache: bool = True, calibration: Sequence[Any] = (), memory_limit: float | None = None) -> Any:
    """The network of a config with these weights, ready to evaluate: (1, 3, H, W) float32 tensor -> [logits].

    builder: common.builder.Builder. backend: 'auto' is Paddle on a GPU, and on a CPU the fastest that is installed.
    precision: of the network; the fusion of scales and argmax are float32 always. cache: keep the network converted for
    OpenVINO and ONNX Runtime, and reuse one kept earlier. calibration: what inference.export.quantisation.Images
    takes, for int8. memory_limit: bytes that ONNX Runtime may take on a GPU; inference.predictor stays below it by
    estimates.
    Returns a FusedNetwork; where the model is of another kind, the model itself, with --backend paddle and auto, and
    else an inference.traced_network.TracedNetwork.
    Raises UserError, with one line that names what would work, for a backend that is not installed, and for a
    precision that it or the processor does not support.
    """
    available = installed()
    if backend != 'auto' and backend not in available:
        packages = BACKENDS[backend].packages if backend in BACKENDS else ('-r requirements.txt',)
        raise UserError(f'--backend {backend}: expected one that is installed ({", ".join(available)}), found none of '
                        f'that name; pip install {" ".join(packages)}')
    gpu.allow_tf32(precision == 'tf32')
    model = _own_form(builder.model)
    if not _supports_fusion(model):
        if precision == 'int8':
            raise UserError('--precision int8: expected a MscaleOCRNet on an HRNet, found '
                            f'{type(model).__name__}; leave it out')
        if backend not in ('auto', 'paddle'):
            if executor_of(backend).takes_half(precision):
                raise UserError(f'--backend {backend} --precision {precision}: expected a MscaleOCRNet on an HRNet, '
                                f'found {type(model).__name__}, which runs with --precision fp32')
            return _traced(builder, _loaded(model, model_path), model_path, backend, precision, cache)
        if precision != 'fp32':
            raise UserError(f'--backend {backend} --precision {precision}: expected a MscaleOCRNet on an HRNet, found '
                            f'{type(model).__name__}, which runs with --precision fp32 or --backend openvino')
        return _loaded(model, model_path)
    chosen = backend
    if backend == 'auto':
        chosen = 'paddle' if paddle.get_device() != 'cpu' else available[0]
    half = chosen != 'paddle' and executor_of(chosen).takes_half(precision)
    if precision == 'int8':
        del model
        network = _int8(builder, model_path, chosen, cache, calibration)
    elif chosen == 'paddle':
        network = fuse_for_inference(_loaded(model, model_path), precision)
    else:
        with converted(model, model_path, cache, half) as folder:
            scales, footprint, scale_image = model.n_scales, memory.footprint(model), model.scale_image
            del model
            builder.release_model()  # Paddle's copy of the weights, 0.3 GB of W48, is not needed again
            executor = executor_of(chosen)(folder, precision)
            executor.memory_limit = memory_limit
            network = _fastest(executor, (scales, footprint, scale_image), folder, precision, cache)
    logger.info('network: %s on %s, %s', chosen, network.executor.device, precision)
    return network


def _int8(builder: Any, model_path: str | os.PathLike, backend: str, cache: bool,
          calibration: Sequence[Any]) -> FusedNetwork:
    from inference.export.quantisation import Images
    from inference.quantised import converted_int8
    if backend == 'paddle':
        raise UserError('--precision int8: expected --backend openvino or onnxruntime, found paddle; choose one of '
                        'them')
    model = _own_form(builder.model)
    rest = model.n_scales, memory.footprint(model), model.scale_image
    del model

    def built(folder: Path) -> FusedNetwork:
        return _fastest(executor_of(backend)(folder, 'int8'), rest, folder, 'int8', cache)

    def logits(precision: str, folder: Path | None, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        network = create(builder, model_path, backend, cache=cache) if folder is None else built(folder)
        return [network(paddle.to_tensor(image))[0].numpy() for image in images]

    # The model itself is the callee's to free.
    with converted_int8(builder, _own_form(builder.model), model_path, Images(*calibration), cache, logits) as folder:
        return built(folder)


def _fastest(executor: Any, rest: tuple[Any, ...], folder: Path, precision: str, cache: bool) -> FusedNetwork:
    """The network of an executor and the `rest` of FusedNetwork's arguments in the form that is the fastest here."""
    from inference import forms, scale_graph
    scales, footprint, scale_image = rest
    # In other precisions OpenVINO would round the fusion of scales, too. On a GPU, a graph in float16 says what stays
    # float32, and TF32 is of convolutions and matrix products alone.
    exact_fusion = precision == 'fp32' or memory.on_gpu(executor.device)
    whole = WholeNetwork(executor, scales, footprint, scale_image, at_once=exact_fusion and executor.has_hierarchy())
    form = forms.choose(whole, folder, precision, cache)
    executor.strip, executor.keep = whole.largest_strip, cache  # of the form that was chosen only
    if form == forms.STRIPS:
        executor.load_strips()
        return FusedNetwork(executor, scales, footprint, scale_image)
    at_once = form == forms.AT_ONCE
    executor.load(scale_graph.HIERARCHY) if at_once else executor.load_whole(attend=len(scales) > 1)
    network = WholeNetwork(executor, scales, footprint, scale_image, forms.extra_bytes(precision, footprint), at_once)
    if memory.on_gpu(network.device):
        network.base += footprint.weights  # which ONNX Runtime has there, and Paddle does not see
    return network


def executor_of(backend: str) -> Any:
    """The class of its executor, which takes a folder of inference.converted and a precision."""
    module, _, name = BACKENDS[backend].executor.partition(':')
    return getattr(importlib.import_module(module), name)


def _traced(builder: Any, model: Any, model_path: str | os.PathLike, backend: str, precision: str, cache: bool) -> Any:
    """Any network in another backend than Paddle; it is checked against Paddle before its first use there."""
    from inference import traced_network
    network = traced_network.create(model, model_path, builder.config.dic['model'], executor_of(backend), precision,
                                    cache)
    del model
    builder.release_model()
    logger.info('network: %s on %s, %s', backend, network.executor.device, precision)
    return network


def name_of(network: Any) -> str:
    """The backend of a network that `create` has returned."""
    return network.executor.name if hasattr(network, 'executor') else 'paddle'


def fuse_for_inference(model: Any, precision: str = 'fp32') -> Any:
    """A model in evaluation mode in its fastest form in Paddle, with its current weights; else the model itself."""
    model = _own_form(model)
    if not _supports_fusion(model):
        return model
    executor, footprint = PaddleExecutor(model, precision), memory.footprint(model)
    if memory.on_gpu(executor.device):
        return WholeNetwork(executor, model.n_scales, footprint, model.scale_image)
    return FusedNetwork(executor, model.n_scales, footprint, model.scale_image)


def _own_form(model: Any) -> Any:
    """PaddleSeg's MscaleOCRNet as one of this repository's, if it can be; any other model itself."""
    return (model.own_form() if hasattr(model, 'own_form') else None) or model


def _supports_fusion(model: Any) -> bool:
    return hasattr(model, 'supports_fusion') and model.supports_fusion()


def _loaded(model: Any, model_path: str | os.PathLike) -> Any:
    load_weights(model, model_path)
    model.eval()
    return model
