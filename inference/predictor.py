"""The only code from an image to logits: validation, prediction and evaluation during training all use it."""
import copy
import functools
import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F

from common.errors import UserError
from datasets.normalization import Normalization
from inference import maps, memory


class Predictor:
    """A model and its test-time settings, as a function from a preprocessed image to logits or train ids.

    model: in evaluation mode, (1, 3, H, W) -> [logits (1, K, H, W)].
    scales, flip_horizontal, flip_vertical: test-time augmentation; the logits of all combinations are averaged. These
        scales multiply the model's own n_scales and are rarely worth their time.
    crop_size, stride: (H, W) in pixels of a sliding window; None runs the whole image at once.
    memory_limit: bytes; strips and windows are made small enough for it (inference.memory), within crop_size if given.
        None uses all available memory, with a warning if that may not be enough.
    """

    def __init__(self, model: Any, scales: Sequence[float] = (1.0,), flip_horizontal: bool = False,
                 flip_vertical: bool = False, crop_size: tuple[int, int] | None = None,
                 stride: tuple[int, int] | None = None, memory_limit: float | None = None) -> None:
        if crop_size is not None and (stride is None or any(s > c or s < 1 for s, c in zip(stride, crop_size))):
            raise UserError(f'--stride: expected at least 1 and at most the crop size {crop_size} (H, W), found '
                             f'{stride}: pixels between the windows would have no prediction; lower it')
        self.model = model
        self.scales = scales
        self.flips = [axes for axes in itertools.chain.from_iterable(
            itertools.combinations([3] * flip_horizontal + [2] * flip_vertical, n) for n in range(3))]
        self.crop_size = crop_size
        self.stride = stride
        self.memory_limit = memory_limit
        self._planned: dict[tuple[int, int], tuple[Any, ...]] = {}
        if memory_limit is not None and not hasattr(model, 'footprint'):
            raise UserError(f'--memory_limit: expected a MscaleOCRNet on an HRNet, found {type(model).__name__}; use '
                             '--is_slide')

    @paddle.no_grad()
    def logits(self, image: paddle.Tensor) -> paddle.Tensor:
        """float32 (1, 3, H, W), normalised -> float32 (1, K, H, W)."""
        count = len(self.scales) * len(self.flips)
        total = functools.reduce(operator.add, self._augmented(image))
        return total if count == 1 else total / count

    def _augmented(self, image: paddle.Tensor) -> Iterator[paddle.Tensor]:
        """The logits of every scale and flip, at the size of the image and flipped back."""
        height, width = image.shape[2:]
        for scale in self.scales:
            scaled = _resize(image, int(height * scale + 0.5), int(width * scale + 0.5))
            for axes in self.flips:
                logits = self.window_logits(scaled.flip(axes) if axes else scaled)
                yield _resize(logits.flip(axes) if axes else logits, height, width)

    def window_logits(self, image: paddle.Tensor) -> paddle.Tensor:
        """As `logits`, without scales and flips: through windows and strips as memory asks for."""
        return self._windows(image, *self._window(image.shape[2:]))

    def _window(self, size: Sequence[int]) -> Sequence[tuple[int, int] | None]:
        """(crop_size, stride) for an image of (H, W), planned once per size; the strips are set as well."""
        if not hasattr(self.model, 'footprint'):
            return self.crop_size, self.stride
        height, width = size
        if (height, width) not in self._planned:
            self._planned[height, width] = memory.fit(self.model, (height, width), self.crop_size, self.stride,
                                                      self.memory_limit)
        *window, self.model.executor.strip = self._planned[height, width]
        return window

    def _windows(self, image: paddle.Tensor, crop_size: tuple[int, int] | None,
                 stride: tuple[int, int] | None) -> paddle.Tensor:
        if crop_size is None or stride is None:
            return self.model(image)[0]
        size = image.shape[2:]
        total: paddle.Tensor | None = None
        count = paddle.zeros([1, 1, *size])
        for top, left in itertools.product(*map(_starts, size, crop_size, stride)):
            rows = slice(top, min(top + crop_size[0], size[0]))
            cols = slice(left, min(left + crop_size[1], size[1]))
            logits = self.model(image[:, :, rows, cols])[0]
            if total is None:
                total = paddle.zeros([1, logits.shape[1], *size])
            total[:, :, rows, cols] = total[:, :, rows, cols] + logits
            count[:, :, rows, cols] = count[:, :, rows, cols] + 1
        assert total is not None  # there is at least one window
        return total / count

    def __call__(self, sample: Mapping[str, Any]) -> np.ndarray:
        """A sample {'img': float32 (3, h, w), 'trans_info': ...} -> uint8 (H, W) train ids at the original size.

        'img' is an array, or a tensor, which stays where it is. With 'normalization', of datasets.normalization, it is
        what that has made compact. UserError if the logits are not finite.
        """
        logits = self.original_logits(sample)
        maps.check_finite(logits)
        ids = logits.argmax(axis=1)[0]  # on a GPU uint8, an eighth of what would be copied otherwise
        return (ids if ids.place.is_cpu_place() else ids.astype('uint8')).numpy().astype(np.uint8, copy=False)

    @paddle.no_grad()
    def original_logits(self, sample: Mapping[str, Any]) -> paddle.Tensor:
        """A sample as of __call__ -> float32 (1, K, H, W) at the original size."""
        image = sample['img']
        if not isinstance(image, paddle.Tensor):
            image = uploaded(sample, sample.get('normalization'))['img']
        logits = self.logits(image.unsqueeze(0))
        return restore_size(logits, sample.get('trans_info', ()))

    @paddle.no_grad()
    def maps(self, sample: Mapping[str, Any]) -> maps.Maps:
        """A sample as of __call__ -> its classes, confidence, entropy and the weights of the network's scales.

        The weights are fused, averaged and resized beside the logits, as channels of the same array, which is larger by
        the number of scales. UserError if the logits are not finite.
        """
        scales = self.attention_scales
        logits = (self._with_weights if scales else self).original_logits(sample)
        classes = logits.shape[1] - len(scales)
        return maps.of_logits(logits[:, :classes], dict(zip(scales, logits[0, classes:].numpy())))

    @property
    def attention_scales(self) -> list[float]:
        """The scales in Maps.attention."""
        return sorted(set(self.model.n_scales)) if hasattr(self.model, 'with_scale_weights') else []

    @functools.cached_property
    def _with_weights(self) -> 'Predictor':
        twin = copy.copy(self)
        twin.model, twin._planned = self.model.with_scale_weights(), {}
        return twin


