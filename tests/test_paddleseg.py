"""Our parts in PaddleSeg's hands: its loss_computation and aug_inference give the numbers of our engine."""
import paddle
import pytest
from paddleseg.core import infer
from paddleseg.core.train import loss_computation

from common.builder import Builder
from common.config import Config
from inference.predictor import Predictor
from losses import weighted_losses
from tests import rounding

MIXED = ('loss.types=[{"type": "MixedLoss", "coef": [1, 1], "losses": [{"type": "DiceLoss"}, '
         '{"type": "BootstrappedCrossEntropyLoss", "min_K": 4000, "loss_th": 0.05}]}]')


@pytest.mark.parametrize('opts', [[], [MIXED, 'loss.coef=[1, 0.4, 0.05, 0.05]']], ids=['published', 'mixed'])
def test_training_step(tiny_config, opts):
    builder = Builder(Config(tiny_config, opts=[*opts, 'model.dropout=0.0']))
    loader = paddle.io.DataLoader(builder.train_dataset, batch_size=2, shuffle=False)
    batch = next(iter(loader))
    outputs = builder.model(batch['img'])
    total, _ = weighted_losses(outputs, batch['label'], builder.loss)
    # PaddleSeg pairs outputs and losses one to one: the published list of eight wants the four outputs twice
    repeated = list(outputs) * (len(builder.loss['types']) // len(outputs))
    theirs = sum(loss_computation(repeated, batch['label'], None, builder.loss))
    # Eight terms from the same outputs by the same functions, added up in another order
    assert float(total) == pytest.approx(float(theirs), rel=rounding.of_sum(8)) and float(total) > 1


def test_inference(tiny_config):
    builder = Builder(Config(tiny_config))
    model = builder.model
    model.eval()
    sample = builder.val_dataset[0]
    image = paddle.to_tensor(sample['img']).unsqueeze(0)
    with paddle.no_grad():
        ids, logits = infer.aug_inference(model, image, sample['trans_info'], flip_horizontal=True)
    predict = Predictor(model, flip_horizontal=True)
    found = rounding.of_network(predict.logits)
    condition = rounding.sensitivity(found, image.numpy(), trials=2)
    rounding.assert_close(found(image.numpy()), logits.numpy(), condition)
    assert (predict(sample) == ids.numpy()[0, 0]).mean() > 0.999
