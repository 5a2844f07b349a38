"""Which GPUs a build of Paddle runs on; builds and GPUs are made up."""
from types import SimpleNamespace

import pytest

from common import cli, cuda_architectures
from common.errors import UserError


def build(version='3.3.1', archs=(70, 75, 80, 86, 90), device='gpu:0', capability=(9, 0), cuda=True):
    """A Paddle. archs: None for one that does not tell."""
    told = {} if archs is None else {'cuda_archs': lambda: list(archs)}
    return SimpleNamespace(
        __version__=version, is_compiled_with_cuda=lambda: cuda, get_device=lambda: device,
        version=SimpleNamespace(cuda=lambda: '11.8', **told),
        device=SimpleNamespace(cuda=SimpleNamespace(get_device_capability=lambda: capability,
                                                    get_device_name=lambda: 'NVIDIA H100')))


@pytest.mark.parametrize('capability, architectures, expected', [
    (86, (80,), True), (89, (80, 86), True), (80, (86,), False), (90, (80, 86), False), (120, (90,), False),
    (60, (61, 70), False)])
def test_code_of_the_same_major_version_runs(capability, architectures, expected):
    assert cuda_architectures.has_code_for(capability, architectures) == expected


@pytest.mark.parametrize('paddle, expected', [
    (build(archs=(90, 80)), (80, 90)), (build(archs=('80', 'sm', '90')), (80, 90)),
    (build('2.6.2', None), (61, 70, 75, 80, 86)), (build('2.5.2', None), ()), (build(cuda=False, archs=()), ())])
def test_what_a_build_has_code_for(paddle, expected):
    assert cuda_architectures.of_build(paddle) == expected


@pytest.mark.parametrize('paddle', [build(), build(archs=(80, 86), capability=(8, 9)), build('2.5.2', None),
                                    build('2.6.2', None, device='cpu'), build(cuda=False, archs=())])
def test_builds_that_run(paddle):
    cuda_architectures.check(paddle)


def test_a_build_without_code_is_one_line_before_anything_starts(monkeypatch):
    with pytest.raises(UserError) as error:
        cuda_architectures.check(build('2.6.2', None))
    assert str(error.value) == (
        'NVIDIA H100 is sm_90, but Paddle 2.6.2 (CUDA 11.8) has code for sm_61, sm_70, sm_75, sm_80, sm_86 only '
        '("no kernel image is available"); install a build that has it (docs/gpus.md), or hide the GPU with '
        'CUDA_VISIBLE_DEVICES=-1 to use the CPU')

    def refuse(paddle):
        raise UserError('no code')

    monkeypatch.setattr(cuda_architectures, 'check', refuse)
    with pytest.raises(UserError, match='no code'):
        cli.start_paddle()
