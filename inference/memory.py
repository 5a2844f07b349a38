"""Estimates of the memory an image needs, and smaller strips and windows where that is too much."""
import ctypes
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import paddle
import psutil

from common import gpu
from common.backend_table import BACKENDS
from common.errors import UserError
from models.mscale_ocrnet import MscaleOCRNet

logger = logging.getLogger(__name__)

Size = tuple[int, int]  # (H, W)
GB = 1 << 30
SMALLEST_STRIP = 1 << 13  # pixels; below that, overlapping rows cost more than smaller strips save
SMALLEST_WINDOW = 256
WHOLE = 1 << 30  # pixels of a strip that is any image: inference.whole_network then runs without strips
AT_ONCE = 1 << 31  # the same, and all scales in one graph
# Bytes of temporaries per pixel of a strip in the head of W48 (512 channels), and the backbone's memory relative to its
# activations. Fitted to the resident memory of OpenVINO, for whole images and windows; for the other two, upper bounds
# of what benchmarks/inference.py measures.
STRIP_BYTES = 40000


class Footprint(NamedTuple):
    """The sizes that determine a network's memory: channels of stage 1, of the finest branch, of the OCR features;
    classes; bytes of all weights.
    """
    stage1: int
    branch: int
    features: int
    classes: int
    weights: int

    def peak(self, size: Sequence[int], scales: Sequence[float], strip: float, backend: str) -> float:
        """Bytes beyond those of the loaded network, for an image of this (H, W); the largest scale decides."""
        top = max(scales)
        pixels = size[0] * size[1] * top**2
        image = 12 * pixels
        # Stage 1 at a quarter of the resolution: input, output and two inner activations; and the stem's at half.
        backbone = BACKENDS[backend].extra * pixels * (2.5 * self.stage1 / 4 + 64)
        strip = min(strip, pixels / 16)
        head = pixels * (self.features + 1.875 * self.branch) / 4 + STRIP_BYTES * strip * self.features / 512
        largest = max([s for s in scales if s < top] or [top])  # logits are whole below the highest scale
        fusion = 3 * 4 * self.classes * size[0] * size[1] * max(largest, 1)**2
        # OpenVINO repacks the weights for large and for small arrays, on first use.
        repacked = BACKENDS[backend].copies * self.weights
        return repacked + image + max(backbone, head, fusion)


def footprint(model: MscaleOCRNet) -> Footprint:
    """The Footprint of a network that supports_fusion."""
    net, layers = model.ocrnet.backbone, model.ocrnet.head.layers()
    return Footprint(net.stem_channels, net.branch_channels[0], layers.pixels.out_channels,
                     layers.classifier.weight.shape[0], 4 * sum(p.size for p in model.parameters()))


def on_gpu(device: str) -> bool:
    """Whether an executor's device is a GPU: 'gpu:0' of Paddle, 'CUDAExecutionProvider' of ONNX Runtime."""
    return device.lower().startswith(('gpu', 'cuda'))


def used(device: str) -> int:
    """Bytes that this process has resident; for a GPU, what Paddle has allocated there."""
    if on_gpu(device):
        return paddle.device.cuda.memory_allocated() if paddle.is_compiled_with_cuda() else 0
    return psutil.Process().memory_info().rss


def available(device: str) -> float:
    """Bytes that this process can have in all on a device: what it uses plus what is free, within a container's limit.

    For a GPU that Paddle cannot see (ONNX Runtime's, beside a Paddle for CPUs) what its driver says.
    """
    if on_gpu(device):
        gpus = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count()
        return paddle.device.cuda.get_device_properties(0 if paddle.get_device() == 'cpu' else None).total_memory \
            if gpus else gpu.total_memory()
    free = psutil.virtual_memory().available + used(device)
    limit = Path('/sys/fs/cgroup/memory.max')
    try:
        return min(free, int(limit.read_text()))
    except (OSError, ValueError):
        return free


