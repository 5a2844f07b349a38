"""The samples of each process, and their order."""
from collections.abc import Iterator, Sized
from functools import lru_cache

import numpy as np
import paddle

from common.errors import UserError

_EPOCH_ORDER = 1  # second word of the seed: separates this random stream from the dataset's


class EpochStream(paddle.io.BatchSampler):
    """The batches of one process of a training run; a batch_sampler for paddle.io.DataLoader.

    The order of samples is one endless stream: a random permutation of the dataset for epoch 0, then one for epoch 1,
    and so on; nothing is dropped or repeated at the end of an epoch. Iteration i takes the samples i*G .. (i+1)*G with
    G = batch_size * world_size, and process `rank` the rank-th slice of batch_size of them. So a run depends on G but
    not on how G is split among processes, and its iteration number is enough to resume it.

    Yields lists of batch_size tuples (epoch, index), one list for each iteration of start_iter .. iters.

    dataset: any object with a length. batch_size: samples per process and iteration. iters: iterations of the whole
    run. start_iter: iterations done before. seed: a non-negative int. Raises UserError for values out of range.
    """

    def __init__(self, dataset: Sized, batch_size: int, iters: int, start_iter: int = 0, rank: int = 0,
                 world_size: int = 1, seed: int = 0) -> None:
        for name, value, low in (('batch_size', batch_size, 1), ('iters', iters, 0), ('seed', seed, 0)):
            if value < low:
                raise UserError(f'{name}: expected at least {low}; found {value}')
        if not 0 <= start_iter <= iters:
            raise UserError(f'start_iter: expected 0..{iters}; found {start_iter}; raise iters to train longer')
        if not 0 <= rank < world_size:
            raise UserError(f'rank: expected 0..{world_size - 1} of {world_size} processes; found {rank}')
        if len(dataset) == 0:
            raise UserError('dataset: expected at least one sample; found none')
        super().__init__(dataset=dataset, batch_size=batch_size)
        self.length = len(dataset)
        self.iters = iters
        self.start_iter = start_iter
        self.rank = rank
        self.world_size = world_size
        self.seed = seed

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:  # type: ignore[override]  # Paddle's stub: int indices only
        @lru_cache(maxsize=2)  # a batch across the end of an epoch needs two
        def order(epoch: int) -> list[int]:
            return np.random.default_rng([self.seed, _EPOCH_ORDER, epoch]).permutation(self.length).tolist()

        for iteration in range(self.start_iter, self.iters):
            first = (iteration * self.world_size + self.rank) * self.batch_size
            positions = (divmod(position, self.length) for position in range(first, first + self.batch_size))
            yield [(epoch, order(epoch)[i]) for epoch, i in positions]

    def __len__(self) -> int:
        return self.iters - self.start_iter


def shard(n: int, rank: int, world_size: int) -> list[int]:
    """The samples out of n that process `rank` evaluates, as a list of indices.

    Over all processes each index occurs exactly once: no padding, which would count samples twice. The shares differ
    by at most one sample. Raises UserError for a rank out of range.
    """
    if not 0 <= rank < world_size:
        raise UserError(f'rank: expected 0..{world_size - 1} of {world_size} processes; found {rank}')
    return list(range(rank, n, world_size))
