"""model.xml and model.bin, OpenVINO's own format, from the same graph as model.onnx."""
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from inference.backends.engine import threads
from inference.backends.openvino_backend import shared_core
from inference.export import onnx_graph, quantisation
from inference.export.whole import Settings
from models.mscale_ocrnet import MscaleOCRNet

MODEL, WEIGHTS = 'model.xml', 'model.bin'


def write(model: MscaleOCRNet, settings: Settings, metadata: Mapping[str, str], folder: Path,
          calibration: Sequence[np.ndarray] = ()) -> dict[str, str]:
    """As inference.export.onnx_file. fp16: of the weights in the file; what computes decides on its own precision."""
    import openvino

    graph = onnx_graph.build(model, dataclasses.replace(settings, precision='fp32'), {},
                             rearranged=settings.precision == 'fp32')
    if settings.precision == 'int8':
        graph = quantisation.quantised(graph, calibration)
    converted = shared_core().read_model(graph.SerializeToString())
    del graph
    for key, value in metadata.items():
        converted.set_rt_info(value, ['model_info', key])  # where OpenVINO's own tools keep such things
    openvino.save_model(converted, folder / MODEL, compress_to_fp16=settings.precision == 'fp16')
    return {'model': MODEL, 'params': WEIGHTS}


def load(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    return load_file(folder / MODEL)


def load_file(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A file that OpenVINO reads as a function of the input, computed in float32."""
    core = shared_core()
    compiled = core.compile_model(core.read_model(path), 'CPU', {
        'INFERENCE_NUM_THREADS': threads(), 'INFERENCE_PRECISION_HINT': 'f32', 'CPU_RUNTIME_CACHE_CAPACITY': 0})
    return lambda image: np.array(compiled(image)[0])
