"""Batches for training, from worker processes; an error in one arrives in the main process as what it is."""
import numpy as np
import paddle
from paddle.io.dataloader.collate import default_collate_fn


def training_batches(dataset, stream, num_workers):
    """Yield {'img': float32 (N, 3, H, W), 'label': int64 (N, H, W)} in the stream's order.

    Raises ValueError with the text of the sample that could not be made (Paddle itself prints a traceback from the
    worker and raises "Blocking queue is killed").
    """
    loader = paddle.io.DataLoader(_Reporting(dataset), batch_sampler=stream, collate_fn=_collate,
                                  num_workers=num_workers)
    count = 0
    for batch in loader:
        if 'error' in batch:
            raise ValueError(batch['error'])
        yield batch
        count += 1
    if count != len(stream):
        raise RuntimeError(f'the reader stopped after {count} of {len(stream)} batches')


class _Reporting(paddle.io.Dataset):
    """A dataset whose errors are samples: {'error': text}."""

    def __init__(self, dataset):
        super().__init__()
        self.dataset = dataset

    def __getitem__(self, index):
        try:
            return self.dataset[index]
        except (ValueError, OSError) as error:
            return {'error': str(error)}

    def __len__(self):
        return len(self.dataset)


def _collate(samples):
    failed = [sample for sample in samples if 'error' in sample]
    # The array is there because Paddle takes a batch without any for the end of the data.
    return {**failed[0], 'img': np.zeros(1, np.float32)} if failed else default_collate_fn(samples)
