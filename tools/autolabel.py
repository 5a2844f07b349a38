"""Label images with a trained network, as training data: only pixels where it is confident enough.

    python tools/autolabel.py --config configs/... --model_path .../model.pdparams \\
        --image_dir data/cityscapes/leftImg8bit_trainextra/leftImg8bit/train_extra \\
        --save_dir data/cityscapes/refinement_final/train_extra --aug_pred --flip_horizontal
    python tools/convert_cityscapes_autolabeling.py --dataset_root data/cityscapes

For every image, in the same folders as in image_dir, it writes
    <stem>_leftImg8bit.png   the label: label ids (train ids if the dataset has no label ids), void below the threshold
    <stem>_prediction.png    the same for all pixels, without void
    <stem>_confidence.png    the largest softmax probability in 1/255, rounded down
An image with another name, x.jpg, gives x.png, x_prediction.png and x_confidence.png; training data must be named
<city>/<stem>_leftImg8bit. autolabel.json records how the labels were made, with statistics of them.

Prediction takes most of the time. It is safe to interrupt: the next run, also on several GPUs (python -m
paddle.distributed.launch tools/autolabel.py ...), continues and keeps existing predictions. So trying another threshold
takes minutes: the same command with a new threshold only rewrites the labels. To predict an image again, delete its
prediction.

Hard labels with void below 0.9 follow Tao, Sapra, Catanzaro 2020 (arXiv:2005.10821).
"""
from __future__ import annotations  # Paddle and what needs it are imported late

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == '__main__':
    from shared import repository
    repository.import_from_root()

from common import cli, flags
from common.errors import is_expected

if TYPE_CHECKING:
    import numpy as np

    from datasets.labels import LabelSet
    from inference.predictor import Predictor
    from tools.autolabelling.files import Job


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_inference_flags(parser, '--aug_pred')
    parser.add_argument('--image_dir', required=True, help='folder of images, searched recursively')
    parser.add_argument('--save_dir', required=True, help='folder of the labels: new, empty, or of an earlier run')
    parser.add_argument('--threshold', type=float, default=0.9,
                        help="least confidence of a label, 0-1 (default: 0.9, the paper's; NVIDIA's released labels of "
                             'Cityscapes were made with 0.5)')
    parser.add_argument('--class_thresholds', nargs='+', default=[], metavar='NAME=T',
                        help='thresholds of single classes, for example person=0.7 "traffic light=0.6"')
    parser.add_argument('--class_budget', type=float, metavar='SHARE',
                        help='lower the threshold of each class as far as is needed to keep this share (0-1) of the '
                             'pixels predicted as it, its most confident ones, so that rare classes survive: '
                             'min(threshold, (1 - SHARE) quantile of their confidences over all images)')
    parser.add_argument('--ground_truth', metavar='DIR',
                        help='compare with label ids in DIR, which has the folders of image_dir: <name>.png or '
                             '<stem>_gtFine_labelIds.png, for all images or some')
    cli.add_debug_flag(parser)
    return parser.parse_args(argv)


