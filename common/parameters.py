"""The parameters of a component of PaddleSeg, those behind its `**kwargs` included."""
import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

Parameters = dict[str, inspect.Parameter]


def parameters(component: Callable[..., Any]) -> tuple[Parameters, bool]:
    """({name: parameter} that a function or class takes, whether it takes any others).

    Most backbones are functions `def ResNet50_vd(**args): return ResNet_vd(layers=50, **args)`: their parameters are
    those of the class that they call, without the ones that they set. Keywords that are taken and passed on to nothing
    are not counted: PaddleSeg drops them in silence.
    """
    found = {p.name: p for p in inspect.signature(component).parameters.values()}
    rest = next((p.name for p in found.values() if p.kind is p.VAR_KEYWORD), None)
    if rest is None:
        return found, False
    del found[rest]
    function: Any = inspect.unwrap(component)
    function = function.__init__ if inspect.isclass(function) else function
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return found, True
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == rest]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and any(
        keyword.arg is None and isinstance(keyword.value, ast.Name) and keyword.value.id == rest
        for keyword in node.keywords)]
    if not uses:
        return found, False
    if len(uses) != len(calls):
        return found, True  # it looks into them, too
    others = False
    for call in calls:
        target = function.__globals__.get(call.func.id) if isinstance(call.func, ast.Name) else None
        if target is None:
            return found, True
        further, more = parameters(target)
        given = {keyword.arg for keyword in call.keywords} | set(list(further)[:len(call.args)])
        found = {**{name: p for name, p in further.items() if name not in given}, **found}
        others = others or more
    return found, others
