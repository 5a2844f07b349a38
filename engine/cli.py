"""What the command lines share: threads, devices, one-line errors, exit statuses. Does not import Paddle by itself."""
import ctypes
import logging
import os
import signal
import sys
import traceback
import warnings

EXIT_ERROR = 1
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def add_debug_flag(parser):
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')


def run(main, argv=None):
    """Run a script: `main(argv)` returns its exit status (None is 0). Never returns.

    ValueError, OSError and FloatingPointError are what a user can cause: their text is printed as one `error:` line,
    status 1. Anything else is a defect of ours and says so. `--debug` shows the traceback.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        status = main(argv)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        status = 130
    except (ValueError, OSError, FloatingPointError) as error:
        status = _report('error', error, argv)
    except Exception as error:
        status = _report(f'internal error: {type(error).__name__}', error, argv)
    sys.exit(status)


def _report(kind, error, argv):
    if '--debug' in argv:
        traceback.print_exception(type(error), error, error.__traceback__)
    print(f'{kind}: {error}', file=sys.stderr)
    if kind.startswith('internal') and '--debug' not in argv:
        print('This should not happen; run again with --debug and report it.', file=sys.stderr)
    return EXIT_ERROR


def start_paddle():
    """Import Paddle with all cores (it takes one unless OMP_NUM_THREADS is set), start logging, join other processes.

    Returns the number of threads. Under paddle.distributed.launch, whose own import of Paddle has put
    OMP_NUM_THREADS=1 into the environment, the cores are divided among the processes of this machine.
    """
    _end_with_the_launcher()
    chosen = os.environ.get('OMP_NUM_THREADS')
    local_processes = int(os.environ.get('PADDLE_LOCAL_SIZE', 1))
    if 'PADDLE_TRAINER_ID' in os.environ and chosen == '1':
        chosen = None
    warnings.filterwarnings('ignore', message='No ccache found')
    warnings.filterwarnings('ignore', message='When training, we now always track global mean and variance')
    if 'AuthenticAMD' in _processor():
        # The MKL inside Paddle's CPU build takes its slowest path on AMD's processors unless told that they have AVX2.
        # It costs the last digits: results differ in rounding from a run without it.
        os.environ.setdefault('MKL_DEBUG_CPU_TYPE', '5')
    # First OpenCV with the system's zlib: loaded after Paddle 2.6, half of zlib's calls of itself would end in the zlib
    # that is built into Paddle, and the first PNG in a segmentation fault.
    import cv2  # noqa: F401
    import paddle

    threads = int(chosen) if chosen else max(1, len(os.sched_getaffinity(0)) // local_processes)
    paddle.base.core.set_num_threads(threads)
    paddle.set_flags({'FLAGS_paddle_num_threads': threads})
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, force=True,
                        format='%(asctime)s [%(levelname)s]\t%(message)s', datefmt='%Y-%m-%d %H:%M:%S')
    if paddle.distributed.get_world_size() > 1:
        paddle.distributed.init_parallel_env()
    if paddle.distributed.get_rank() > 0:
        logging.disable(logging.INFO)
    return threads


def _end_with_the_launcher():
    """Have SIGTERM sent to this process when the launcher that started it is gone (Linux).

    A launcher that is killed, or that loses its etcd server, leaves its workers behind. They would train on unwatched,
    and hold --save_dir against the launcher that is started in its place.
    """
    try:
        with open(f'/proc/{os.getppid()}/cmdline', 'rb') as file:
            launched = b'paddle.distributed.launch' in file.read()
        if launched:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    except (OSError, AttributeError):  # not Linux
        return


def _processor():
    try:
        with open('/proc/cpuinfo') as file:
            text = file.read()
    except OSError:
        return ''
    return text if 'avx2' in text else ''
