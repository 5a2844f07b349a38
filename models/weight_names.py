"""The names that other repositories give to the tensors of this network, and state dicts in both directions.

NVIDIA's HRNet_Mscale (github.com/NVIDIA/semantic-segmentation) has the same tensors as MscaleOCRNet, in the same
layouts, under names of its own; its OCRNet is the same without the scale attention. The ImageNet weights of HRNet's
authors, and timm's hrnet_w*, use NVIDIA's names of the backbone; the authors' HRNet with OCR has the heads beside it.
"""
import re
from collections.abc import Container, Iterable, Mapping
from typing import TypeVar

import numpy as np

# PaddleSeg 2.8's own MscaleOCRNet: patterns of its names, and ours.
_PADDLESEG = (
    (r'^backbone\.', 'ocrnet.backbone.'),
    (r'^ocr\.ocr_distri_head\.conv_bn_dropout\.', 'ocrnet.head.spatial_ocr.conv1x1.'),
    (r'^ocr\.ocr_distri_head\.(f_pixel|f_object)\.conv_bn_relu_1\.', r'ocrnet.head.spatial_ocr.attention_block.\1.0.'),
    (r'^ocr\.ocr_distri_head\.(f_pixel|f_object)\.conv_bn_relu_2\.', r'ocrnet.head.spatial_ocr.attention_block.\1.1.'),
    (r'^ocr\.ocr_distri_head\.', 'ocrnet.head.spatial_ocr.attention_block.'),
    (r'^ocr\.', 'ocrnet.head.'),
    (r'^scale_attn\.conv_bn_re(\d)\.', r'scale_attn.atten_head.\1.'),
    (r'^scale_attn\.conv2\.', 'scale_attn.atten_head.2.'))
Value = TypeVar('Value')
COUNTER = 'num_batches_tracked'  # torch's batch norm counts its batches; nothing in Paddle does
_BATCH_NORM = {'weight': 'weight', 'bias': 'bias', '_mean': 'running_mean', '_variance': 'running_var'}


# The scale attention as NVIDIA's --mscale_old_arch numbers it, the heads of HRNet's authors: what NVIDIA calls them.
_OTHERS = {
    'scale_attn': {'0': 'conv0', '1': 'bn0', '3': 'conv1', '4': 'bn1', '6': 'conv2'},
    'conv3x3_ocr': {'0': '0', '1': '1.0'}, 'aux_head': {'0': '0', '1': '1.0', '3': '2'}}
_OCR = ('conv3x3_ocr.', 'ocr_distri_head.', 'aux_head.', 'cls_head.')


def _less(*numbers: str) -> list[int]:
    return [int(number) - 1 for number in numbers]


def _conv_bn(layer: str) -> tuple[str, str]:
    """(convolution, batch norm) of NVIDIA's for one ConvBN of ours, by its path in the model."""
    if match := re.fullmatch(r'ocrnet\.backbone\.conv_layer1_(\d)', layer):
        return f'backbone.conv{match[1]}', f'backbone.bn{match[1]}'
    if match := re.fullmatch(r'ocrnet\.backbone\.la1\.bb_layer2_(\d+)\.conv(\d|_down)', layer):
        block = f'backbone.layer1.{_less(match[1])[0]}'
        if match[2] == '_down':
            return f'{block}.downsample.0', f'{block}.downsample.1'
        return f'{block}.conv{match[2]}', f'{block}.bn{match[2]}'
    if match := re.fullmatch(r'ocrnet\.backbone\.tr(\d)\.transition_tr\d_layer_(\d)', layer):
        path = f'backbone.transition{match[1]}.{_less(match[2])[0]}' + ('.0' if int(match[2]) > 1 else '')
        return f'{path}.0', f'{path}.1'
    if match := re.fullmatch(r'ocrnet\.backbone\.st(\d)\.stage_st\d_(\d+)\.branches_func'
                             r'\.bb_st\d_\d+_branch_layer_(\d)_(\d+)\.conv(\d)', layer):
        module, branch, number = _less(match[2], match[3], match[4])
        path = f'backbone.stage{match[1]}.{module}.branches.{branch}.{number}'
        return f'{path}.conv{match[5]}', f'{path}.bn{match[5]}'
    if match := re.fullmatch(r'ocrnet\.backbone\.st(\d)\.stage_st\d_(\d+)\.fuse_func'
                             r'\.residual_st\d_\d+_layer_(\d)_(\d)(?:_(\d))?', layer):
        module, target, source = _less(match[2], match[3], match[4])
        path = f'backbone.stage{match[1]}.{module}.fuse_layers.{target}.{source}'
        path += f'.{_less(match[5])[0]}' if match[5] else ''
        return f'{path}.0', f'{path}.1'
    if match := re.fullmatch(r'ocrnet\.head\.spatial_ocr\.attention_block\.(f_pixel|f_object|f_down|f_up)(?:\.(\d))?',
                             layer):
        path, number = f'ocr.ocr_distri_head.object_context_block.{match[1]}', 2 * int(match[2] or 0)
        return f'{path}.{number}', f'{path}.{number + 1}.0'
    if match := re.fullmatch(r'scale_attn\.atten_head\.(\d)', layer):
        return f'scale_attn.conv{match[1]}', f'scale_attn.bn{match[1]}'
    path = {'ocrnet.head.conv3x3_ocr': 'ocr.conv3x3_ocr', 'ocrnet.head.aux_head.0': 'ocr.aux_head',
            'ocrnet.head.spatial_ocr.conv1x1.0': 'ocr.ocr_distri_head.conv_bn_dropout'}[layer]
    return f'{path}.0', f'{path}.1.0'


