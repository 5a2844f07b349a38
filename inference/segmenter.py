"""Segmentation in a few lines, for programs and notebooks; predict.py is built on it."""
from __future__ import annotations  # Paddle, and what needs it, is imported when a Segmenter is made

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import cv2
import numpy as np
from PIL import Image

from common import cli, flags
from common.errors import UserError
from datasets.labels import LabelSet
from inference import pictures
from inference.prefetch import prefetch

if TYPE_CHECKING:
    from common.builder import Builder
    from inference.maps import Maps

Input = str | os.PathLike | Image.Image | np.ndarray


@dataclass(frozen=True)
class Segmentation:
    """The prediction for one image of (H, W).

    image: uint8 (H, W, 3) RGB. maps: inference.maps.Maps; its fields are properties here. labels: names and ids of the
    classes. colors: uint8 (256, 3) RGB by train id. A notebook shows the overlay.
    """
    image: np.ndarray
    maps: Maps
    labels: LabelSet
    colors: np.ndarray

    @property
    def classes(self) -> np.ndarray:
        """uint8 (H, W), train ids: positions in labels.names."""
        return self.maps.classes

    @property
    def confidence(self) -> np.ndarray:
        """float32 (H, W) in [0, 1]."""
        return self.maps.confidence

    @property
    def entropy(self) -> np.ndarray:
        """float32 (H, W) in [0, 1]."""
        return self.maps.entropy

    @property
    def attention(self) -> dict[float, np.ndarray]:
        """{scale: float32 (H, W)}, summing to 1; empty for a network that does not fuse scales."""
        return self.maps.attention

    def overlay(self, weight: float = 0.6) -> np.ndarray:
        """uint8 (H, W, 3) RGB: `weight` of the image, the rest of the classes' colours."""
        return pictures.overlay(self.image, self.classes, self.colors[:, ::-1], weight)

    def _repr_png_(self) -> bytes:
        return cv2.imencode('.png', self.overlay()[..., ::-1])[1].tobytes()


class Segmenter:
    """A trained network as a function from images to Segmentations, with the engine of val.py and predict.py.

    config: a YAML file, or a common.builder.Builder. weights: a file, a URL, or a name in configs/model_zoo.yml.
    Options as the flags of predict.py: crop_size and stride are (W, H), memory_limit is in GB, opts are 'key=value' of
    the config, custom_color is a flat list of R G B, calibration is (folder, number) of the images for int8. A sliding
    window in the config's test_config counts, too. Uses all cores, or as many as OMP_NUM_THREADS says.
    Raises UserError with one line for what does not fit.

        segment = Segmenter('configs/toy.yml', 'output/toy/best_model/model.pdparams')
        result = segment('street.png')          # a path, a PIL image, or uint8 RGB (H, W, 3)
        results = segment(['a.png', 'b.png'])   # a list gives a list
        for result in segment.stream(paths):    # one at a time, the next images are read meanwhile
    """

    def __init__(self, config: str | os.PathLike | Builder, weights: str | os.PathLike, *,
                 scales: Sequence[float] = (1.0,), flip_horizontal: bool = False, flip_vertical: bool = False,
                 is_slide: bool = False, crop_size: Sequence[int] | None = None, stride: Sequence[int] | None = None,
                 memory_limit: float | None = None, backend: str = 'auto', precision: str = 'fp32', cache: bool = True,
                 calibration: Sequence[Any] = (),
                 opts: Sequence[str] = (), custom_color: Sequence[int] | None = None) -> None:
        cli.load_paddle()
        from paddleseg.transforms import Compose

        from common.builder import Builder
        from common.config import Config
        from common.model_zoo import local_weights
        from datasets.normalization import put_off
        from inference import backends
        from inference.predictor import Predictor

        given = {'aug': True, 'scales': scales, 'flip_horizontal': flip_horizontal, 'flip_vertical': flip_vertical,
                 'is_slide': is_slide, 'crop_size': crop_size, 'stride': stride, 'memory_limit': memory_limit}
        builder = config if isinstance(config, Builder) else Builder(
            Config(os.fspath(config), list(opts), with_pretrained=False))
        options = flags.predictor_options(flags.with_test_config(given, builder.config.test_config))
        path = local_weights(os.fspath(weights))
        builder.check_weights(Path(path).parent.parent)
        self.labels = builder.labels
        self.colors = pictures.color_table(self.labels, custom_color)
        steps, self._normalization = put_off(builder.val_transforms)
        self._transforms = Compose(steps)
        network = backends.create(builder, path, backend, precision, cache, calibration, options.get('memory_limit'))
        self.predictor = Predictor(network, **options)

    @property
    def scales(self) -> list[float]:
        """The scales of the network that Segmentation.attention has."""
        return self.predictor.attention_scales

    @overload
    def __call__(self, image: Input) -> Segmentation: ...
    @overload
    def __call__(self, image: list[Input] | list[str] | list[Path]) -> list[Segmentation]: ...

    def __call__(self, image: Any) -> Any:
        if isinstance(image, (list, tuple)):
            return list(self.stream(image))
        return next(self.stream([image], num_workers=0))

    def stream(self, images: Iterable[Input], num_workers: int = 2) -> Iterator[Segmentation]:
        """The Segmentation of each image, in order; threads read and prepare the images ahead."""
        for i, (image, loaded, error) in enumerate(prefetch(self.load, images, num_workers)):
            if error is not None:
                raise error
            bgr, sample = loaded
            try:
                maps = self.predictor.maps(sample)
            except UserError as fault:
                name = f'image {i}' if isinstance(image, (Image.Image, np.ndarray)) else os.fspath(image)
                raise UserError(f'{name}: {fault}') from fault
            yield Segmentation(np.ascontiguousarray(bgr[..., ::-1]), maps, self.labels, self.colors)

    def load(self, image: Input) -> tuple[np.ndarray, dict[str, Any]]:
        """(uint8 (H, W, 3) BGR, the sample that Predictor takes) of an image; can run in threads."""
        return self.load_bgr(_as_bgr(image))

    def load_bgr(self, bgr: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """As `load`, of uint8 (H, W, 3) BGR, OpenCV's order."""
        from datasets.normalization import compact_image

        sample = self._transforms({'img': bgr.astype('float32')})
        return bgr, {**sample, 'img': compact_image(sample['img'], self._normalization),
                     'normalization': self._normalization}


def _as_bgr(image: Input) -> np.ndarray:
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert('RGB'))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise UserError('image: expected a path, a PIL image or an array of uint8 RGB (H, W, 3), found an array of '
                            f'{image.dtype} {image.shape}; convert it')
        return np.ascontiguousarray(image[..., ::-1])
    if isinstance(image, (str, os.PathLike)):
        return pictures.read_image(image)
    raise UserError('image: expected a path, a PIL image or an array of uint8 RGB (H, W, 3), found '
                    f'{type(image).__name__}; convert it')
