"""The order of samples: one endless stream of permutations, cut into slices."""
import numpy as np
import paddle
import pytest

from datasets.sampling import EpochStream, shard


class Echo(paddle.io.Dataset):
    """Returns the index it is asked for, and whether that was a tuple."""

    def __init__(self, length):
        self.length = length

    def __getitem__(self, index):
        return {'index': np.array([*index, isinstance(index, tuple)])}

    def __len__(self):
        return self.length


def flat(batches):
    return [sample for batch in batches for sample in batch]


def test_every_epoch_is_one_permutation_and_epochs_differ():
    samples = flat(EpochStream(Echo(10), batch_size=4, iters=10))  # 40 samples: 4 epochs, batches across their ends
    assert [epoch for epoch, _ in samples] == np.repeat(range(4), 10).tolist()
    orders = [[index for _, index in samples[start:start + 10]] for start in range(0, 40, 10)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders + [sorted(orders[0])]}) == 5


def test_batch_larger_than_the_dataset_spans_epochs():
    batches = list(EpochStream(Echo(3), batch_size=8, iters=3))
    assert [len(batch) for batch in batches] == [8, 8, 8]
    assert sorted(flat(batches)) == [(epoch, index) for epoch in range(8) for index in range(3)]


def test_seed_decides_the_order():
    first = flat(EpochStream(Echo(50), 5, 10, seed=1))
    assert first == flat(EpochStream(Echo(50), 5, 10, seed=1))
    assert first != flat(EpochStream(Echo(50), 5, 10, seed=2))


@pytest.mark.parametrize('world_size', [2, 3])
def test_processes_share_the_batch_of_one(world_size):
    whole = EpochStream(Echo(10), batch_size=2 * world_size, iters=7, seed=3)
    parts = [EpochStream(Echo(10), 2, 7, rank=rank, world_size=world_size, seed=3) for rank in range(world_size)]
    assert [flat(slices) for slices in zip(*parts)] == list(whole)


def test_fewer_processes_with_more_accumulation_take_the_same_micro_batches():
    """As docs/elastic.md promises to who goes on with fewer machines: step by step, in the same order."""
    def steps(world_size, accum_steps):
        ranks = [EpochStream(Echo(10), 2, 6 * accum_steps, rank=rank, world_size=world_size, seed=3)
                 for rank in range(world_size)]
        batches = [batch for micro_step in zip(*ranks) for batch in micro_step]
        return [batches[start:start + 4] for start in range(0, len(batches), 4)]

    assert len(steps(4, 1)) == 6
    assert steps(4, 1) == steps(2, 2) == steps(1, 4)


def test_resumed_stream_is_the_tail():
    whole = EpochStream(Echo(10), 3, iters=9, rank=1, world_size=2, seed=3)
    tail = EpochStream(Echo(10), 3, iters=9, start_iter=4, rank=1, world_size=2, seed=3)
    assert (len(whole), len(tail)) == (9, 5)
    assert list(tail) == list(whole)[4:]
    assert list(tail) == list(tail)  # iterating leaves nothing behind
    done = EpochStream(Echo(10), 3, iters=9, start_iter=9)
    assert (len(done), list(done)) == (0, [])


@pytest.mark.parametrize('num_workers', [2, 0])
def test_loader_hands_the_tuples_on(num_workers):
    stream = EpochStream(Echo(5), batch_size=2, iters=6, start_iter=1, seed=3)
    loader = paddle.io.DataLoader(Echo(5), batch_sampler=stream, num_workers=num_workers)
    assert len(loader) == 5
    received = [batch['index'].numpy().tolist() for batch in loader]
    assert received == [[[epoch, index, 1] for epoch, index in batch] for batch in stream]


@pytest.mark.parametrize('arguments, name', [
    (dict(batch_size=0), 'batch_size'), (dict(iters=-1), 'iters'), (dict(start_iter=6), 'start_iter'),
    (dict(start_iter=-1), 'start_iter'), (dict(rank=2, world_size=2), 'rank'), (dict(rank=-1), 'rank'),
    (dict(seed=-1), 'seed'), (dict(dataset=Echo(0)), 'dataset')])
def test_values_out_of_range(arguments, name):
    with pytest.raises(ValueError, match=f'^{name}: expected .*; found [^\n]*$'):
        EpochStream(**{'dataset': Echo(3), 'batch_size': 1, 'iters': 5, **arguments})


@pytest.mark.parametrize('n', [0, 1, 7, 500])
@pytest.mark.parametrize('world_size', [1, 3, 8])
def test_shards_hold_every_index_once(n, world_size):
    shards = [shard(n, rank, world_size) for rank in range(world_size)]
    assert sorted(flat(shards)) == list(range(n))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    with pytest.raises(ValueError, match=r'^rank: '):
        shard(n, world_size, world_size)
