"""Every score of cityscapesscripts' evaluation, on the same predictions, to the last bit."""
import math

import numpy as np
import pytest
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from PIL import Image

from common.errors import FileError
from datasets.labels import CITYSCAPES, LabelSet
from inference import evaluation_report
from inference.evaluator import evaluate
from inference.scores.instances import MEAN_SIZE, Instances
from tests.inference.scores import scored


def official_scores(data, predictions, folder):
    """The result of the official evaluation of uint8 train ids."""
    truths, files = [], []
    for index, classes in enumerate(predictions):
        files.append(str(folder / f'pred_{index}.png'))
        Image.fromarray(CITYSCAPES.train_id_to_label_id()[classes]).save(files[-1])
        truths.append(data.file_list[index][1].replace('labelTrainIds', 'labelIds'))
    official.args.evalInstLevelScore, official.args.quiet, official.args.JSONOutput = True, True, False
    return official.evaluateImgLists(files, truths, official.args)


def test_equals_the_official_evaluation_to_the_last_bit(streets, tmp_path):
    data = scored.dataset(streets)
    predict = scored.predictor()
    scores = [Instances(CITYSCAPES, data.file_list)]
    found = evaluate(predict, data, labels=CITYSCAPES, scores=scores)
    expected = official_scores(data, [predict(data[index]) for index in range(7)], tmp_path)

    def same(ours, theirs):
        return ours == theirs or (math.isnan(ours) and math.isnan(theirs))

    for i, name in enumerate(CITYSCAPES.names):
        assert same(found['iou'][i], expected['classScores'][name])
        assert same(found['official']['classes'][name]['iou'], expected['classScores'][name])
        assert same(found['official']['classes'][name]['iiou'], expected['classInstScores'][name])
    assert found['categories']['iou'].keys() == expected['categoryScores'].keys() - {'void'}
    for name, values in found['official']['categories'].items():
        assert same(found['categories']['iou'][name], expected['categoryScores'][name])
        assert same(values['iou'], expected['categoryScores'][name])
        assert same(values['iiou'], expected['categoryInstScores'][name])
    means = found['official']['mean']
    assert found['miou'] == means['iou'] == expected['averageScoreClasses']
    assert means['iiou'] == expected['averageScoreInstClasses']
    assert found['categories']['mean'] == means['category_iou'] == expected['averageScoreCategories']
    assert means['category_iiou'] == expected['averageScoreInstCategories']
    # The toy data must reach what is easily got wrong.
    numbers = [values['iiou'] for values in found['official']['classes'].values()]
    assert sum(0 < value < 1 for value in numbers) >= 5 and sum(map(math.isnan, numbers)) == 11
    assert means['iiou'] != pytest.approx(means['iou'], abs=0.05)
    assert 0 < means['category_iiou'] < 1 and sum(map(len, (scores[0].measure(image) for image in images(data)))) > 20


def images(data):
    from inference.scores.base import ScoredImage
    for index in range(len(data)):
        yield ScoredImage(index, data[index]['label'], scored.predictor()(data[index]))


def test_constants_are_the_official_ones():
    assert {name: size for name, size in official.args.avgClassSize.items() if name in MEAN_SIZE} == MEAN_SIZE
    things = [label.name for label in official.labels if label.hasInstances and not label.ignoreInEval]
    assert sorted(MEAN_SIZE) == sorted(things)
    assert CITYSCAPES.categories == tuple(official.name2label[name].category for name in CITYSCAPES.names)


def test_the_table_has_dashes_for_what_has_no_instances(streets):
    data = scored.dataset(streets)
    scores = [Instances(CITYSCAPES, data.file_list)]
    result = evaluate(scored.predictor(), data, labels=CITYSCAPES, scores=scores)
    lines = evaluation_report.text(result, CITYSCAPES, scores).splitlines()
    (road,) = [line for line in lines if line.startswith('road') and len(line.split()) == 3]
    assert road.split()[2] == '-'
    (mean, _) = [line.split() for line in lines if line.startswith('mean')]
    assert mean == ['mean', f'{100 * result["miou"]:.2f}', f'{100 * result["official"]["mean"]["iiou"]:.2f}']


def test_no_instance_ids_no_cityscapes_no_16_bits(streets, tmp_path):
    data = scored.dataset(streets)
    files = [(image, label.replace('_gtFine', '_other')) for image, label in data.file_list]
    with pytest.raises(FileError, match='_instanceIds.png: expected the instance ids of --official, found none for 7 '
                                         'of 7 images; unpack gtFine_trainvaltest.zip again, or leave --official out'):
        Instances(CITYSCAPES, files)
    with pytest.raises(ValueError, match='--official: expected the 19 classes of Cityscapes, found 1 others'):
        Instances(LabelSet(('road',), ((1, 2, 3),)), files)
    score = Instances(CITYSCAPES, data.file_list)
    image = next(images(data))
    for content, words in ((np.zeros([64, 128], np.uint8), r'found uint8 \(64, 128\)'),
                           (np.zeros([64, 99], np.uint16), r'found uint16 \(64, 99\)'), (None, 'none that can be'),
                           (np.full([64, 128], 40001, np.uint16), r'label id \* 1000 \+ number, found 40001')):
        score.paths[0] = str(tmp_path / 'x_gtFine_instanceIds.png')
        if content is None:
            (tmp_path / 'x_gtFine_instanceIds.png').write_bytes(b'no image')
        else:
            Image.fromarray(content).save(score.paths[0])
        with pytest.raises(ValueError, match=words):
            score.measure(image)
