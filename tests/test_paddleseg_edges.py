"""Edges of `edge: True` are bit for bit PaddleSeg's; masks of instances need no transform."""
import numpy as np
import paddle
import paddleseg.datasets
import paddleseg.transforms as T
import paddleseg.transforms.functional as F
import pytest

from datasets.edges import class_edges
from datasets.paddleseg_dataset import adapted
from datasets.sampling import EpochStream
from training.loader import training_batches


@pytest.mark.parametrize('classes, size, block', [(5, (40, 50), 4), (2, (33, 21), 3), (3, (20, 20), 20), (3, (9, 9), 1),
                                                  (19, (64, 128), 8), (1, (6, 5), 2), (2, (2, 2), 1)])
def test_edges_are_paddlesegs(classes, size, block):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        label = rng.integers(0, classes, (size[0] // block + 1, size[1] // block + 1))
        label[rng.random(label.shape) < 0.2] = 255
        label = label.repeat(block, 0).repeat(block, 1)[:size[0], :size[1]].astype(np.uint8)
        found = class_edges(label, classes)
        assert found.dtype == np.uint8 and np.array_equal(found, F.mask_to_binary_edge(label, 2, classes)[0])


def test_edges_by_hand():
    label = np.zeros((7, 9), np.int64)
    label[:, 6:] = 1
    expected = np.zeros((7, 9), np.uint8)
    expected[:, 4:8] = 1  # within 2 pixels of the other class, on both sides
    expected[:2] = expected[-2:] = expected[:, :2] = expected[:, -2:] = 1  # and of the border
    assert np.array_equal(class_edges(label, 2), expected)


def transforms():
    return [T.ResizeStepScaling(0.5, 2.0, 0.25), T.RandomPaddingCrop([64, 48]), T.RandomHorizontalFlip(),
            T.RandomDistort()]


def test_a_sample_has_the_edges_of_its_label(toy):
    dataset = paddleseg.datasets.Cityscapes([*transforms(), T.Normalize()], str(toy), 'train', edge=True)
    ours = adapted(dataset)
    assert dataset.edge, 'the caller\'s own is as it was'
    plain = adapted(paddleseg.datasets.Cityscapes([*transforms(), T.Normalize()], str(toy), 'train'))
    for index in ((0, 0), (3, 2)):
        sample = ours[index]
        assert set(sample) == {'img', 'label', 'edge'} and set(ours.compact(index)) == set(sample)
        assert sample['edge'].dtype == np.uint8 and 0 < sample['edge'].mean() < 1
        assert np.array_equal(sample['edge'][None], F.mask_to_binary_edge(sample['label'], 2, 19))
        assert all(np.array_equal(sample[key], plain[index][key]) for key in ('img', 'label'))
    assert 'edge' not in adapted(paddleseg.datasets.Cityscapes([T.Normalize()], str(toy), 'val', edge=True))[0]


@pytest.mark.parametrize('workers', [0, 1])
def test_the_loader_gives_edges(toy, workers):
    dataset = adapted(paddleseg.datasets.Cityscapes([*transforms(), T.Normalize()], str(toy), 'train', edge=True))
    stream = EpochStream(dataset, 2, 2, 0, 0, 1, 0)
    for batch, indices in zip(training_batches(dataset, stream, workers), list(EpochStream(dataset, 2, 2, 0, 0, 1, 0))):
        assert batch['edge'].dtype == paddle.uint8 and batch['edge'].shape == [2, 48, 64]
        assert all(np.array_equal(batch['edge'][i].numpy(), dataset[index]['edge']) for i, index in enumerate(indices))


def test_a_dataset_that_computes_edges_itself_keeps_them():
    class WithEdges(paddle.io.Dataset):
        mode, num_classes, ignore_index, file_list, edge = 'train', 2, 255, [['a.png', 'b.png']], False

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return {'img': np.zeros((3, 4, 6), np.float32), 'label': np.ones((4, 6), np.uint8),
                    'edge': np.arange(24).reshape(1, 4, 6) % 2}

    edge = adapted(WithEdges())[0]['edge']
    assert edge.dtype == np.uint8 and np.array_equal(edge, np.arange(24).reshape(4, 6) % 2)


def test_masks_of_instances_are_left_to_the_loss(toy):
    steps = [*transforms(), T.GenerateInstanceTargets(num_classes=19), T.Normalize()]
    ours = adapted(paddleseg.datasets.Cityscapes(steps, str(toy), 'train'))
    plain = adapted(paddleseg.datasets.Cityscapes([*transforms(), T.Normalize()], str(toy), 'train'))
    assert not any(isinstance(step, T.GenerateInstanceTargets) for step in ours.dataset.transforms.transforms)
    assert set(ours[0]) == {'img', 'label'} and ours.normalization is not None
    assert all(np.array_equal(ours[0][key], plain[0][key]) for key in ours[0])
