"""The weighted sum of the losses of all outputs: the one place that combines outputs, losses and coefficients."""
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import paddle

from common.errors import UserError

from .layers import StatisticsLoss
from .statistics import SoftmaxStatistics, check_range, softmax_statistics


def weighted_losses(outputs: Sequence[Any], labels: paddle.Tensor, losses: Mapping[str, Any],
                    edges: paddle.Tensor | None = None) -> tuple[paddle.Tensor, dict[str, paddle.Tensor]]:
    """The training loss and its terms.

    Type i of `losses` applies to output i modulo the number of outputs, so that the recipe's eight types (four dice,
    four bootstrapped cross entropies) meet the model's four outputs twice. A tensor that is listed twice is one output.
    A PaddleSeg `MixedLoss` stands for its parts. Any other layer is called with what its method `arguments` takes of
    outputs, labels and edges (see `losses.paddleseg_adapters.Adapted`), one without that method with output and labels.
    The losses of this package share one softmax per output.

    Args:
        outputs (list): the model's outputs, each logits (N, C, H, W), or what its loss takes.
        labels (Tensor): (N, H, W), integer; not modified by the losses of this package.
        losses (dict): `{'types': [layer, ...], 'coef': [number, ...]}`, as built by PaddleSeg from the key `loss`.
        edges (Tensor): (N, H, W), integer, 1 at edges; None if the dataset has none.

    Returns:
        tuple: the sum of coefficient times loss, 0-d; and `{name: loss}`, the terms without their coefficients, 0-d and
        detached. The names are the kind of loss and the number of the output: 'dice_0', 'bootstrapped_ce_3', for other
        layers the class name without 'Loss' in lower case ('cross_entropy_0'); a second one of the same name ends
        in '_2'.

    Raises:
        UserError: types, coefficients and outputs whose numbers do not fit; an output that a loss cannot take.
    """
    types, coefs = losses['types'], losses['coef']
    if not outputs or not types or len(types) % len(outputs):
        raise UserError(f'loss.types: expected a multiple of the {len(outputs)} outputs of the model, found '
                         f'{len(types)}; list one type per output, or every output once per kind of loss')
    if len(coefs) != len(types):
        raise UserError(f'loss.coef: expected {len(types)} numbers, one for each of loss.types, found {len(coefs)}; '
                         'give as many')
    numbers: dict[int, int] = {}  # id of the tensor -> number of the output
    statistics: dict[tuple[int, int], SoftmaxStatistics] = {}
    values: dict[str, paddle.Tensor] = {}
    total: Any = 0
    for i, (layer, coef) in enumerate(zip(types, coefs)):
        logits = outputs[i % len(outputs)]
        output = numbers.setdefault(id(logits), len(numbers))
        for part, part_coef in _parts(layer):
            if isinstance(part, StatisticsLoss):
                if not isinstance(logits, paddle.Tensor):
                    raise UserError(f'{type(part).__name__}: expected an output of logits, found one of several '
                                    f'tensors at number {i % len(outputs)}; use the loss that goes with that model')
                key = output, part.ignore_index
                if key not in statistics:
                    statistics[key] = softmax_statistics(logits, labels, part.ignore_index)
                value = part.from_statistics(statistics[key])
            elif hasattr(part, 'arguments'):
                value = part(*part.arguments(outputs, i % len(outputs), labels, edges))
            else:
                value = part(logits, labels)
            total = total + coef * part_coef * value
            values[_name(part, output, values)] = value.detach()
    return total, values


def check_labels(num_classes: int, labels: paddle.Tensor, losses: Mapping[str, Any]) -> None:
    """UserError if a loss of this package would meet labels outside of the classes. Reads from the device."""
    for index in {part.ignore_index for layer in losses['types'] for part, _ in _parts(layer)
                  if isinstance(part, StatisticsLoss)}:
        check_range(labels, num_classes, index)


def _parts(layer: Any) -> list[tuple[Any, float]]:
    # By name, as PaddleSeg does: this package does not import it.
    if type(layer).__name__ == 'MixedLoss':
        return list(zip(layer.losses, layer.coef))
    return [(layer, 1)]


def _name(layer: Any, output: int, taken: Collection[str]) -> str:
    kind = getattr(layer, 'short_name', None)
    if kind is None:
        kind = re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', re.sub('Loss$', '', type(layer).__name__)).lower()
    name, number = f'{kind}_{output}', 2
    while name in taken:
        name, number = f'{kind}_{output}_{number}', number + 1
    return name
