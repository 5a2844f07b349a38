"""Run by the tests: the toy validation set with noisy predictions, scored alone or under the launcher.

python scored.py ROOT REPORT.json SECONDS RESUME: an image takes SECONDS at least.
"""
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from common import cli


def dataset(root):
    """The validation set with logits in place of images: the ground truth, with noise of several sizes."""
    import cv2
    import numpy as np

    from datasets.cityscapes_autolabeling import CityscapesAutolabeling

    class Noisy(CityscapesAutolabeling):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            rng = np.random.default_rng(index)
            logits = rng.standard_normal([19, *sample['label'].shape]).astype(np.float32)
            for coarseness in (4, 16):
                small = rng.standard_normal([19, *(side // coarseness for side in sample['label'].shape)])
                logits += [cv2.resize(noise.astype(np.float32), logits.shape[:0:-1]) for noise in small]
            logits[:18] += 3 * (sample['label'] == np.arange(18).reshape([-1, 1, 1]))  # bicycles are not found
            return {**sample, 'img': logits}

    return Noisy([], str(root), 'val')


def predictor(seconds=0.0):
    from inference.predictor import Predictor

    def model(x):
        time.sleep(seconds)
        return [x]

    return Predictor(model)


def scores_of(data):
    from inference.scores.boundary import Boundary
    from inference.scores.calibration import Calibration
    from inference.scores.instances import Instances
    return [Instances(data.labels, data.file_list), Boundary(data.labels, [1, 3]), Calibration(data.labels)]


def main(argv):
    root, report, seconds, resume = argv
    cli.start_paddle()
    import paddle

    from common.atomic_io import write_atomically
    from inference import evaluation_report
    from inference.evaluation_journal import EvaluationJournal
    from inference.evaluator import evaluate

    data = dataset(root)
    scores = scores_of(data)
    settings = {'scores': {score.key: score.settings for score in scores}}
    with EvaluationJournal(Path(report).with_suffix(''), settings, bool(int(resume))) as journal:
        print(f'process {os.getpid()} found {len(journal.found)}', flush=True)
        result = evaluate(predictor(float(seconds)), data, 0, data.labels, scores, journal, images=True)
    if paddle.distributed.get_rank() == 0:
        write_atomically(report, evaluation_report.to_json(evaluation_report.document(result, data.labels, scores)))
        journal.delete()


if __name__ == '__main__':
    cli.run(main)
