"""The GPU's memory, and settings of its libraries: TF32, kernels whose results do not vary. Nothing without a GPU."""
import ctypes
import math
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


def total_memory() -> float:
    """Bytes of the first GPU that CUDA may use, of NVIDIA's driver; infinite without one."""
    try:
        driver = ctypes.CDLL('libcuda.so.1')
    except OSError:
        return math.inf
    device, size = ctypes.c_int(), ctypes.c_size_t()
    failed = (driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0) or
              driver.cuDeviceTotalMem_v2(ctypes.byref(size), device))
    return math.inf if failed else size.value
