"""Scores of a predict function over a dataset; every image counts exactly once for any number of processes."""
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import paddle
from tqdm import tqdm

from datasets.sampling import shard
from inference import metrics
from inference.predictor import Predictor, uploaded
from inference.prefetch import prefetch


class LabelledDataset(Protocol):
    """A dataset in validation mode: its samples have an integer 'label' (H, W), untransformed."""
    num_classes: int
    ignore_index: int

    def __len__(self) -> int:
        ...

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        ...


def evaluate(predict: Callable[[Mapping[str, Any]], np.ndarray], dataset: LabelledDataset,
             num_workers: int = 0) -> dict[str, Any]:
    """Evaluate `predict` (sample -> uint8 (H, W) train ids) on the dataset's labels.

    On a GPU, what a Predictor predicts is counted there, and the counts are read once at the end; images and labels go
    there in 8 bits, if the dataset has the method `compact`.
    With several processes, each evaluates its share of the images, and all return the same result. Returns
    inference.metrics.scores of the whole dataset, with the int64 confusion matrix under 'matrix'.
    """
    rank, world_size = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
    matrix = np.zeros([dataset.num_classes] * 2, np.int64)
    counts: paddle.Tensor | None = None
    on_gpu = isinstance(predict, Predictor) and paddle.get_device() != 'cpu'
    read: Callable[[int], Mapping[str, Any]] = getattr(dataset, 'compact', dataset.__getitem__) if on_gpu else (
        dataset.__getitem__)
    indices = shard(len(dataset), rank, world_size)
    with tqdm(total=len(dataset), desc='evaluate', unit='image', disable=True if rank else None) as bar:
        for _, sample, error in prefetch(read, indices, num_workers):
            if error is not None:
                raise error
            if on_gpu and isinstance(predict, Predictor):
                label = paddle.to_tensor(np.asarray(sample['label']))
                ids = predict.train_ids(uploaded(sample, getattr(dataset, 'normalization', None)))
                found = metrics.confusion_on_device(label, ids, dataset.num_classes, dataset.ignore_index)
                counts = found if counts is None else counts + found
            else:
                matrix += metrics.confusion_matrix(np.asarray(sample['label']), predict(sample), dataset.num_classes,
                                                   dataset.ignore_index)
            bar.update(min(world_size, len(dataset) - bar.n))
    if counts is not None:
        matrix += counts.numpy()
    if world_size > 1:
        total = paddle.to_tensor(matrix)
        paddle.distributed.all_reduce(total)
        matrix = total.numpy()
    return {**metrics.scores(matrix), 'matrix': matrix}
