"""Exponential moving average of the weights (Polyak averaging), with TensorFlow's warm-up."""
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import paddle

from common.errors import UserError

GROUP = 1 << 24  # numbers in an array, unless a single parameter has more; an update copies one such array


class EMA:
    """Averages of a model's trained parameters; batch-norm statistics, which are averages already, are the model's own.

    The averages are kept one after the other in a few arrays: a step over W48's 900 parameters is a few operations per
    array rather than per parameter.

    decay: weight of the past, like 0.9998; the first steps use min(decay, (1 + step) / (10 + step)).
    """

    def __init__(self, model: paddle.nn.Layer, decay: float) -> None:
        if not 0 < decay < 1:
            raise UserError(f'options.ema: expected a decay between 0 and 1, like 0.9998, found {decay}; correct it')
        self._model = model
        self._decay = decay
        names = set(model.state_dict())
        self._groups: list[list[tuple[str, paddle.Tensor]]] = []
        room, dtype = 0, None
        for name, parameter in model.named_parameters():
            if parameter.stop_gradient or name not in names:
                continue
            if parameter.size > room or parameter.dtype != dtype:
                self._groups.append([])
                room, dtype = GROUP, parameter.dtype
            self._groups[-1].append((name, parameter))
            room -= parameter.size
        self._averages = [_joined([p for _, p in group]) for group in self._groups]

    @paddle.no_grad()
    def update(self, iteration: int) -> None:
        """Add the weights after `iteration` (1-based)."""
        decay = min(self._decay, (1 + iteration) / (10 + iteration))
        for group, average in zip(self._groups, self._averages):
            average.scale_(decay).add_(_joined([p for _, p in group]).scale_(1 - decay))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights; afterwards its own again."""
        own = {name: value.clone() for name, value in self._model.state_dict().items()}
        self._model.set_state_dict(self.state_dict())
        try:
            yield
        finally:
            self._model.set_state_dict(own)

    def state_dict(self) -> dict[str, paddle.Tensor]:
        """All entries of the model's state dict, the trained parameters averaged."""
        state = dict(self._model.state_dict())
        for group, average in zip(self._groups, self._averages):
            parts = average.split([p.size for _, p in group])
            for (name, parameter), part in zip(group, parts):
                state[name] = part.reshape(parameter.shape)
                state[name].name = parameter.name  # else a running number, which a file would contain
        return state

    def set_state_dict(self, state: Mapping[str, paddle.Tensor]) -> None:
        """Continue from a state_dict(); of entries that are not averaged, the model has the same values."""
        self._averages = [_joined([state[name] for name, _ in group]) for group in self._groups]


def _joined(tensors: Sequence[paddle.Tensor]) -> paddle.Tensor:
    """The numbers of all tensors, one after the other; a copy."""
    return paddle.concat([tensor.detach().reshape([-1]) for tensor in tensors])
