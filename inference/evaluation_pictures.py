"""Pictures of an evaluation, for the run log: image, ground truth, prediction, attention."""
from typing import Any

import cv2
import numpy as np
import paddle

from datasets.labels import LabelSet
from inference import pictures
from inference.predictor import Predictor, restore_size


def evaluation_pictures(predictor: Predictor, dataset: Any, labels: LabelSet, count: int = 4,
                        longest: int = 512) -> list[np.ndarray]:
    """The first `count` validation images as uint8 RGB (2h, 2w, 3) pictures of four panels:

        image        ground truth (void is black)
        prediction   attention of the half scale (white: all weight on it; black for a model without attention_map)

    predictor: inference.predictor.Predictor. Its model may have `attention_map(images (N, 3, H, W), scale)` ->
    float (N, 1, H, W) of 0..1. dataset: in validation mode, with PaddleSeg's file_list [(image path, label path)].
    labels: LabelSet. longest: bound of a panel's longer side in pixels; smaller images keep their size.
    UserError for an image that cannot be read.
    """
    attend = getattr(predictor.model, 'attention_map', None)
    if attend is not None:  # through the same windows as the prediction, if any
        attention = Predictor(lambda x: [attend(x, 0.5)], crop_size=predictor.crop_size, stride=predictor.stride)
    colors = pictures.color_table(labels)
    result = []
    for i in range(min(count, len(dataset))):
        sample = dataset[i]
        label = np.asarray(sample['label']).astype(np.uint8)
        ratio = min(1, longest / max(label.shape))
        size = [max(1, round(side * ratio)) for side in label.shape[::-1]]  # OpenCV's order: (w, h)
        image = pictures.read_image(dataset.file_list[i][0])[..., ::-1]
        grey = np.zeros(label.shape, np.float32)
        if attend is not None:
            values = attention.logits(paddle.to_tensor(np.asarray(sample['img'])).unsqueeze(0))
            grey = restore_size(values, sample.get('trans_info', ()))[0, 0].numpy().astype(np.float32)
        grey = np.rint(255 * cv2.resize(grey, size, interpolation=cv2.INTER_AREA)).astype(np.uint8)
        truth, guess = (colors[cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST)]
                        for ids in (label, predictor(sample)))
        image = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)
        result.append(np.vstack([np.hstack([image, truth]), np.hstack([guess, np.dstack([grey] * 3)])]))
    return result
