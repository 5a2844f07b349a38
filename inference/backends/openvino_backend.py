"""OpenVINO on the CPU."""
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.flags import PRECISIONS
from inference.backends.engine import EngineExecutor, threads


class OpenVINOExecutor(EngineExecutor):
    """Parts as OpenVINO's compiled models."""
    name = 'openvino'

    def __init__(self, folder: Path, precision: str) -> None:
        super().__init__(folder)
        core = shared_core()
        has = {'FP32', *core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES')}
        if precision.upper() not in has:
            names = [name for name in PRECISIONS if name.upper() in has]
            raise UserError(f'--precision {precision}: expected what this processor has ({", ".join(names)}), found '
                            f'{precision}; it would be slower than fp32 here')
        hints = {'INFERENCE_NUM_THREADS': threads(), 'PERFORMANCE_HINT': 'LATENCY',
                 'INFERENCE_PRECISION_HINT': {'fp32': 'f32', 'bf16': 'bf16', 'fp16': 'f16'}[precision],
                 # No cache for recurring shapes: it takes memory for each image size.
                 'CPU_RUNTIME_CACHE_CAPACITY': 0}
        self._models = {path.stem: core.compile_model(core.read_model(path), 'CPU', hints)
                        for path in folder.glob('*.onnx')}
        self._requests: dict[str, Any] = {}

    def run(self, part: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        if part not in self._requests:
            # One part at a time: a compiled model keeps the buffers of its largest image otherwise.
            for other in self._requests:
                self._models[other].release_memory()
            self._requests = {part: self._models[part].create_infer_request()}
        request = self._requests[part]
        request.infer(inputs, share_inputs=True)
        return [np.array(tensor.data) for tensor in request.output_tensors]


@functools.cache
def shared_core() -> Any:
    """One for the whole process, never freed: freeing one of several leaves the thread with a freed signal stack
    (OpenVINO 2026.4), and the next signal, such as Ctrl-C or the end of a child process, crashes the process.
    """
    import openvino
    # Number of compiled kernels kept for shapes that recur; images of many sizes would fill the default of 1024.
    os.environ.setdefault('ONEDNN_PRIMITIVE_CACHE_CAPACITY', '512')
    return openvino.Core()
