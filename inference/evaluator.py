"""Scores of a predict function over a dataset; every image counts exactly once for any number of processes."""
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import paddle
from tqdm import tqdm

from common.errors import UserError
from datasets.labels import LabelSet
from datasets.sampling import shard
from inference import maps, metrics, records
from inference.maps import Maps
from inference.predictor import Predictor, uploaded
from inference.prefetch import prefetch
from inference.processes import gather
from inference.records import Record
from inference.scores.base import Score, ScoredImage
from inference.scores.categories import category_iou

AHEAD = 4  # images that a GPU may be ahead of the counts that are read back from it


class LabelledDataset(Protocol):
    """A dataset in validation mode: its samples have an integer 'label' (H, W), untransformed.

    With `file_list`, as PaddleSeg's datasets have it, its images have names.
    """
    num_classes: int
    ignore_index: int

    def __len__(self) -> int:
        ...

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        ...


class Journal(Protocol):
    """Where records are kept as they are made (inference.evaluation_journal)."""
    @property
    def found(self) -> Mapping[int, Record]:
        ...

    def append(self, record: Record) -> None:
        ...


Predict = Callable[[Mapping[str, Any]], np.ndarray]
Watch = Callable[[int, str, np.ndarray, Maps], None]


def evaluate(predict: Predict, dataset: LabelledDataset, num_workers: int = 0, labels: LabelSet | None = None,
             scores: Sequence[Score] = (), journal: Journal | None = None, images: bool = False,
             watch: Watch | None = None) -> dict[str, Any]:
    """Evaluate `predict` (sample -> uint8 (H, W) train ids) on the dataset's labels.

    labels: for the IoU of categories, where it has them. scores: further scores; those that need the confidence need a
    Predictor. journal: images found there are not predicted again. images: return the scores of each image, too.
    watch: is called with each image's index, name, label (H, W) and maps, of a Predictor, before it is counted.

    On a GPU, what a Predictor predicts is counted there, and the counts follow a few images later, unless `scores` need
    the prediction; images and labels go there in 8 bits, if the dataset has the method `compact`. With several
    processes, each evaluates its share of the images, and all return the same result:
    inference.metrics.scores of the whole dataset, with
        'matrix': the int64 confusion matrix
        'categories': inference.scores.categories.category_iou, if `labels` has categories
        score.key: score.total of every score
        'images': [inference.records.Record.scores], in the order of the dataset, if asked for
    Raises UserError, which names the image, for a label or prediction that does not fit and for logits that are not
    finite.
    """
    rank, world_size = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
    total = len(dataset)
    if total == 0:
        raise UserError('val_dataset: expected images to evaluate on, found none; check dataset_root and the split')
    names = records.image_names(dataset)
    done = dict(journal.found) if journal else {}
    rest = [index for index in range(total) if index not in done]
    indices = [rest[i] for i in shard(len(rest), rank, world_size)]
    made: dict[int, Record] = {}
    waiting: deque[Callable[[], Record]] = deque()
    on_gpu = isinstance(predict, Predictor) and paddle.get_device() != 'cpu'
    read: Callable[[int], Mapping[str, Any]] = getattr(dataset, 'compact', dataset.__getitem__) if on_gpu else (
        dataset.__getitem__)
    ahead = AHEAD if _counts_on_device(predict, scores, watch) else 0
    with tqdm(total=total, initial=len(done), desc='evaluate', unit='image', disable=True if rank else None) as bar:
        def finish(left: int) -> None:
            while len(waiting) > left:
                record = waiting.popleft()()
                if journal:
                    journal.append(record)
                made[record.index] = record
                bar.update(min(world_size, total - bar.n))

        for index, sample, error in prefetch(read, indices, num_workers):
            if error is not None:
                raise error
            if on_gpu:
                sample = uploaded(sample, getattr(dataset, 'normalization', None))
            waiting.append(_count(predict, dataset, index, names[index], sample, scores, watch))
            finish(ahead)
        finish(0)
    for share in gather(made):
        done.update(share)
    return summary([done[index] for index in range(total)], dataset.num_classes, labels, scores, images)


