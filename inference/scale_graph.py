"""One scale of the network as one ONNX graph, or all of them: fewer bytes are moved than in strips, more memory taken.

For OpenVINO and ONNX Runtime. inference.forms says whether strips are faster on a machine.
"""
import json

import onnx
from onnx import helper

from inference import plain_head
from inference.export import onnx_graph
from inference.export.onnx_graph import IR_VERSION, WholeOps
from inference.export.whole import Settings
from inference.onnx_writer import OPSET
from models.mscale_ocrnet import MscaleOCRNet

BRANCHES = 'branches'
IMAGE, LOGITS, ATTENTION = 'image', 'logits', 'attention'
HIERARCHY = 'hierarchy'


def part(attend: bool) -> str:
    """The name of a graph."""
    return 'scale_and_attention' if attend else 'scale'


def build(model: MscaleOCRNet, attend: bool, half: bool = False, ops: WholeOps | None = None) -> onnx.ModelProto:
    """One scale of a model in evaluation mode, with the head as it was trained. half: in float16, except for softmax.

    IMAGE float32 (1, 3, H, W) -> LOGITS (1, K, h, w), and with `attend` ATTENTION (1, 1, h, w), at the resolution of
    the finest branch. ops: new ones that see what is written.
    """
    ops = ops or WholeOps(half)
    finest = model.ocrnet.backbone.walk(ops, ops.working_precision(ops.take(IMAGE, 3, None)))
    found = plain_head.logits_and_attention(ops, model, finest, attend)
    names = dict(zip(filter(None, found), (LOGITS, ATTENTION)))
    for node in ops.nodes:
        node.output[0] = names.get(node.output[0], node.output[0])
    kind, classes = onnx.TensorProto.FLOAT, model.ocrnet.head.layers().classifier.weight.shape[0]
    graph = helper.make_graph(
        ops.nodes, part(attend), [helper.make_tensor_value_info(IMAGE, kind, [1, 3, 'H', 'W'])],
        [helper.make_tensor_value_info(name, kind, [1, channels, 'h', 'w'])
         for name, channels in ((LOGITS, classes), (ATTENTION, 1))[:1 + attend]], ops.initializers)
    result = helper.make_model(graph, opset_imports=[helper.make_opsetid('', OPSET)], ir_version=IR_VERSION)
    helper.set_model_props(result, {BRANCHES: json.dumps(list(finest))})
    onnx.checker.check_model(result, full_check=True)
    return result


def build_backbone(model: MscaleOCRNet) -> onnx.ModelProto:
    """The part of inference.onnx_writer, with the same float32 input and outputs, in float16."""
    ops = WholeOps(half=True)
    branches = model.ocrnet.backbone.walk(ops, ops.working_precision(ops.take(IMAGE, 3, None)))
    kind = onnx.TensorProto.FLOAT
    found = [helper.make_tensor_value_info(ops.full_precision(x), kind, [1, channels, f'h{b}', f'w{b}'])
             for b, (x, channels) in enumerate(zip(branches, model.ocrnet.backbone.branch_channels))]
    graph = helper.make_graph(ops.nodes, 'backbone', [helper.make_tensor_value_info(IMAGE, kind, [1, 3, 'H', 'W'])],
                              found, ops.initializers)
    result = helper.make_model(graph, opset_imports=[helper.make_opsetid('', OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(result, full_check=True)
    return result


def build_hierarchy(model: MscaleOCRNet, half: bool = False) -> onnx.ModelProto:
    """All scales of a model in evaluation mode and their fusion: IMAGE float32 (1, 3, H, W) -> LOGITS (1, K, H, W).

    In float32 with inference.export.rearranged_head. half: in float16, except for softmax and fusion, with the head as
    it was trained: it has fewer roundings, and the weights of `build`. In bfloat16 an engine would round the fusion as
    well, which is float32 here always.
    """
    settings = Settings(output=LOGITS, precision='fp16' if half else 'fp32')
    return onnx_graph.build(model, settings, {}, rearranged=not half)


def branches(graph: onnx.ModelProto) -> list[str]:
    """The names of the backbone's four branches in a graph of `build`."""
    return json.loads({entry.key: entry.value for entry in graph.metadata_props}[BRANCHES])
