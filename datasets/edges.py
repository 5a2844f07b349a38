"""Where classes meet, for the losses on edges of GSCNN and DecoupledSegNet."""
import numpy as np

RADIUS = 2  # pixels; of PaddleSeg's datasets


def class_edges(label: np.ndarray, num_classes: int) -> np.ndarray:
    """Integer class ids (H, W) -> uint8 (H, W), 1 at edges, bit for bit what PaddleSeg's `edge: True` gives.

    A pixel is an edge if one of another class lies within RADIUS of it, measured from centre to centre; all ids outside
    of 0..num_classes - 1 (void) are one class more, as is what lies outside of the image.

    PaddleSeg takes two distance transforms per class (paddleseg.transforms.functional.mask_to_binary_edge). Comparing
    with the 12 neighbours within 2 pixels is the same, and 200 times as fast (benchmarks/paddleseg_edges.py).
    """
    label = np.where((label < 0) | (label >= num_classes), num_classes, label).astype(np.int32)
    height, width = label.shape
    around = np.pad(label, RADIUS, constant_values=num_classes)
    edges = np.zeros(label.shape, bool)
    for down in range(-RADIUS, RADIUS + 1):
        for right in range(-RADIUS, RADIUS + 1):
            if 0 < down ** 2 + right ** 2 <= RADIUS ** 2:
                rows, columns = RADIUS + down, RADIUS + right
                edges |= around[rows:rows + height, columns:columns + width] != label
    return edges.astype(np.uint8)
