"""Values and gradients of PaddleSeg's losses here are those of its own classes on Paddle 2.6, see tests/reference."""
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddleseg.cvlibs import manager

from common import registry
from losses import weighted_losses
from tests import rounding
from tests.losses import paddleseg_cases as cases

REFERENCE = np.load(Path(__file__).parents[1] / 'reference' / 'paddleseg_losses.npz')
# The longest sum of a case: PixelContrastCrossEntropyLoss sums over 2 * 3 classes with 8 pixels each, the others over
# the pixels of the batch, and RMILoss multiplies matrices of 9x9 as well.
FLOOR = rounding.of_sum(np.prod(cases.SHAPE))
# Gradients of the Lovasz losses are differences of consecutive Jaccard indices, one per pixel, which sum to 1: the
# largest is at least 1 / pixels, and that of two numbers up to 1 is off by EPS (kernels without FMA: 8.2e-6).
LOVASZ = FLOOR + rounding.EPS * np.prod(cases.SHAPE)


def loss_of(name, void):
    """outputs -> loss, through the function that training calls."""
    registry.register()
    loss, parameters, kind = cases.CASES[name]
    labels, edges = cases.labels(kind, void)
    if isinstance(loss, list):
        layer = manager.LOSSES['MixedLoss']([manager.LOSSES[part]() for part in loss], parameters)
    else:
        with cases.same_numbers():
            layer = manager.LOSSES[loss](**parameters)

    def computed(outputs):
        # one type per output, as the check wants it; the second output of KLLoss has none of its own
        spec = {'types': [layer] * len(outputs), 'coef': [1, *[0] * (len(outputs) - 1)]}
        return weighted_losses(outputs, paddle.to_tensor(labels), spec, paddle.to_tensor(edges))[0]

    return computed


@pytest.mark.parametrize('which', cases.VOIDS)
@pytest.mark.parametrize('name', cases.CASES)
def test_value_and_gradient_are_paddlesegs(name, which):
    kind = cases.CASES[name][2]
    learned = cases.arrays(kind)[0]
    value, gradients = cases.run(kind, learned, loss_of(name, cases.VOIDS[which]))
    found = {'value': np.float32(value), **gradients}
    expected = {key: REFERENCE.get(f'{name}/{which}/{key}', np.zeros_like(of)) for key, of in found.items()}
    rng = np.random.default_rng(3)
    condition = dict.fromkeys(found, 0.0)
    for _ in range(4):  # rounding.sensitivity, of a function of several arrays
        moved, of_moved = cases.run(kind, {key: rounding.disturbed(x, rng) for key, x in learned.items()},
                                    loss_of(name, cases.VOIDS[which]))
        for key, x in {'value': np.float32(moved), **of_moved}.items():
            condition[key] = max(condition[key], rounding.error(x, found[key]))
    assert max(condition.values()) < 1e-3, 'an input on which nothing is tested'
    for key, value in found.items():
        lovasz = key != 'value' and 'Lovasz' in str(cases.CASES[name][0])
        rounding.assert_close(value, expected[key], condition[key], rounding.SPREAD, LOVASZ if lovasz else FLOOR, key)


def test_the_reference_states_where_it_is_from():
    assert str(REFERENCE['versions']) == 'paddleseg 2.8.0, paddlepaddle 2.6.2, numpy 1.26.4'
    assert {name.split('/')[0] for name in REFERENCE.files} == {*cases.CASES, 'versions'}
