"""Paddle itself, on a CPU or a GPU."""
from collections.abc import Sequence

import numpy as np
import paddle

from common.errors import UserError
from inference import fused, plain_head
from inference.paddle_operations import Dtype, PaddleOps
from models.mscale_ocrnet import MscaleOCRNet

CPU_STRIP, GPU_STRIP = 1 << 15, 1 << 18  # pixels of a strip, at the backbone's resolution
DTYPES: dict[str, Dtype] = {'fp32': 'float32', 'tf32': 'float32', 'bf16': 'bfloat16', 'fp16': 'float16'}


class PaddleExecutor:
    """An inference.fused_network.Executor of a MscaleOCRNet that supports_fusion, with its current weights."""
    name = 'paddle'

    def __init__(self, model: MscaleOCRNet, precision: str = 'fp32') -> None:
        on_cpu = paddle.get_device() == 'cpu'
        if precision != 'fp32' and on_cpu:
            raise UserError(f'--precision {precision}: expected fp32 with --backend paddle on a CPU; leave it out, or '
                            'try --backend openvino')
        fused.check_folding(model)
        net, head = model.ocrnet.backbone, model.ocrnet.head
        self.device = paddle.get_device()
        self.strip = CPU_STRIP if on_cpu else GPU_STRIP
        self.object_weights = fused.object_weights(head)
        self.ops, self._model = PaddleOps(DTYPES[precision]), model
        self._weights = fused.head_weights(head, net.branch_channels)

    def backbone(self, image: paddle.Tensor) -> list[paddle.Tensor]:
        return self._model.ocrnet.backbone.walk(self.ops, image.astype(self.ops.dtype))

    def whole(self, image: paddle.Tensor, attend: bool) -> tuple[paddle.Tensor, paddle.Tensor | None]:
        return plain_head.logits_and_attention(self.ops, self._model, self.backbone(image), attend)

    def pixels(self, finest: paddle.Tensor, coarser: Sequence[paddle.Tensor], enlarge: np.ndarray,
               enlarge_shifted: np.ndarray) -> tuple[paddle.Tensor, list[np.ndarray]]:
        pixels, *statistics = fused.pixels_and_statistics(
            self.ops, self._weights, finest, coarser, self.ops.tensor(enlarge), self.ops.tensor(enlarge_shifted))
        return pixels, [x.numpy() for x in statistics]

    def logits(self, pixels: paddle.Tensor, key: np.ndarray, context: np.ndarray,
               inside: np.ndarray | None) -> Sequence[paddle.Tensor | None]:
        attention = None if inside is None else self._model.scale_attn
        found = fused.logits_and_attention(
            self.ops, self._weights, attention, pixels, self.ops.tensor(key), self.ops.tensor(context),
            None if inside is None else self.ops.tensor(inside))
        return [None if x is None else x.astype('float32') for x in found]

    def join(self, strips: Sequence[paddle.Tensor]) -> paddle.Tensor:
        return strips[0] if len(strips) == 1 else paddle.concat(strips, axis=2)

    def zeros(self, x: paddle.Tensor, rows: int) -> paddle.Tensor:
        return paddle.zeros([1, x.shape[1], rows, x.shape[3]], x.dtype)
