"""Base of the executors of converted networks: arrays are NumPy's, a part is a function of named arrays."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from inference import onnx_writer, scale_graph
from inference.converted import OBJECTS

STRIP = 1 << 14  # pixels of a strip; larger ones take more memory


def threads() -> int:
    """The number of threads of Paddle."""
    return int(paddle.base.core.globals()['FLAGS_paddle_num_threads'])


class EngineExecutor:
    """A WholeExecutor (inference.whole_network) of a folder of inference.converted; subclasses run a part, an .onnx.

    Parts are loaded when they are first run, or by `load`. memory_limit: bytes on a GPU, set before. keep: an engine
    may leave what it has compiled in the folder.
    """
    name = ''
    device = 'CPU'
    memory_limit: float | None = None
    keep = False

    def __init__(self, folder: Path) -> None:
        self.strip, self._folder = STRIP, folder
        self._loaded: dict[str, Any] = {}
        self.object_weights: dict[str, np.ndarray] = {}
        if (folder / OBJECTS).exists():  # not of inference.traced_network
            with np.load(folder / OBJECTS) as arrays:
                self.object_weights = dict(arrays)

    @staticmethod
    def takes_half(precision: str) -> bool:
        """Whether a precision takes graphs that are written in it, float16; if not, the engine rounds those in float32.

        UserError, before anything is converted, for a precision that such an executor does not support.
        """
        return False

    def load(self, *parts: str) -> None:
        """Have these parts ready."""
        for part in parts:
            if part not in self._loaded:
                self._loaded[part] = self._load(self._folder / f'{part}.onnx')

    def load_strips(self) -> None:
        self.load(*onnx_writer.PARTS)

    def load_whole(self, attend: bool) -> None:
        self.load(*map(scale_graph.part, {False, attend}))

    def has_hierarchy(self) -> bool:
        """Whether the folder has all scales in one graph."""
        return (self._folder / f'{scale_graph.HIERARCHY}.onnx').exists()

    def unload(self) -> None:
        """Free all parts; they are loaded again when they are run."""
        self._loaded.clear()

    def _load(self, path: Path) -> Any:
        raise NotImplementedError

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

    def whole(self, image: paddle.Tensor, attend: bool) -> tuple[np.ndarray, np.ndarray | None]:
        found = self.run(scale_graph.part(attend), {scale_graph.IMAGE: image.numpy()})
        return found[0], found[1] if attend else None

    def hierarchy(self, image: paddle.Tensor) -> Any:
        return self.run(scale_graph.HIERARCHY, {scale_graph.IMAGE: image.numpy()})[0]

    def join(self, strips: Sequence[np.ndarray]) -> np.ndarray:
        return np.ascontiguousarray(strips[0]) if len(strips) == 1 else np.concatenate(strips, axis=2)

    def zeros(self, x: np.ndarray, rows: int) -> np.ndarray:
        return np.zeros([1, x.shape[1], rows, x.shape[3]], np.float32)
