"""Pictures of an evaluation, for the run log: image, ground truth, prediction, attention."""
from typing import Any

import cv2
import numpy as np

from datasets.labels import LabelSet
from inference import pictures
from inference.predictor import Predictor


def evaluation_pictures(predictor: Predictor, dataset: Any, labels: LabelSet, count: int = 4,
                        longest: int = 512) -> list[np.ndarray]:
    """The first `count` validation images as uint8 RGB (2h, 2w, 3) pictures of four panels:

        image        ground truth (void is black)
        prediction   attention: the weight of the lowest scale (white: all; black for a model without scales)

    predictor: inference.predictor.Predictor. dataset: in validation mode, with PaddleSeg's file_list
    [(image path, label path)]. labels: LabelSet. longest: bound of a panel's longer side in pixels; smaller images
    keep their size.
    UserError for an image that cannot be read.
    """
    colors = pictures.color_table(labels)
    result = []
    for i in range(min(count, len(dataset))):
        sample = dataset[i]
        label = np.asarray(sample['label']).astype(np.uint8)
        ratio = min(1, longest / max(label.shape))
        size = [max(1, round(side * ratio)) for side in label.shape[::-1]]  # OpenCV's order: (w, h)
        image = pictures.read_image(dataset.file_list[i][0])[..., ::-1]
        found = predictor.maps(sample)
        grey = next(iter(found.attention.values()), np.zeros(label.shape, np.float32))
        grey = np.rint(255 * cv2.resize(grey, size, interpolation=cv2.INTER_AREA).clip(0, 1)).astype(np.uint8)
        truth, guess = (colors[cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST)]
                        for ids in (label, found.classes))
        image = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)
        result.append(np.vstack([np.hstack([image, truth]), np.hstack([guess, np.dstack([grey] * 3)])]))
    return result
