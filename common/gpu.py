"""Settings of the GPU's libraries: TF32, and kernels whose results do not vary. Without a GPU they do nothing."""
import os

import paddle


def allow_tf32(allow: bool) -> None:
    """Whether float32 convolutions and matrix products may round their factors to TF32's 10 bits.

    Paddle's default on GPUs that have it is yes. cuBLAS and cuDNN read the variable when they start, and with 0 no
    caller of theirs can have TF32; a value the user has set remains.
    """
    if not allow:
        os.environ.setdefault('NVIDIA_TF32_OVERRIDE', '0')
    if paddle.is_compiled_with_cuda():
        paddle.base.core.set_cublas_switch(allow)
        paddle.base.core.set_cudnn_switch(allow)


# Paddle's flags, as far as a version has them.
DETERMINISTIC_FLAGS = {
    'FLAGS_cudnn_deterministic': True, 'FLAGS_embedding_deterministic': 1, 'FLAGS_cudnn_exhaustive_search': False,
    'FLAGS_cublaslt_exhaustive_search_times': 0, 'FLAGS_cudnn_batchnorm_spatial_persistent': False}


def use_deterministic_kernels() -> None:
    """Ask for kernels that give the same bits every time; before the first computation on the GPU."""
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # cuBLAS then chooses its algorithm without timing
    known = paddle.base.core.globals()
    paddle.set_flags({name: value for name, value in DETERMINISTIC_FLAGS.items() if name in known})
