"""What a component takes behind its **kwargs: of PaddleSeg's own functions, and of made-up ones for each rule."""
from paddleseg.cvlibs import manager
from paddleseg.models.backbones.vision_transformer import VisionTransformer

from common.parameters import parameters


class Inner:
    def __init__(self, width, depth=1, **rest):
        pass


class Outer:
    def __init__(self, kind=None, **options):
        self.inner = Inner(3, **options)


def passes_on(width=2, **options):
    return Inner(width=width, **options)


def looks_into(**options):
    return Inner(options.pop('size', 1), **options)


def unknown_target(**options):
    return looks_into.__call__(**options)


def test_what_a_function_passes_on_is_what_its_class_takes():
    found, others = parameters(manager.BACKBONES.components_dict['ResNet50_vd'])
    assert set(found) == {'output_stride', 'multi_grid', 'in_channels', 'pretrained', 'data_format'} and not others
    assert found['output_stride'].default == 8
    found, others = parameters(passes_on)
    assert set(found) == {'width', 'depth'} and not others  # Inner drops the rest
    found, others = parameters(Outer)
    assert set(found) == {'kind', 'depth'} and not others  # the width is set


def test_what_cannot_be_told_is_left_open():
    assert parameters(looks_into) == ({}, True) and parameters(unknown_target) == ({}, True)


def test_keywords_that_go_nowhere_are_not_taken():
    found, others = parameters(VisionTransformer)
    assert 'args' not in found and 'drop_rate' in found and not others
