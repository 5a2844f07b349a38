"""The deterministic weights and inputs behind tests/reference/*.npz (facts of the reference, see its generator)."""
import zlib

import numpy as np


def weights(model):
    """Overwrite every entry of a state dict with float32 numbers drawn from a generator that its name seeds.

    A float64 network gets the same numbers: what its results differ in is rounding alone.
    """
    for name, tensor in model.state_dict().items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        shape = list(tensor.shape)
        if len(shape) == 4:
            value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith('_variance'):
            value = rng.uniform(0.8, 1.2, shape)
        elif name.endswith('.weight'):
            value = rng.uniform(0.4, 0.9, shape)
        else:
            value = rng.normal(0, 0.1, shape)
        tensor.set_value(value.astype('float32').astype(str(tensor.dtype).split('.')[-1]))


def image(seed, shape):
    """float32 (n, c, h, w): noise on a grid of 16 pixels, enlarged bilinearly, plus a little noise per pixel."""
    rng = np.random.default_rng(seed)
    n, c, height, width = shape
    grid = rng.standard_normal([n, c, height // 16 + 1, width // 16 + 1])
    for axis, size in ((2, height), (3, width)):
        position = np.linspace(0, size // 16, size)
        low = np.minimum(position.astype(int), size // 16 - 1)
        part = (position - low).reshape([-1 if a == axis else 1 for a in range(4)])
        grid = np.take(grid, low, axis) * (1 - part) + np.take(grid, low + 1, axis) * part
    return (2 * grid + 0.1 * rng.standard_normal(shape)).astype('float32')
