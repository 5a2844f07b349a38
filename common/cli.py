"""Shared by the command lines: threads, devices, one-line errors, exit statuses. Its import does not import Paddle."""
import argparse
import ctypes
import logging
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

from common.errors import UserError, is_expected

EXIT_ERROR = 1
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class ArgumentParser(argparse.ArgumentParser):
    """Wrong flags end with status 2, as usual, and one line that names the flag, instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        print(f'error: {" ".join(message.split())}; see --help', file=sys.stderr)
        sys.exit(2)


def add_debug_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')


def run(main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a script: `main(argv)` returns its exit status (None is 0). Never returns.

    A user can correct UserError, FileError and what the operating system refuses (an OSError with its number): their
    text is printed as one `error:` line, status 1. Any other exception is a defect of this repository: one line says so
    and names a file with the traceback. `--debug` shows the traceback in both cases.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    status: int | None
    try:
        status = main(arguments)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        status = 130
    except UserError as error:
        status = _report(f'error: {error}', error, arguments)
    except Exception as error:
        if isinstance(error, OSError) and is_expected(error):
            text = f'{error.filename}: {error.strerror}' if error.filename else str(error)
            status = _report(f'error: {text}', error, arguments)
        else:
            first = (str(error).strip().splitlines() or [''])[0]
            status = _report(f'internal error: {type(error).__name__}: {first}; this is a defect, please report it '
                             f'with {_keep_traceback(error)}', error, arguments)
    sys.exit(status)


def _report(line: str, error: BaseException, arguments: Sequence[str]) -> int:
    if '--debug' in arguments:
        traceback.print_exception(type(error), error, error.__traceback__)
    print(line, file=sys.stderr)
    return EXIT_ERROR


def _keep_traceback(error: BaseException) -> str:
    """Write the traceback and the command into a temporary file; returns the words for the error line."""
    try:
        handle, path = tempfile.mkstemp(prefix='mscale_ocrnet_error_', suffix='.txt')
        with os.fdopen(handle, 'w') as file:
            file.write(f'{" ".join(sys.argv)}\n')
            traceback.print_exception(type(error), error, error.__traceback__, file=file)
    except OSError:
        return 'the traceback that --debug shows'
    return f'the traceback in {path}'


def start_paddle() -> int:
    """Import Paddle with all cores (it takes one unless OMP_NUM_THREADS is set), start logging, join other processes.

    Returns the number of threads. Under paddle.distributed.launch, whose own import of Paddle has put
    OMP_NUM_THREADS=1 into the environment, the cores are divided among the processes of this machine.

    Raises UserError if the GPU that Paddle would use is one that it has no code for.
    """
    _end_with_launcher()
    threads = load_paddle()
    import paddle

    from common import cuda_architectures

    cuda_architectures.check(paddle)
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, force=True,
                        format='%(asctime)s [%(levelname)s]\t%(message)s', datefmt='%Y-%m-%d %H:%M:%S')
    if paddle.distributed.get_world_size() > 1:
        paddle.distributed.init_parallel_env()
    if paddle.distributed.get_rank() > 0:
        logging.disable(logging.INFO)
    return threads


def load_paddle() -> int:
    """Import Paddle with the threads of `start_paddle`, and return their number; for programs that are not ours."""
    chosen = os.environ.get('OMP_NUM_THREADS')
    if 'PADDLE_TRAINER_ID' in os.environ and chosen == '1':
        chosen = None
    warnings.filterwarnings('ignore', message='No ccache found')
    warnings.filterwarnings('ignore', message='When training, we now always track global mean and variance')
    warnings.filterwarnings('ignore', message=r'[\s\S]*softmax_with_cross_entropy" is deprecated')  # PaddleSeg's losses
    if 'AuthenticAMD' in _processor():
        # The MKL inside Paddle's CPU build takes its slowest path on AMD's processors without this variable, although
        # they have AVX2. The faster path rounds differently.
        os.environ.setdefault('MKL_DEBUG_CPU_TYPE', '5')
    # OpenCV, with the system's zlib, before Paddle: loaded after Paddle 2.6, some of zlib's internal calls would reach
    # the zlib built into Paddle, and the first PNG would crash the process.
    import cv2  # noqa: F401
    import paddle

    threads = int(chosen) if chosen else cores()
    paddle.base.core.set_num_threads(threads)
    paddle.set_flags({'FLAGS_paddle_num_threads': threads})
    return threads


def cores() -> int:
    """The cores that this process may use: those of the machine are divided among its processes."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get('PADDLE_LOCAL_SIZE', 1)))


def _end_with_launcher() -> None:
    """Have SIGTERM sent to this process when the launcher that started it is gone (Linux).

    A launcher that is killed, or that loses its etcd server, leaves its workers running. They would continue to train
    and keep the lock on --save_dir, so that a new launcher could not start.
    """
    try:
        with open(f'/proc/{os.getppid()}/cmdline', 'rb') as file:
            launched = b'paddle.distributed.launch' in file.read()
        if launched:
            end_with_parent(signal.SIGTERM)
    except OSError:  # not Linux
        return


def end_with_parent(signum: int) -> None:
    """Have a signal sent to this process when the one that started it is gone, where Linux can do that."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum)


def _processor() -> str:
    try:
        with open('/proc/cpuinfo') as file:
            text = file.read()
    except OSError:
        return ''
    return text if 'avx2' in text else ''