def summary(found: Sequence[Record], num_classes: int, labels: LabelSet | None = None, scores: Sequence[Score] = (),
            images: bool = False) -> dict[str, Any]:
    """The result of `evaluate` from the records of all images, in their order."""
    matrix = np.zeros([num_classes] * 2, np.int64)
    for record in found:
        matrix += record.matrix(num_classes)
    result: dict[str, Any] = {**metrics.scores(matrix), 'matrix': matrix}
    if labels is not None and labels.categories:
        result['categories'] = category_iou(matrix, labels)
    for score in scores:
        result[score.key] = score.total([record.tables[score.key] for record in found], matrix)
    if images:
        result['images'] = [record.scores(num_classes) for record in found]
    return result


def _counts_on_device(predict: Predict, scores: Sequence[Score], watch: Watch | None) -> bool:
    return isinstance(predict, Predictor) and paddle.get_device() != 'cpu' and not scores and watch is None


def _count(predict: Predict, dataset: LabelledDataset, index: int, name: str, sample: Mapping[str, Any],
           scores: Sequence[Score], watch: Watch | None = None) -> Callable[[], Record]:
    """Predict and count an image; the function that is returned waits for the counts."""
    num_classes, ignore_index = dataset.num_classes, dataset.ignore_index
    label = np.asarray(sample['label'])
    image_path, label_path = records.image_files(dataset, index)
    with _named(label_path):
        metrics.check_label(label, num_classes, ignore_index)
    with _named(image_path):
        if _counts_on_device(predict, scores, watch):
            assert isinstance(predict, Predictor)
            logits = _logits(predict, sample, num_classes)
            total = logits.sum()  # one pass that meets every NaN and infinity
            counts = metrics.confusion_on_device(paddle.to_tensor(label), logits.argmax(axis=1)[0], num_classes,
                                                 ignore_index)

            def read() -> Record:
                with _named(image_path):
                    if not np.isfinite(total.numpy()).all():
                        raise UserError(maps.NOT_FINITE)
                return records.of_matrix(index, name, counts.numpy())

            return read
        classes, confidence = _predicted(predict, sample, index, name, label, num_classes, scores, watch)
        image = ScoredImage(index, label, classes, confidence)
        matrix = metrics.confusion_matrix(label, classes, num_classes, ignore_index)
        record = records.of_matrix(index, name, matrix, {score.key: score.measure(image) for score in scores})
    return lambda: record


def _predicted(predict: Predict, sample: Mapping[str, Any], index: int, name: str, label: np.ndarray, num_classes: int,
               scores: Sequence[Score], watch: Watch | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Classes, uint8 (H, W), and confidence, float32 (H, W), if `scores` need it."""
    if not isinstance(predict, Predictor):
        return predict(sample), None
    if watch is not None:
        found = predict.maps(sample)
        watch(index, name, label, found)
        return found.classes, found.confidence
    logits = _logits(predict, sample, num_classes)
    if any(score.needs_confidence for score in scores):
        return maps.classes_and_confidence(logits)
    maps.check_finite(logits)
    return logits.argmax(axis=1)[0].numpy().astype(np.uint8), None


@paddle.no_grad()
def _logits(predict: Predictor, sample: Mapping[str, Any], num_classes: int) -> paddle.Tensor:
    """Logits (1, K, H, W) at the original size."""
    logits = predict.original_logits(sample)
    if logits.shape[1] != num_classes:
        raise UserError(f'expected logits of the {num_classes} classes of the dataset, found {logits.shape[1]}; the '
                        'weights are of other classes')
    return logits


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Put the path in front of a UserError that does not name it."""
    try:
        yield
    except UserError as error:
        if path in str(error):
            raise
        raise UserError(f'{path}: {error}') from None
