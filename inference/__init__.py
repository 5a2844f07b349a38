"""From an image to logits, scores and pictures. For programs and notebooks: `from inference import Segmenter`."""
import importlib
from typing import Any

_WHERE = {'Segmenter': 'inference.segmenter', 'Segmentation': 'inference.segmenter'}  # imported when first asked for

__all__ = ['Segmentation', 'Segmenter']


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_WHERE[name]), name)
