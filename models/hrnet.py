"""HRNet backbone (Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition", 2019).

The variant with explicit padding that the published 87.00% weights use; parameter names are theirs.
"""
import paddle
import paddle.nn as nn
import paddle.nn.functional as F

from models.layers import ConvBN, resize
from models.recompute import Segment, checkpointed


class BasicBlock(nn.Layer):
    """Two 3x3 convolutions with a shortcut; (N, channels, H, W) -> same shape."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = ConvBN(channels, channels, 3)
        self.conv2 = ConvBN(channels, channels, 3, relu=False)

    def forward(self, x):
        return F.relu(x + self.conv2(self.conv1(x)))


class Bottleneck(nn.Layer):
    """1x1, 3x3, 1x1 convolutions with a shortcut; (N, in_channels, H, W) -> (N, 4 * channels, H, W)."""

    def __init__(self, in_channels, channels):
        super().__init__()
        self.conv1 = ConvBN(in_channels, channels)
        self.conv2 = ConvBN(channels, channels, 3)
        self.conv3 = ConvBN(channels, 4 * channels, relu=False)
        self.conv_down = ConvBN(in_channels, 4 * channels, relu=False) if in_channels != 4 * channels else None

    def forward(self, x):
        shortcut = x if self.conv_down is None else self.conv_down(x)
        return F.relu(shortcut + self.conv3(self.conv2(self.conv1(x))))


class Fusion(nn.LayerDict):
    """Every branch receives the sum of all branches, brought to its resolution and width.

    From a coarser branch: 1x1 convolution, bilinear enlargement. From a finer one: a chain of stride-2 convolutions.
    """

    def __init__(self, channels, name):
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

    def _bring(self, x, i, j):
        """Branch j's features, at the resolution and width of branch i."""
        prefix = f'residual_{self._name}_layer_{i + 1}_{j + 1}'
        if j > i:
            return resize(self[prefix](x[j]), x[i].shape[2:])
        y = x[j]
        for k in range(i - j):
            y = self[f'{prefix}_{k + 1}'](y)
        return y

    def forward(self, x):
        return [F.relu(sum((self._bring(x, i, j) for j in range(1, len(x))), self._bring(x, i, 0)))
                for i in range(len(x))]


class Module(Segment, nn.Layer):
    """Parallel branches of basic blocks, then fusion; list of (N, C_b, H / 2^b, W / 2^b) -> the same shapes."""

    def __init__(self, channels, blocks, name):
        super().__init__()
        self.branches_func = nn.LayerDict({
            f'bb_{name}_branch_layer_{b + 1}_{i + 1}': BasicBlock(width)
            for b, width in enumerate(channels) for i in range(blocks)})
        self.fuse_func = Fusion(channels, name)
        self._block = f'bb_{name}_branch_layer_{{}}_{{}}'.format
        self._blocks = blocks

    def forward(self, x):
        x = list(x)
        for b in range(len(x)):
            for i in range(self._blocks):
                x[b] = self.branches_func[self._block(b + 1, i + 1)](x[b])
        return self.fuse_func(x)


class HRNet(nn.Layer):
    """(N, 3, H, W) -> [(N, 15 * width, ceil(H / 4), ceil(W / 4))]: all four branches at the finest one's resolution.

    width: channels of the finest branch; the coarser ones have 2, 4 and 8 times as many.
    modules: number of modules in stages 2, 3 and 4. blocks: basic blocks per branch of a module.
    stem: (bottleneck blocks, their channels) of stage 1.
    """

    recompute = False  # of stage 1, as one segment; the other stages' modules have their own

    def __init__(self, width, modules=(1, 4, 3), blocks=4, stem=(4, 64), in_channels=3):
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
        self.feat_channels = [sum(channels)]

    def _stage1(self, x):
        return self.la1(self.conv_layer1_2(self.conv_layer1_1(x)))

    def branches(self, x):
        """List of the four branches (N, width * 2^b, ceil(H / 4 / 2^b), ceil(W / 4 / 2^b)), finest first."""
        if self.recompute:
            x = checkpointed(self._stage1, [self.conv_layer1_1, self.conv_layer1_2, self.la1], x)
        else:
            x = self._stage1(x)
        x = self.st2([layer(x) for layer in self.tr1.values()])
        x = self.st3(x + [self.tr2['transition_tr2_layer_3'](x[-1])])
        return self.st4(x + [self.tr3['transition_tr3_layer_4'](x[-1])])

    def forward(self, x):
        branches = self.branches(x)
        return [paddle.concat([resize(b, branches[0].shape[2:]) for b in branches], axis=1)]


def HRNet_W18_NV_Small_V1(in_channels=3):
    return HRNet(16, modules=(1, 1, 1), blocks=2, stem=(1, 32), in_channels=in_channels)


def HRNet_W18_NV_Small_V2(in_channels=3):
    return HRNet(18, modules=(1, 3, 2), blocks=2, stem=(2, 64), in_channels=in_channels)


def HRNet_W18_NV(in_channels=3):
    return HRNet(18, in_channels=in_channels)


def HRNet_W30_NV(in_channels=3):
    return HRNet(30, in_channels=in_channels)


def HRNet_W32_NV(in_channels=3):
    return HRNet(32, in_channels=in_channels)


def HRNet_W40_NV(in_channels=3):
    return HRNet(40, in_channels=in_channels)


def HRNet_W44_NV(in_channels=3):
    return HRNet(44, in_channels=in_channels)


def HRNet_W48_NV(in_channels=3):
    return HRNet(48, in_channels=in_channels)


def HRNet_W60_NV(in_channels=3):
    return HRNet(60, in_channels=in_channels)


def HRNet_W64_NV(in_channels=3):
    return HRNet(64, in_channels=in_channels)


BACKBONES = (HRNet_W18_NV_Small_V1, HRNet_W18_NV_Small_V2, HRNet_W18_NV, HRNet_W30_NV, HRNet_W32_NV, HRNet_W40_NV,
             HRNet_W44_NV, HRNet_W48_NV, HRNet_W60_NV, HRNet_W64_NV)
