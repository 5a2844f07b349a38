"""Modules of PaddleSeg with the arithmetic of Paddle 2, for which they were written.

Paddle 2 converted the integers of `float * int`, Paddle 3 refuses it. A module is compiled once more from where it is
installed, with every `a * b`, `a + b`, `a - b` and `a / b` replaced by a call that converts the integer or boolean
tensor to its partner's dtype. Neither paddle.Tensor nor the installed module is changed.
"""
import ast
import importlib.util
import operator
import types
from collections.abc import Callable
from typing import Any, ClassVar

import paddle

# The last two while Paddle 2.6 and Paddle 3 trace.
TENSORS: tuple[Any, ...] = (paddle.Tensor, paddle.static.Variable, paddle.pir.Value)


def convert(function: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    """function(a, b); of two tensors the integer or boolean one takes the dtype of the other, if that is float, and a
    boolean one that of an integer."""
    if isinstance(a, TENSORS) and isinstance(b, TENSORS) and a.dtype != b.dtype:
        if _rank(a) < _rank(b):
            a = a.astype(b.dtype)
        elif _rank(b) < _rank(a):
            b = b.astype(a.dtype)
    return function(a, b)


def _rank(x: paddle.Tensor) -> int:
    """0 for boolean, 1 for integers, 2 for floating point."""
    kind = str(x.dtype).rpartition('.')[2].lower()
    return 2 if 'float' in kind else int(kind != 'bool')


def _class_ids(x: paddle.Tensor) -> paddle.Tensor:
    return x.astype('int64')


class _Arithmetic(ast.NodeTransformer):
    """`a * b` -> `_convert(_Mult, a, b)` and so on; one_hot(x) -> one_hot(_class_ids(x)); no registration."""
    functions: ClassVar = {ast.Mult: operator.mul, ast.Add: operator.add, ast.Sub: operator.sub,
                           ast.Div: operator.truediv}

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        if type(node.op) not in self.functions:
            return node
        function = ast.Name(f'_{type(node.op).__name__}', ast.Load())
        return ast.copy_location(ast.Call(ast.Name('_convert', ast.Load()), [function, node.left, node.right], []),
                                 node)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr == 'one_hot':
            node.args[0] = ast.copy_location(ast.Call(ast.Name('_class_ids', ast.Load()), [node.args[0]], []), node)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        node.decorator_list = []
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.decorator_list = [decorator for decorator in node.decorator_list
                               if not ast.unparse(decorator).endswith('.add_component')]
        return node


def compiled(module: str) -> types.ModuleType:
    """An installed module with that arithmetic, its classes not registered anywhere; the one in use is not touched."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    with open(spec.origin, encoding='utf-8') as file:
        tree = ast.fix_missing_locations(_Arithmetic().visit(ast.parse(file.read())))
    result = types.ModuleType(module)
    result.__dict__.update({f'_{op.__name__}': function for op, function in _Arithmetic.functions.items()},
                           _convert=convert, _class_ids=_class_ids, __package__=module.rpartition('.')[0])
    exec(compile(tree, spec.origin, 'exec'), result.__dict__)
    return result


def is_compiled(component: type) -> bool:
    """Whether a class comes from `compiled`: Paddle's tracer would read its source, which lacks that arithmetic."""
    return any('_convert' in getattr(function, '__globals__', ()) for function in vars(component).values())
