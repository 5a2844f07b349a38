"""ONNX Runtime, on a GPU if its installed package supports one, else on the CPU."""
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from inference.backends.engine import EngineExecutor, threads

PROVIDERS = ('CUDAExecutionProvider', 'CPUExecutionProvider')  # the fastest first


class OnnxRuntimeExecutor(EngineExecutor):
    """Parts as ONNX Runtime's sessions."""
    name = 'onnxruntime'

    def __init__(self, folder: Path, precision: str) -> None:
        super().__init__(folder)
        import onnxruntime
        offered = onnxruntime.get_available_providers()
        with_cuda = PROVIDERS[0] in offered
        if precision != 'fp32' and not (precision == 'tf32' and with_cuda):
            raise UserError(f'--precision {precision}: expected fp32 with --backend onnxruntime; leave it out, or try '
                            '--backend openvino')
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads(), 3
        options.enable_cpu_mem_arena = False  # it never frees the largest image's memory
        chosen: list[Any] = [name for name in PROVIDERS if name in offered]
        if with_cuda:  # whose default is TF32
            chosen[0] = PROVIDERS[0], {'use_tf32': '1' if precision == 'tf32' else '0'}
        self._sessions = {path.stem: onnxruntime.InferenceSession(path, options, chosen)
                          for path in folder.glob('*.onnx')}
        # A provider may lack its driver or libraries; ONNX Runtime then uses the next one.
        self.device = next(iter(self._sessions.values())).get_providers()[0]

    def run(self, part: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return self._sessions[part].run(None, inputs)
