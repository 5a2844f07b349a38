"""Exponential moving average of the weights (Polyak averaging), with TensorFlow's warm-up."""
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import paddle

from common.errors import UserError


class EMA:
    """Averages of a model's parameters; batch-norm statistics, which are averages already, are copied.

    decay: weight of the past, like 0.9998; the first steps use min(decay, (1 + step) / (10 + step)).
    """

    def __init__(self, model: paddle.nn.Layer, decay: float) -> None:
        if not 0 < decay < 1:
            raise UserError(f'options.ema: expected a decay between 0 and 1, like 0.9998, found {decay}; correct it')
        self._model = model
        self._decay = decay
        self._average = {name: value.clone().detach() for name, value in model.state_dict().items()}
        self._trained = {name for name, parameter in model.named_parameters() if not parameter.stop_gradient}

    @paddle.no_grad()
    def update(self, iteration: int) -> None:
        """Add the weights after `iteration` (1-based)."""
        decay = min(self._decay, (1 + iteration) / (10 + iteration))
        for name, value in self._model.state_dict().items():
            average = self._average[name]
            average.set_value(decay * average + (1 - decay) * value if name in self._trained else value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights; afterwards its own again."""
        own = {name: value.clone() for name, value in self._model.state_dict().items()}
        self._model.set_state_dict(self._average)
        try:
            yield
        finally:
            self._model.set_state_dict(own)

    def state_dict(self) -> dict[str, paddle.Tensor]:
        return self._average

    def set_state_dict(self, state: Mapping[str, paddle.Tensor]) -> None:
        for name, value in state.items():
            self._average[name].set_value(value)
