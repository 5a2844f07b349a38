"""Base of the executors of converted networks: arrays are NumPy's, a part is a function of named arrays."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import paddle

from inference.converted import OBJECTS

STRIP = 1 << 14  # pixels of a strip; larger ones take more memory


def threads() -> int:
    """The number of threads of Paddle."""
    return int(paddle.base.core.globals()['FLAGS_paddle_num_threads'])


class EngineExecutor:
    """An inference.fused_network.Executor of a folder of inference.converted; subclasses run a part, an .onnx of it."""
    name = ''
    device = 'CPU'

    def __init__(self, folder: Path) -> None:
        self.strip = STRIP
        self.object_weights: dict[str, np.ndarray] = {}
        if (folder / OBJECTS).exists():  # not of inference.traced_network
            with np.load(folder / OBJECTS) as arrays:
                self.object_weights = dict(arrays)

    def run(self, part: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Outputs of a part, arrays that stay valid."""
        raise NotImplementedError

    def backbone(self, image: paddle.Tensor) -> list[np.ndarray]:
        return self.run('backbone', {'image': image.numpy()})

    def pixels(self, finest: np.ndarray, coarser: Sequence[np.ndarray], enlarge: np.ndarray,
               enlarge_shifted: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        inputs = {'finest': finest, 'enlarge': enlarge, 'enlarge_shifted': enlarge_shifted,
                  **{f'branch_{b}': np.ascontiguousarray(x) for b, x in enumerate(coarser, 1)}}
        pixels, *statistics = self.run('pixels', inputs)
        return pixels, statistics

    def logits(self, pixels: np.ndarray, key: np.ndarray, context: np.ndarray,
               inside: np.ndarray | None) -> Sequence[np.ndarray | None]:
        inputs = {'pixels': pixels, 'key': key, 'context': context}
        if inside is None:
            return self.run('logits', inputs)[0], None
        return self.run('logits_and_attention', {**inputs, 'inside': inside})

    def join(self, strips: Sequence[np.ndarray]) -> np.ndarray:
        return np.ascontiguousarray(strips[0]) if len(strips) == 1 else np.concatenate(strips, axis=2)

    def zeros(self, x: np.ndarray, rows: int) -> np.ndarray:
        return np.zeros([1, x.shape[1], rows, x.shape[3]], np.float32)
