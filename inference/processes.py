"""What the processes of one launcher tell each other."""
from typing import Any

import paddle


def gather(value: Any) -> list[Any]:
    """The values of all processes, in the order of their ranks. Acts as a barrier."""
    if paddle.distributed.get_world_size() == 1:
        return [value]
    values: list[Any] = []
    paddle.distributed.all_gather_object(values, value)
    return values