def uploaded(sample: Mapping[str, Any], normalization: Normalization | None) -> dict[str, Any]:
    """A compact sample (datasets.normalization) with 'img' float32 (3, h, w), normalised, on the device.

    The upload of one image does not overlap with the network on the one before, and cannot safely. `to_tensor` copies
    with cudaMemcpy, in CUDA's default stream, which waits for Paddle's compute stream and the other way round: Paddle
    does not make that one non-blocking. `cuda(blocking=False)` puts its copy into the compute stream, behind the
    kernels, and nothing keeps its pinned memory from being given out again before the copy has been made. The wait is
    short: 6 MB for 1024x2048 pixels, instead of 25.
    """
    image = paddle.to_tensor(np.asarray(sample['img']))
    return {**sample, 'img': normalization.on_device(image.unsqueeze(0))[0] if normalization else image}


def restore_size(logits: paddle.Tensor, trans_info: Iterable) -> paddle.Tensor:
    """Logits resized and cropped to the original image; trans_info: the list recorded by PaddleSeg's transforms."""
    for kind, (height, width) in reversed(list(trans_info)):
        if kind == 'resize':
            logits = _resize(logits, int(height), int(width))
        elif kind == 'padding':
            logits = logits[:, :, :int(height), :int(width)]
        else:
            raise UserError(f'val_dataset.transforms: expected transforms that resize or pad, found {kind!r} in '
                             'trans_info, which cannot be undone; remove that transform')
    return logits


def _starts(size: int, crop: int, stride: int) -> list[int]:
    """Starts of the windows along one axis: every `stride` pixels, the last window flush with the end."""
    count = math.ceil(max(size - crop, 0) / stride) + 1
    return [max(min(i * stride, size - crop), 0) for i in range(count)]


def _resize(x: paddle.Tensor, height: int, width: int) -> paddle.Tensor:
    if list(x.shape[2:]) == [height, width]:
        return x
    return F.interpolate(x, size=[height, width], mode='bilinear', align_corners=False)
