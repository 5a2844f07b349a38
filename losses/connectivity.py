"""How well predicted and labelled regions belong together: the value of PaddleSeg's SemanticConnectivityLoss."""
import cv2
import numpy as np


def semantic_connectivity(predictions: np.ndarray, labels: np.ndarray, ignore_index: int = 255,
                          max_regions: int = 10) -> float:
    """Semantic connectivity loss (Chu et al. 2021, arXiv 2112.07146), as PaddleSeg 2.8 computes it: 0 is best.

    Per class of an image's labels: the predicted and the labelled connected regions (8 neighbours) are paired where
    they overlap; the loss is 1 minus the sum over labelled regions of the mean IoU with their partners, divided by
    the number of labelled regions and of predicted ones without a partner. A class that is not predicted at all counts
    1 and its share of the image's pixels. The mean over the classes, then over the images.

    Two things are PaddleSeg's alone: the predicted region enters the IoU with the class id as its weight (so class 0
    has no partners), and void pixels are not left out of the predicted regions.

    Args:
        predictions (ndarray): (N, H, W), integer class ids.
        labels (ndarray): (N, H, W), integer class ids, ignore_index for void.
        ignore_index (int): the label of void pixels.
        max_regions (int): where there are more than twice as many predicted regions as labelled ones (each with the
            background), only the first max_regions - 1 of them count.
    """
    return float(np.mean([_of_image(*pair, ignore_index, max_regions) for pair in zip(predictions, labels)]))


def _of_image(predictions: np.ndarray, labels: np.ndarray, ignore_index: int, max_regions: int) -> float:
    classes = np.unique(labels)
    classes = classes[classes != ignore_index]
    values = [_of_class(predictions == i, labels == i, int(i), max_regions) for i in classes]
    return float(np.mean(values)) if values else 0.0


def _of_class(predicted: np.ndarray, labelled: np.ndarray, weight: int, max_regions: int) -> float:
    num_predicted, regions = cv2.connectedComponents(predicted.astype(np.uint8))
    num_labelled, truth = cv2.connectedComponents(labelled.astype(np.uint8))
    counts = np.bincount((truth * num_predicted + regions).ravel(), minlength=num_labelled * num_predicted)
    counts = counts.reshape(num_labelled, num_predicted).astype(np.float64)  # 0 is the background of both
    used = min(num_predicted, max_regions) if num_predicted > 2 * num_labelled else num_predicted
    if used <= 1:
        return float((labelled & ~predicted).mean()) + 1
    overlap = weight * counts[1:, 1:used]
    union = weight * counts.sum(axis=0)[1:used] + counts.sum(axis=1)[1:, None] - overlap
    iou = overlap / union
    partners = (iou > 0).sum(axis=1)
    lone = (iou.sum(axis=0) == 0).sum()
    of_labelled = iou.sum(axis=1) / np.maximum(partners, 1)
    return 1 - float(of_labelled.sum()) / (num_labelled - 1 + lone)