def nvidia_name(name: str) -> str:
    """NVIDIA's name of an entry of MscaleOCRNet's state dict. KeyError for one that is none."""
    layer, _, leaf = name.rpartition('.')
    if layer.endswith('._conv'):
        return f'{_conv_bn(layer.removesuffix("._conv"))[0]}.{leaf}'
    if layer.endswith('._batch_norm'):
        return f'{_conv_bn(layer.removesuffix("._batch_norm"))[1]}.{_BATCH_NORM[leaf]}'
    return {'ocrnet.head.cls_head': 'ocr.cls_head', 'ocrnet.head.aux_head.1': 'ocr.aux_head.2',
            'scale_attn.atten_head.2': 'scale_attn.conv2'}[layer] + f'.{leaf}'


def unwrapped(state: Mapping) -> dict[str, np.ndarray]:
    """The tensors of a training checkpoint of torch: out of `state_dict` or `model`, without `module.` in front.

    Raises ValueError if two entries have the same name then.
    """
    while not any(isinstance(value, np.ndarray) for value in state.values()):
        inner = next((state[key] for key in ('state_dict', 'model', 'model_state_dict')
                      if isinstance(state.get(key), dict)), None)
        if inner is None:
            break
        state = inner
    arrays = [(str(name).removeprefix('module.').removeprefix('model.'), value) for name, value in state.items()
              if isinstance(value, np.ndarray)]
    return _each_once(arrays)


def _each_once(entries: Iterable[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    result: dict[str, np.ndarray] = {}
    for name, value in entries:
        if name in result:
            raise ValueError(f'two entries that mean {name}')
        result[name] = value
    return result


def is_torchs(names: Iterable[str]) -> bool:
    """Whether names are of NVIDIA's network or of HRNet's authors, rather than Paddle's."""
    return any(name.endswith('.running_mean') for name in names)


def from_torch(state: Mapping, wanted: Iterable[str]) -> dict[str, np.ndarray]:
    """A state dict under our names: what torch saved of the entries `wanted` of an MscaleOCRNet, and the rest as it is.

    Names of a backbone alone (HRNet's authors, timm) count as those below `backbone.`; what torch counts besides is
    dropped. What is left over keeps its name, so that strict loading lists it. Raises ValueError for two entries of one
    meaning.
    """
    arrays = {name: value for name, value in unwrapped(state).items() if not name.endswith(COUNTER)}
    if any(name.startswith('stage2.') for name in arrays):  # the backbone is not apart
        with_ocr = any(name.startswith('ocr_distri_head.') for name in arrays)  # of HRNet's authors
        arrays = {f'ocr.{_renumbered(name)}' if with_ocr and name.startswith(_OCR) else f'backbone.{name}': value
                  for name, value in arrays.items() if not name.startswith('loss.')}
    ours = {nvidia_name(name): name for name in wanted}
    return _each_once((ours.get(known := _renumbered(name) if name.startswith('scale_attn.') else name, known), value)
                      for name, value in arrays.items())


def _renumbered(name: str) -> str:
    head, number, *rest = name.split('.')
    return '.'.join([head, _OTHERS.get(head, {}).get(number, number), *rest])


def without_biases(state: Mapping[str, np.ndarray],
                   wanted: Container[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """(state dict, names that are gone): biases that the network lacks, taken into the batch norm that follows.

    PaddleSeg 2.8's OCRNet has a bias in seven convolutions before a batch norm, where the published weights have none.
    In training the norm takes it out again; in evaluation norm(y + bias) is norm(y) with the mean less the bias.
    """
    result, gone = dict(state), []
    for name, bias in state.items():
        mean = f'{name.removesuffix("._conv.bias")}._batch_norm._mean'
        if name.endswith('._conv.bias') and name not in wanted and mean in wanted and mean in state \
                and state[mean].shape == bias.shape and state[mean].dtype == bias.dtype == np.float32:
            result[mean] = state[mean] - bias
            del result[name]
            gone.append(name)
    return result, gone


def to_torch(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An MscaleOCRNet's state dict under NVIDIA's names, with torch's counters of batches at 0, in NVIDIA's order."""
    result: dict[str, np.ndarray] = {}
    for name, value in state.items():
        result[nvidia_name(name)] = value
        if name.endswith('._variance'):
            result[nvidia_name(name).removesuffix('running_var') + COUNTER] = np.zeros([], np.int64)
    return result


def is_paddlesegs(state: Iterable[str]) -> bool:
    """Whether a state dict has the names of PaddleSeg 2.8's own MscaleOCRNet."""
    return any(name.startswith('ocr.ocr_distri_head.f_pixel.') for name in state)


def from_paddleseg(state: Mapping[str, Value]) -> dict[str, Value]:
    """A state dict of PaddleSeg's MscaleOCRNet under the names of this repository's."""
    return {_of_paddleseg(name): value for name, value in state.items()}


def _of_paddleseg(name: str) -> str:
    for pattern, replacement in _PADDLESEG:
        renamed, found = re.subn(pattern, replacement, name)
        if found:
            return renamed
    return name
