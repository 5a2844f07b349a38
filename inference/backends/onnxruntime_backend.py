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
        if precision not in ('fp32', 'tf32' if with_cuda else 'int8'):
            raise UserError(f'--precision {precision}: expected fp32 with --backend onnxruntime; leave it out, or try '
                            '--backend openvino')
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads(), 3
        options.enable_cpu_mem_arena = False  # it never frees the largest image's memory
        providers: list[Any] = [name for name in PROVIDERS if name in offered]
        if with_cuda:  # whose default is TF32
            providers[0] = PROVIDERS[0], {'use_tf32': '1' if precision == 'tf32' else '0'}
        self._options, self._providers = options, providers
        # A provider may lack its driver or libraries; ONNX Runtime then uses the next one.
        smallest = min(folder.glob('*.onnx'), key=lambda path: path.stat().st_size)
        self.device = self._load(smallest).get_providers()[0]

    def _load(self, path: Path) -> Any:
        import onnxruntime
        return onnxruntime.InferenceSession(path, self._options, self._providers)

    def run(self, part: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.load(part)
        return self._loaded[part].run(None, inputs)
