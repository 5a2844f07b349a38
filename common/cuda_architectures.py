"""Which NVIDIA GPUs the installed build of Paddle has machine code for.

A program holds code per compute capability (86 for 8.6) and runs on GPUs of the same major and no lower minor version
(CUDA C++ Programming Guide, binary compatibility). Paddle's wheels hold practically no PTX, from which a driver could
make more. Elsewhere every kernel fails with "no kernel image is available". Imports no Paddle: it may not survive that.
"""
from typing import Any

from common.errors import UserError

# What builds have code for that do not tell themselves, as Paddle 3's do: {version: capabilities}; read from the wheel.
UNTOLD = {'2.6': (61, 70, 75, 80, 86)}
PAGE = 'docs/gpus.md'


def of_build(paddle: Any) -> tuple[int, ...]:
    """Capabilities that this build (the module) has code for, ascending; empty if it is for CPUs, or unknown."""
    if not paddle.is_compiled_with_cuda():
        return ()
    version = paddle.version
    told = version.cuda_archs() if hasattr(version, 'cuda_archs') else ()
    return tuple(sorted({int(name) for name in map(str, told or ()) if name.isdigit()})) or \
        UNTOLD.get('.'.join(paddle.__version__.split('.')[:2]), ())


def has_code_for(capability: int, architectures: tuple[int, ...]) -> bool:
    """Whether a GPU runs a build that has code for these."""
    return any(a // 10 == capability // 10 and a <= capability for a in architectures)


def problem(name: str, capability: int, architectures: tuple[int, ...], build: str) -> str | None:
    """One line, if a build (its version and CUDA's) is known to have no code for a GPU; capability 0 is unknown."""
    if not architectures or not capability or has_code_for(capability, architectures):
        return None
    return (f'{name} is sm_{capability}, but Paddle {build} has code for '
            f'{", ".join(f"sm_{a}" for a in architectures)} only ("no kernel image is available"); install a build '
            f'that has it ({PAGE})')


def check(paddle: Any) -> None:
    """Raise UserError if Paddle would compute on a GPU that it has no code for."""
    architectures = of_build(paddle)
    if not architectures or not paddle.get_device().startswith('gpu'):
        return
    cuda = paddle.device.cuda
    major, minor = cuda.get_device_capability()
    found = problem(cuda.get_device_name(), 10 * major + minor, architectures,
                    f'{paddle.__version__} (CUDA {paddle.version.cuda()})')
    if found:
        raise UserError(f'{found}, or hide the GPU with CUDA_VISIBLE_DEVICES=-1 to use the CPU')
