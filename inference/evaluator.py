"""Scores of a predict function over a dataset; every image counts exactly once whatever the number of processes."""
import numpy as np
import paddle
from tqdm import tqdm

from datasets.sampling import shard
from inference import metrics
from inference.prefetch import prefetch


def evaluate(predict, dataset, num_workers=0):
    """Evaluate `predict` (sample -> uint8 (H, W) train ids) on the dataset's labels.

    Under several processes each takes its share of the images, and all return the same result. Returns
    inference.metrics.scores of the whole dataset, with the int64 confusion matrix under 'matrix'.
    """
    rank, world_size = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
    matrix = np.zeros([dataset.num_classes] * 2, np.int64)
    indices = shard(len(dataset), rank, world_size)
    with tqdm(total=len(dataset), desc='evaluate', unit='image', disable=True if rank else None) as bar:
        for _, sample, error in prefetch(dataset.__getitem__, indices, num_workers):
            if error is not None:
                raise error
            matrix += metrics.confusion_matrix(np.asarray(sample['label']), predict(sample), dataset.num_classes,
                                               dataset.ignore_index)
            bar.update(min(world_size, bar.total - bar.n))
    if world_size > 1:
        total = paddle.to_tensor(matrix)
        paddle.distributed.all_reduce(total)
        matrix = total.numpy()
    return {**metrics.scores(matrix), 'matrix': matrix}
