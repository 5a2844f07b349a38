"""HRNet backbone (Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition", 2019).

The variant with explicit padding used by the published 87.00% weights, with their parameter names.
"""
import typing
from collections.abc import Sequence
from functools import partial

import paddle
import paddle.nn as nn

from models.layers import ConvBN, resize
from models.operations import LAYERS, Operations, Value
from models.recompute import Segment


class BasicBlock(nn.Layer):
    """Two 3x3 convolutions with a shortcut; (N, channels, H, W) -> same shape.

    deattn: a layer between them, of PaddleSeg's HRNet (models.paddleseg_mscale_ocrnet).
    """
    deattn: nn.Layer | None

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(channels, channels, 3)
        self.deattn = None
        self.conv2 = ConvBN(channels, channels, 3, relu=False)

    def walk(self, ops: Operations, x: Value) -> Value:
        y = ops.conv_bn(self.conv1, x)
        if self.deattn is not None:
            y = ops.run(self.deattn, y)
        return ops.conv_bn(self.conv2, y, shortcut=x)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.walk(LAYERS, x)


class Bottleneck(nn.Layer):
    """1x1, 3x3, 1x1 convolutions with a shortcut; (N, in_channels, H, W) -> (N, 4 * channels, H, W)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(in_channels, channels)
        self.conv2 = ConvBN(channels, channels, 3)
        self.conv3 = ConvBN(channels, 4 * channels, relu=False)
        self.conv_down = ConvBN(in_channels, 4 * channels, relu=False) if in_channels != 4 * channels else None

    def walk(self, ops: Operations, x: Value) -> Value:
        shortcut = x if self.conv_down is None else ops.conv_bn(self.conv_down, x)
        return ops.conv_bn(self.conv3, ops.conv_bn(self.conv2, ops.conv_bn(self.conv1, x)), shortcut=shortcut)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.walk(LAYERS, x)


class Fusion(nn.LayerDict):
    """Every branch receives the sum of all branches, converted to its resolution and width.

    From a coarser branch: 1x1 convolution, then bilinear upsampling. From a finer one: stride-2 convolutions.
    """

    align_corners = False  # True: in LAYERS alone

    def __init__(self, channels: list[int], name: str) -> None:
        layers = {}
        for i, out in enumerate(channels):
            for j, width in enumerate(channels):
                if j > i:
                    layers[f'residual_{name}_layer_{i + 1}_{j + 1}'] = ConvBN(width, out, relu=False)
                for k in range(i - j):
                    last = k == i - j - 1
                    layers[f'residual_{name}_layer_{i + 1}_{j + 1}_{k + 1}'] = ConvBN(
                        width, out if last else width, 3, stride=2, relu=not last)
        super().__init__(layers)
        self._name = name

    def path(self, source: int, target: int) -> list[ConvBN]:
        """The convolutions from one branch to another, 0 is the finest; from a coarser one, upsampling follows."""
        prefix = f'residual_{self._name}_layer_{target + 1}_{source + 1}'
        names = [prefix] if source > target else [f'{prefix}_{k + 1}' for k in range(target - source)]
        return [typing.cast(ConvBN, self[name]) for name in names]

    def walk(self, ops: Operations, x: list[Value]) -> list[Value]:
        def converted(source: int, target: int) -> Value:
            y = x[source]
            for layer in self.path(source, target):
                y = ops.conv_bn(layer, y)
            if source > target:
                return resize(y, x[target].shape[2:], True) if self.align_corners else ops.resize(y, x[target])
            return y

        branches = range(len(x))
        return [ops.sum_relu(converted(source, target) for source in branches) for target in branches]

    def forward(self, x: list[paddle.Tensor]) -> list[paddle.Tensor]:
        return self.walk(LAYERS, x)


class Module(Segment):
    """Parallel branches of basic blocks, then fusion; list of (N, C_b, H / 2^b, W / 2^b) -> the same shapes."""

    def __init__(self, channels: list[int], blocks: int, name: str) -> None:
        super().__init__()
        self.branches_func = nn.LayerDict({
            f'bb_{name}_branch_layer_{b + 1}_{i + 1}': BasicBlock(width)
            for b, width in enumerate(channels) for i in range(blocks)})
        self.fuse_func = Fusion(channels, name)
        self._names = [[f'bb_{name}_branch_layer_{b + 1}_{i + 1}' for i in range(blocks)] for b in range(len(channels))]

    def blocks(self, branch: int) -> list[BasicBlock]:
        """The blocks of a branch, in order."""
        return [typing.cast(BasicBlock, self.branches_func[name]) for name in self._names[branch]]

    def walk(self, ops: Operations, x: list[Value]) -> list[Value]:
        x = list(x)
        for b in range(len(x)):
            for block in self.blocks(b):
                x[b] = ops.run(block, x[b])
        return ops.run(self.fuse_func, x)

    def forward(self, x: list[paddle.Tensor]) -> list[paddle.Tensor]:
        return self.walk(LAYERS, x)


class HRNet(nn.Layer):
    """(N, 3, H, W) -> [(N, 15 * width, ceil(H / 4), ceil(W / 4))]: all four branches at the finest one's resolution.

    width: channels of the finest branch; the coarser ones have 2, 4 and 8 times as many.
    modules: number of modules in stages 2, 3 and 4. blocks: basic blocks per branch of a module.
    stem: (bottleneck blocks, their channels) of stage 1.

    Interface that any backbone must offer: `feat_channels` for the heads; for fused inference also `branch_channels`,
    `stem_channels` and `walk`, whose branches `forward` upsamples and concatenates.
    """

    align_corners = False  # set by MscaleOCRNet, here and in every Fusion
    recompute = False  # stage 1 as one segment; the modules of the other stages have their own flag

    def __init__(self, width: int, modules: Sequence[int] = (1, 4, 3), blocks: int = 4,
                 stem: tuple[int, int] = (4, 64), in_channels: int = 3) -> None:
        super().__init__()
        depth, stem_channels = stem
        self.conv_layer1_1 = ConvBN(in_channels, 64, 3, stride=2)
        self.conv_layer1_2 = ConvBN(64, 64, 3, stride=2)
        self.la1 = nn.Sequential(*[
            (f'bb_layer2_{i + 1}', Bottleneck(4 * stem_channels if i else 64, stem_channels)) for i in range(depth)])
        channels = [width * 2**b for b in range(4)]
        self.tr1 = nn.LayerDict({
            'transition_tr1_layer_1': ConvBN(4 * stem_channels, channels[0], 3),
            'transition_tr1_layer_2': ConvBN(4 * stem_channels, channels[1], 3, stride=2)})
        for stage in (2, 3, 4):
            if stage > 2:
                setattr(self, f'tr{stage - 1}', nn.LayerDict({
                    f'transition_tr{stage - 1}_layer_{stage}':
                        ConvBN(channels[stage - 2], channels[stage - 1], 3, stride=2)}))
            setattr(self, f'st{stage}', nn.Sequential(*[
                (f'stage_st{stage}_{m + 1}', Module(channels[:stage], blocks, f'st{stage}_{m + 1}'))
                for m in range(modules[stage - 2])]))
        self.branch_channels = channels
        self.stem_channels = 4 * stem_channels
        self.feat_channels = [sum(channels)]

    def stages(self) -> list[tuple[list[ConvBN], list[Module]]]:
        """Stages 2 to 4: the transitions to each stage's new branches, and the modules."""
        stages = ((self.tr1, self.st2), (self.tr2, self.st3), (self.tr3, self.st4))
        return [([typing.cast(ConvBN, layer) for layer in transitions.values()],
                 [typing.cast(Module, module) for module in modules]) for transitions, modules in stages]

    def _stage1(self, ops: Operations, x: Value) -> Value:
        x = ops.conv_bn(self.conv_layer1_2, ops.conv_bn(self.conv_layer1_1, x))
        for block in self.la1:
            x = ops.run(block, x)
        return x

    def walk(self, ops: Operations, x: Value) -> list[Value]:
        """The four branches of an image, as `branches` returns them."""
        stage1 = partial(self._stage1, ops)
        x = ops.recompute(stage1, [self.conv_layer1_1, self.conv_layer1_2, self.la1], x) if self.recompute \
            else stage1(x)
        branches: list[Value] = []
        for transitions, modules in self.stages():
            source = branches[-1] if branches else x
            branches = branches + [ops.conv_bn(layer, source) for layer in transitions]
            for module in modules:
                branches = ops.run(module, branches)
        return branches

    def branches(self, x: paddle.Tensor) -> list[paddle.Tensor]:
        """List of the four branches (N, width * 2^b, ceil(H / 4 / 2^b), ceil(W / 4 / 2^b)), finest first."""
        return self.walk(LAYERS, x)

    def forward(self, x: paddle.Tensor) -> list[paddle.Tensor]:
        branches = self.branches(x)
        size = branches[0].shape[2:]
        return [paddle.concat([resize(b, size, self.align_corners) for b in branches], axis=1)]


