"""The losses as layers, with the names and arguments PaddleSeg's configurations use."""
import paddle
from paddle import nn

from .functional import bootstrapped_from_statistics, check_bootstrap, dice_from_statistics
from .statistics import SoftmaxStatistics, softmax_statistics


class StatisticsLoss(nn.Layer):
    """A loss that is a function of `SoftmaxStatistics`, so that losses of the same logits can share them.

    A subclass has a `short_name`, an `ignore_index` and `from_statistics(statistics) -> 0-d loss`.
    """

    short_name: str

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """(N, C, H, W) float logits and (N, H, W) integer labels -> 0-d loss. The labels are not modified."""
        return self.from_statistics(softmax_statistics(logits, labels, self.ignore_index))

    def from_statistics(self, statistics: SoftmaxStatistics) -> paddle.Tensor:
        raise NotImplementedError


class DiceLoss(StatisticsLoss):
    """See `losses.functional.dice`."""
    short_name = 'dice'

    def from_statistics(self, statistics: SoftmaxStatistics) -> paddle.Tensor:
        return dice_from_statistics(statistics)


class BootstrappedCrossEntropyLoss(StatisticsLoss):
    """See `losses.functional.bootstrapped_cross_entropy`."""
    short_name = 'bootstrapped_ce'

    def __init__(self, min_K: int, loss_th: float, ignore_index: int = 255) -> None:
        super().__init__(ignore_index)
        check_bootstrap(min_K, loss_th)
        self.min_K = min_K
        self.loss_th = loss_th

    def from_statistics(self, statistics: SoftmaxStatistics) -> paddle.Tensor:
        return bootstrapped_from_statistics(statistics, self.min_K, self.loss_th)
