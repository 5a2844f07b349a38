"""PaddleSeg 2.8's models that need a hand to train here, and those that cannot: refused by name, with the reason.

Every other model of PaddleSeg runs as it is; docs/paddleseg.md lists them.
"""
import functools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddleseg.cvlibs import manager
from paddleseg.models.backbones import cae, vision_transformer
from paddleseg.utils import utils

from common.errors import UserError
from common.paddle2_arithmetic import compiled
from models.weight_files import NAME_TABLE, read_state

# Models that divide or multiply floats by integers, and ISANet, which joins single numbers.
MENDED = {'SFNet': 'paddleseg.models.sfnet', 'DecoupledSegNet': 'paddleseg.models.decoupled_segnet',
          'PointRend': 'paddleseg.models.pointrend', 'ISANet': 'paddleseg.models.isanet'}
REFUSED = {
    'MLATransformer': 'PaddleSeg 2.8 enlarges its features by their width in both directions: only square images run',
    'UPerNetCAE': 'its backbones cannot be built: PaddleSeg 2.8 calls a class that it does not import',
}
VISION_TRANSFORMERS = ('ViT_', 'VisionTransformer')  # backbones


def _refused(reason: str, cfg: dict[str, Any], num_classes: int | None = None) -> str:
    return reason


def _other_classes(cfg: dict[str, Any], num_classes: int | None = None) -> str | None:
    if num_classes not in (None, 19):
        return f'PaddleSeg 2.8 counts its channels for 19 classes, not for {num_classes}'
    return None


def _on_cpu(cfg: dict[str, Any], num_classes: int | None = None) -> str | None:
    if paddle.get_device() == 'cpu':
        return 'its batch norm is synchronised among processes, which Paddle has on GPUs only'
    return None


def _with_refusal(component: Callable, refusal: Callable[..., str | None]) -> Callable:
    @functools.wraps(component)
    def build(*args: Any, **kwargs: Any) -> Any:
        return component(*args, **kwargs)

    vars(build)['refusal'] = refusal
    return build


def _uncertain_points(self: Any, seg_logits: paddle.Tensor,
                      uncertainty: Callable[[paddle.Tensor], paddle.Tensor]) -> tuple[paddle.Tensor, paddle.Tensor]:
    """PointHead.get_points_test, in which PaddleSeg 2.8 concatenates numbers, which Paddle does no longer.

    (N, C, H, W) -> the P most uncertain pixels of each image: int64 (N, P), row * W + column, and their centres
    (x, y) / (W, H), float32 (N, P, 2).
    """
    height, width = seg_logits.shape[-2:]
    number = min(height * width, int(self.subdivision_num_points))
    indices = paddle.topk(uncertainty(seg_logits).flatten(1), number, axis=1)[1]
    centres = [(place.astype('float32') + 0.5) / size for place, size in ((indices % width, width),
                                                                          (indices // width, height))]
    return indices, paddle.stack(centres, axis=2)


@functools.cache
def paddleseg_models() -> dict[str, Callable]:
    """{name: class} for PaddleSeg's registry of models."""
    modules = {name: compiled(module) for name, module in MENDED.items()}
    vars(modules['ISANet'])['paddle'] = _JoiningPaddle('paddle')
    modules['PointRend'].PointHead.get_points_test = _uncertain_points  # of the copy; PaddleSeg's own stays
    found: dict[str, Callable] = {name: vars(module)[name] for name, module in modules.items()}
    found |= {name: type(name, (nn.Layer,), {'refusal': staticmethod(functools.partial(_refused, reason))})
              for name, reason in REFUSED.items()}
    for name, refusal in (('UPerNetViTAdapter', _on_cpu), ('ESPNetV1', _other_classes)):
        found[name] = _with_refusal(manager.MODELS.components_dict[name], refusal)
    return found


@functools.cache
def paddleseg_backbones() -> dict[str, Callable]:
    """{name: function} for PaddleSeg's registry of backbones.

    The vision transformers, which PaddleSeg 2.8 builds from a file of weights only, and so not to be evaluated with
    other weights, start from their own random initialisation without one.
    """
    module = compiled(vision_transformer.__name__)

    class VisionTransformer(module.VisionTransformer):  # type: ignore[name-defined]
        def init_weight(self) -> None:
            if self.pretrained is not None:
                super().init_weight()

    vars(module).update(VisionTransformer=VisionTransformer, paddle=_SafePaddle('paddle'))
    return {name: vars(module)[name] for name in manager.BACKBONES.components_dict
            if name.startswith(VISION_TRANSFORMERS)}


class _OtherPaddle(types.ModuleType):
    """The module paddle, but for what a subclass has instead."""

    def __getattr__(self, name: str) -> Any:
        return getattr(paddle, name)


class _JoiningPaddle(_OtherPaddle):
    """Its `concat` takes single numbers, which had the shape [1] before Paddle 2.5.

    ISANet joins the four numbers of a padding, for features that its windows do not divide.
    """

    @staticmethod
    def concat(x: list[paddle.Tensor], axis: int = 0, name: str | None = None) -> paddle.Tensor:
        return paddle.concat([part.reshape([1]) if part.ndim == 0 else part for part in x], axis, name)


class _SafePaddle(_OtherPaddle):
    """Its `load` runs nothing: PaddleSeg reads `pretrained` of models and backbones with it."""

    @staticmethod
    def load(path: str, **_: Any) -> dict[str, paddle.Tensor]:
        state = read_state(path)
        if not isinstance(state, dict):
            raise UserError(f'{path}: expected a state dict of arrays, found {type(state).__name__}; check the file')
        return {name: paddle.to_tensor(value) for name, value in state.items()
                if name != NAME_TABLE and isinstance(value, np.ndarray)}


def read_weights_safely() -> None:
    """From here on, PaddleSeg's models read weights with models.weight_files."""
    for module in (utils, vision_transformer, cae):
        vars(module)['paddle'] = _SafePaddle('paddle')