def confident(predict: Predictor, sample: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Train ids and confidences of a sample, both uint8 (H, W) at the original size of the image.

    The confidence is the largest softmax probability of the averaged logits, in 1/255 and rounded down.
    """
    import numpy as np

    from inference import maps

    train_ids, confidence = maps.classes_and_confidence(predict.original_logits(sample).astype('float32'))
    # In float64 the product is exact; rounded up, a confidence could reach a threshold that it is below.
    return train_ids, np.floor(confidence.astype(np.float64) * 255).astype(np.uint8)


def predict_all(predict: Predictor, transforms: Callable[[dict[str, Any]], dict[str, Any]], label_set: LabelSet,
                jobs: Sequence[Job], num_workers: int, bar: Bar) -> list[str]:
    """Write the prediction and confidence of every job. Returns an error message for each image that cannot be read."""
    from inference import pictures
    from inference.prefetch import prefetch
    from tools.autolabelling import files

    failed: list[str] = []

    def load(job: Job) -> dict[str, Any]:
        return transforms({'img': pictures.read_image(job.image).astype('float32')})

    def results() -> Iterator[tuple[Job, np.ndarray, np.ndarray]]:
        for job, sample, error in prefetch(load, jobs, num_workers):
            if error is None:
                yield job, *confident(predict, sample)
            elif is_expected(error):
                failed.append(str(error) if str(job.image) in str(error) else f'{job.image}: {error}')
                bar.advance()
            else:
                raise error

    def write(result: tuple[Job, np.ndarray, np.ndarray]) -> None:
        files.write_prediction(*result, label_set)

    # Encoding and flushing to disk also take time: the next image is predicted meanwhile.
    for _, _, error in prefetch(write, results(), num_workers):
        if error is not None:
            raise error
        bar.advance()
    return failed


def label_all(label_set: LabelSet, jobs: Sequence[Job], level: np.ndarray | None, truths: Mapping[Job, Path],
              num_workers: int, bar: Bar) -> list[np.ndarray]:
    """Write the labels of jobs that have predictions; without `level`, only count.

    Returns three int64 arrays: the histogram (K, 256), the confusion matrix with ground truth (K, K), and the same for
    the kept pixels; see tools.autolabelling.thresholds.
    """
    import numpy as np

    from inference import metrics
    from inference.prefetch import prefetch
    from tools.autolabelling import files

    classes, ignore = label_set.num_classes, label_set.ignore_index
    to_label_id = label_set.train_id_to_label_id()

    def one(job: Job) -> list[np.ndarray]:
        train_ids, confidence = files.read_prediction(job, label_set)
        pairs = train_ids.astype(np.intp) * 256 + confidence
        counts = [np.bincount(pairs.ravel(), minlength=classes * 256).reshape(classes, 256)]
        if level is not None:
            void = confidence < level[train_ids]
            files.save(job.label, to_label_id[np.where(void, ignore, train_ids)])
            if job in truths:
                truth = files.read_truth(truths[job], train_ids.shape, label_set)
                counts += [metrics.confusion_matrix(labels, train_ids, classes, ignore)
                           for labels in (truth, np.where(void, ignore, truth))]
        return counts

    totals = [np.zeros(shape, np.int64) for shape in ((classes, 256), (classes, classes), (classes, classes))]
    for _, counts, error in prefetch(one, jobs, num_workers):
        if error is not None:
            raise error
        for total, count in zip(totals, counts):
            total += count
        bar.advance()
    return totals


class Bar:
    """One progress bar for all processes, which proceed at about the same pace."""

    def __init__(self, desc: str, total: int, rank: int, world_size: int) -> None:
        from tqdm import tqdm

        self.step, self.total = world_size, total
        self.bar = tqdm(total=total, desc=desc, unit='image', disable=True if rank else None)

    def advance(self) -> None:
        self.bar.update(min(self.step, self.total - self.bar.n))

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()


def main(argv: Sequence[str] | None = None) -> int | None:
    args = parse_args(argv)
    cli.start_paddle()
    import paddle
    from paddleseg.transforms import Compose

    from common.atomic_io import FolderLock
    from common.builder import Builder
    from common.config import Config
    from common.model_zoo import local_weights
    from datasets.sampling import shard
    from inference import backends
    from inference.predictor import Predictor
    from inference.processes import gather
    from tools.autolabelling import files, thresholds

    logger = logging.getLogger('autolabel')
    rank, world_size = paddle.distributed.get_rank(), paddle.distributed.get_world_size()

    # ------------------------------------------------ all checks, before anything is written
    flags.warn_unused(args, logger)
    thresholds.check_share('threshold', args.threshold)
    if args.class_budget is not None:
        thresholds.check_share('class_budget', args.class_budget)
    jobs = files.find_jobs(args.image_dir, args.save_dir)
    config = Config(args.config, args.opts, with_pretrained=False)
    vars(args).update(flags.with_test_config(vars(args), config.test_config))
    builder = Builder(config)
    args.model_path = str(local_weights(args.model_path))
    builder.check_weights(Path(args.model_path).parent.parent)
    label_set = builder.labels
    by_class = thresholds.class_thresholds(args.class_thresholds, label_set.names)
    truths = files.find_truths(args.ground_truth, jobs, label_set) if args.ground_truth else {}
    options = flags.predictor_options(vars(args))
    settings = files.settings_of(config, label_set, {**options, **flags.precision_settings(args)}, args.model_path,
                                 args.image_dir, args.save_dir)
    flags.check_writable(args.save_dir)
    files.check_folder(args.save_dir, settings)

    with FolderLock(args.save_dir) if rank == 0 else contextlib.nullcontext():
        record = {'settings': settings, 'config': args.config, 'model_path': args.model_path, 'opts': args.opts,
                  'threshold': args.threshold, 'class_thresholds': by_class, 'class_budget': args.class_budget}
        left = sum(not job.predicted for job in jobs)
        if rank == 0:
            files.remember(args.save_dir, {**record, 'complete': False})
            logger.info('%d of %d images have predictions already', len(jobs) - left, len(jobs))
        gather(None)

        # -------------------------------------------- predictions and confidences
        mine = [jobs[i] for i in shard(len(jobs), rank, world_size)]
        todo, failed = [job for job in mine if not job.predicted], []
        if todo:
            network = backends.create(builder, args.model_path, memory_limit=options.get('memory_limit'),
                                      **flags.network_options(args))
            predict = Predictor(network, **options)
            with Bar('predict', left, rank, world_size) as bar:
                failed = predict_all(predict, Compose(builder.val_transforms), label_set, todo, args.num_workers, bar)
        failed = sum(gather(failed), [])

        # -------------------------------------------- labels
        level = thresholds.levels(args.threshold, by_class, label_set.names)
        mine = [job for job in mine if job.predicted]
        done = len(jobs) - len(failed)

        def write_labels(desc: str, level: np.ndarray | None) -> list[np.ndarray]:
            with Bar(desc, done, rank, world_size) as bar:
                parts = gather(label_all(label_set, mine, level, truths, args.num_workers, bar))
            return [sum(part) for part in zip(*parts)]

        if args.class_budget is not None:
            level = thresholds.lowered_to_budget(level, write_labels('count', None)[0], args.class_budget)
        histogram, *matrices = write_labels('label', level)
        if rank == 0:
            result = thresholds.summary(histogram, level, label_set.names, *(matrices if truths else ()))
            files.remember(args.save_dir, {**record, 'complete': True, 'images': done, 'failed': failed, **result})

    if rank:
        return None
    print(thresholds.table(result))
    logger.info('labels of %d images in %s%s', done, args.save_dir,
                f', {len(truths)} of {len(jobs)} images compared with ground truth' if truths else '')
    if unfit := sum(not files.in_training_layout(job) for job in jobs):
        logger.info('%d of %d images are not named <city>/<stem>%s: the layout of training data needs that', unfit,
                    len(jobs), files.IMAGE)
    for line in failed:
        print(f'error: {line}', file=sys.stderr)
    if failed:
        print(f'error: {len(failed)} of {len(jobs)} images have no label, and training wants one for each; replace '
              f'them and run this again, or remove them from {args.image_dir}', file=sys.stderr)
    return cli.EXIT_ERROR if failed else None


if __name__ == '__main__':
    cli.run(main)
