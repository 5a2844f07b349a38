"""PaddleSeg 2.8's transforms that need a hand."""
from typing import Any

import numpy as np
import paddleseg.transforms
from paddleseg.transforms import functional


class RandomPaddingCrop(paddleseg.transforms.RandomPaddingCrop):
    """PaddleSeg's, with a `category_max_ratio` below 1 that works.

    PaddleSeg 2.8 puts the labels in the place of the image there, and leaves the image uncropped where no crop fits.
    Here, as its documentation says, up to `loop_times` crops are drawn until no class fills more than that share of the
    labelled pixels, and at least two classes occur; the last one drawn is taken where none is like that.
    """

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        size = data['img'].shape[:2]
        if self.category_max_ratio >= 1 or size == self.crop_size:
            return super().__call__(data)
        data = self._padding(data)
        for _ in range(self.loop_times):
            crop = self._get_crop_coordinates(data['img'].shape[:2])
            if 'label' not in data.get('gt_fields', ()):
                break
            ids, counts = np.unique(functional.crop(data['label'], crop), return_counts=True)
            counts = counts[ids != self.ignore_index]
            if len(counts) > 1 and counts.max() / counts.sum() < self.category_max_ratio:
                break
        for key in ('img', *data.get('gt_fields', ())):
            data[key] = functional.crop(data[key], crop)
        return data