def trim(device: str) -> None:
    """Return freed memory to the system: glibc keeps much of it, and images of many sizes would add up.

    Nothing for a GPU, whose arrays are not in this memory: it would cost milliseconds per scale.
    """
    if on_gpu(device):
        return
    malloc_trim = getattr(ctypes.CDLL(None), 'malloc_trim', None) if sys.platform == 'linux' else None
    if malloc_trim is not None:  # musl has none
        malloc_trim(0)


class Plan(NamedTuple):
    """strip: pixels of a strip. window: (H, W), possibly the whole image. need: estimated bytes in all."""
    strip: int
    window: Size
    need: float


class NetworkWithFootprint(Protocol):
    """A network that estimates its memory: inference.fused_network.FusedNetwork."""
    base: float
    n_scales: list[float]
    strips: list[int]  # of pixels that can be chosen, the fastest first
    footprint: Footprint
    device: str

    def peak(self, size: Sequence[int], strip: int | None = None) -> float:
        ...


def halves(strip: int) -> list[int]:
    """Pixels of strips, from this number down to SMALLEST_STRIP."""
    return [strip, *(halves(strip // 2) if strip > SMALLEST_STRIP else [])]


def fit(network: NetworkWithFootprint, size: Size, crop_size: Size | None, stride: Size | None,
        limit: float | None) -> tuple[Size | None, Size | None, int]:
    """(crop_size, stride, pixels of a strip) for an image of (H, W) with a network; crop_size None is the whole image.

    limit: bytes, or None for all that is available; a warning is logged if that may not be enough.
    """
    window = crop_size or size
    if limit is None:
        have = available(network.device)
        whole = network.strips[0] >= WHOLE  # then strips are how less memory is taken; smaller ones save little
        needs = {strip: network.base + network.peak(window, strip) for strip in network.strips[:None if whole else 1]}
        strip = next((strip for strip, need in needs.items() if need <= have), list(needs)[-1])
        need = needs[strip]
        if whole and strip < WHOLE:
            logger.info('images of %dx%d go through strips: at once they need %.1f GB, %.1f GB are there', *window,
                        needs[WHOLE] / GB, have / GB)
        if need > have:
            logger.warning(
                'an image of %dx%d at scales %s may need %.1f GB, %.1f GB are there: use --memory_limit %.1f, '
                '--is_slide, fewer scales (--opts model.n_scales=[0.5,1.0])%s', *window, network.n_scales, need / GB,
                have / GB, 0.9 * have / GB, ' or --precision fp16' if on_gpu(network.device) else '')
        return crop_size, stride, strip
    found = plan_within(network, window, limit)
    if found.window == tuple(window):
        return crop_size, stride, found.strip
    logger.info('--memory_limit: images of %dx%d go through windows of %dx%d', *size, *found.window)
    height, width = found.window
    return found.window, (max(1, height * 3 // 4), max(1, width * 3 // 4)), found.strip


def plan_within(network: NetworkWithFootprint, size: Size, limit: float) -> Plan:
    """The fastest Plan within `limit` bytes: first smaller strips, then windows with half the longer side.

    UserError if nothing fits.
    """
    base, window = network.base, list(size)
    while True:
        # Windows are summed into the logits of the whole image, and their average is a second array of that size.
        whole = 0 if window == list(size) else 8 * network.footprint.classes * size[0] * size[1]
        for strip in network.strips:
            need = base + network.peak(window, strip) + whole
            if need <= limit:
                return Plan(strip, (window[0], window[1]), need)
        axis = 0 if window[0] > window[1] else 1
        if window[axis] <= SMALLEST_WINDOW:
            raise UserError(f'--memory_limit {limit / GB:.3g}: expected at least {need / GB:.2f} GB, of which the '
                             f'loaded network takes {base / GB:.2f}, found {limit / GB:.3g}; raise it, or use fewer '
                             'scales (--opts model.n_scales=[0.5,1.0])')
        window[axis] = -(-window[axis] // 64) * 32
