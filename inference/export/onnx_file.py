"""model.onnx, for ONNX Runtime, TensorRT, OpenVINO and others."""
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from common.atomic_io import write_atomically
from inference.backends.engine import threads
from inference.export import onnx_graph, quantisation
from inference.export.whole import Settings
from models.mscale_ocrnet import MscaleOCRNet

MODEL = 'model.onnx'


def write(model: MscaleOCRNet, settings: Settings, metadata: Mapping[str, str], folder: Path,
          calibration: Sequence[np.ndarray] = ()) -> dict[str, str]:
    """Write a model in evaluation mode; returns the names of the files as PaddleSeg's deploy.yaml has them.

    calibration: inputs of the network, for int8.
    """
    graph = onnx_graph.build(model, settings, metadata, rearranged=settings.precision == 'fp32')
    if settings.precision == 'int8':
        graph = quantisation.quantised(graph, calibration)
    write_atomically(folder / MODEL, graph.SerializeToString())
    return {'model': MODEL, 'params': MODEL}


def load(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The file as a function of the input: with ONNX Runtime where it is installed, else with OpenVINO."""
    if importlib.util.find_spec('onnxruntime') is None:
        from inference.export import openvino_file
        return openvino_file.load_file(folder / MODEL)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads(), 3
    options.enable_cpu_mem_arena = False
    session = onnxruntime.InferenceSession(folder / MODEL, options, ['CPUExecutionProvider'])
    return lambda image: session.run(None, {'image': image})[0]