def HRNet_W18_NV_Small_V1(in_channels: int = 3) -> HRNet:
    return HRNet(16, modules=(1, 1, 1), blocks=2, stem=(1, 32), in_channels=in_channels)


def HRNet_W18_NV_Small_V2(in_channels: int = 3) -> HRNet:
    return HRNet(18, modules=(1, 3, 2), blocks=2, stem=(2, 64), in_channels=in_channels)


def HRNet_W18_NV(in_channels: int = 3) -> HRNet:
    return HRNet(18, in_channels=in_channels)


def HRNet_W30_NV(in_channels: int = 3) -> HRNet:
    return HRNet(30, in_channels=in_channels)


def HRNet_W32_NV(in_channels: int = 3) -> HRNet:
    return HRNet(32, in_channels=in_channels)


def HRNet_W40_NV(in_channels: int = 3) -> HRNet:
    return HRNet(40, in_channels=in_channels)


def HRNet_W44_NV(in_channels: int = 3) -> HRNet:
    return HRNet(44, in_channels=in_channels)


def HRNet_W48_NV(in_channels: int = 3) -> HRNet:
    return HRNet(48, in_channels=in_channels)


def HRNet_W60_NV(in_channels: int = 3) -> HRNet:
    return HRNet(60, in_channels=in_channels)


def HRNet_W64_NV(in_channels: int = 3) -> HRNet:
    return HRNet(64, in_channels=in_channels)


BACKBONES = (HRNet_W18_NV_Small_V1, HRNet_W18_NV_Small_V2, HRNet_W18_NV, HRNet_W30_NV, HRNet_W32_NV, HRNet_W40_NV,
             HRNet_W44_NV, HRNet_W48_NV, HRNet_W60_NV, HRNet_W64_NV)
