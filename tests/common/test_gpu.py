"""Settings of the GPU's libraries; on a CPU, what Paddle and the libraries are asked for."""
import os

import paddle
import pytest

from common import gpu


@pytest.mark.parametrize('allow', [False, True])
def test_tf32_is_switched_in_both_libraries(monkeypatch, allow):
    asked = {}
    monkeypatch.setattr(os, 'environ', {})
    monkeypatch.setattr(paddle, 'is_compiled_with_cuda', lambda: True)
    for name in ('set_cublas_switch', 'set_cudnn_switch'):
        monkeypatch.setattr(paddle.base.core, name, lambda value, name=name: asked.update({name: value}),
                            raising=False)  # Paddle 2.6's build for CPUs has none
    gpu.allow_tf32(allow)
    assert asked == {'set_cublas_switch': allow, 'set_cudnn_switch': allow}
    assert os.environ == ({} if allow else {'NVIDIA_TF32_OVERRIDE': '0'})


def test_the_users_own_setting_of_tf32_remains(monkeypatch):
    monkeypatch.setattr(os, 'environ', {'NVIDIA_TF32_OVERRIDE': '1'})
    gpu.allow_tf32(False)
    assert os.environ == {'NVIDIA_TF32_OVERRIDE': '1'}


def test_flags_that_a_version_of_paddle_lacks_are_left_out(monkeypatch):
    asked = {}
    monkeypatch.setattr(os, 'environ', {})
    monkeypatch.setattr(paddle, 'set_flags', asked.update)
    monkeypatch.setattr(paddle.base.core, 'globals', lambda: {'FLAGS_cudnn_deterministic': False})
    gpu.use_deterministic_kernels()
    assert asked == {'FLAGS_cudnn_deterministic': True}
    assert os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':4096:8'
