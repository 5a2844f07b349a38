"""A network with the inputs and outputs of export.py whose classes NumPy can tell, too."""
import json

import numpy as np
import onnx
from onnx import helper, numpy_helper

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PALETTE = [[128, 64, 128], [244, 35, 232], [70, 70, 70], [0, 0, 142]]
# Of R, G, B in 0..255; the last value is added. Sums of integers below 2 ** 24: exact in float32.
WEIGHTS = np.array([[2, -1, 0, 0], [-1, 2, 0, 3], [0, -1, 2, 1], [0, 0, 0, 100]], np.float32)


def classes_of(bgr):
    """uint8 (H, W) that a network without --with_preprocessing, or with it, must give for uint8 (H, W, 3) BGR."""
    scores = bgr[..., ::-1].astype(np.int64) @ WEIGHTS[:, :3].T.astype(np.int64) + WEIGHTS[:, 3].astype(np.int64)
    return scores.argmax(-1).astype(np.uint8)


def write(path, preprocessing=True, output='classes', size=('H', 'W'), metadata=True):
    """One of the contract's variants. Of normalised images, values are undone before the colours are weighed."""
    constants = {'weights': WEIGHTS[:, :3, None, None], 'biases': WEIGHTS[:, 3], 'zero': np.array([0]),
                 'std': 255 * np.array(STD, np.float32).reshape(1, 3, 1, 1),
                 'mean': 255 * np.array(MEAN, np.float32).reshape(1, 3, 1, 1)}
    node = helper.make_node
    if preprocessing:
        image = helper.make_tensor_value_info('image', onnx.TensorProto.UINT8, [*size, 3])
        nodes = [node('Cast', ['image'], ['float'], to=onnx.TensorProto.FLOAT),
                 node('Transpose', ['float'], ['planes'], perm=[2, 0, 1]),
                 node('Unsqueeze', ['planes', 'zero'], ['rgb'])]
    else:
        image = helper.make_tensor_value_info('image', onnx.TensorProto.FLOAT, [1, 3, *size])
        nodes = [node('Mul', ['image', 'std'], ['scaled']), node('Add', ['scaled', 'mean'], ['near']),
                 node('Round', ['near'], ['rgb'])]
    nodes.append(node('Conv', ['rgb', 'weights', 'biases'], ['logits' if output == 'logits' else 'scores']))
    result = helper.make_tensor_value_info('logits', onnx.TensorProto.FLOAT, [1, len(WEIGHTS), *size])
    if output == 'classes':
        nodes.append(node('ArgMax', ['scores'], ['ids'], axis=1, keepdims=0))
        nodes += [node('Squeeze', ['ids', 'zero'], ['flat'])] if preprocessing else []
        nodes.append(node('Cast', [nodes[-1].output[0]], ['classes'], to=onnx.TensorProto.UINT8))
        shape = [*size] if preprocessing else [1, *size]
        result = helper.make_tensor_value_info('classes', onnx.TensorProto.UINT8, shape)
    used = {name for one in nodes for name in one.input}
    graph = helper.make_graph(nodes, 'stand_in', [image], [result], [
        numpy_helper.from_array(value, name) for name, value in constants.items() if name in used])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=9)
    if metadata:
        values = {'palette': PALETTE, 'classes': list('abcd'), 'mean': MEAN, 'std': STD}
        helper.set_model_props(model, {key: json.dumps(value) for key, value in values.items()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path
