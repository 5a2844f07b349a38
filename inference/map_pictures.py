"""Confidence, entropy and attention as pictures: 8-bit PNGs whose values can be read back, seen in colours."""
from __future__ import annotations  # inference.maps imports Paddle, which the users of this module do not need

import io
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from inference.maps import Maps

KINDS = ('confidence', 'entropy', 'attention')
DECIDING = 'deciding_scale'
COLORS = cv2.COLORMAP_CIVIDIS  # dark blue to yellow, of even steps for all kinds of colour vision


def folders(kinds: Collection[str], scales: Sequence[float]) -> list[str]:
    """The folders of `pictures`, for a network that fuses these scales."""
    found = [kind for kind in ('confidence', 'entropy') if kind in kinds]
    return found + ([f'attention_{scale:g}' for scale in scales] + [DECIDING] if 'attention' in kinds else [])


def pictures(maps: Maps, kinds: Collection[str]) -> dict[str, bytes]:
    """{folder: PNG} of some of KINDS. The pixels are palette indices:

    confidence, entropy, attention_<scale>: round(255 * value), in cividis, dark blue for 0 and yellow for 1.
    deciding_scale: the position, in ascending order, of the scale with the largest weight; darker is smaller.
    """
    values = {kind: getattr(maps, kind) for kind in ('confidence', 'entropy') if kind in kinds}
    if 'attention' in kinds:
        values.update({f'attention_{scale:g}': weight for scale, weight in maps.attention.items()})
    found = {folder: palette_png(np.rint(255 * value.clip(0, 1)).astype(np.uint8), palette(256))
             for folder, value in values.items()}
    if 'attention' in kinds:
        found[DECIDING] = palette_png(deciding_scale(maps), palette(len(maps.attention)))
    return found


def deciding_scale(maps: Maps) -> np.ndarray:
    """uint8 (H, W): the position, in ascending order, of the scale with the largest weight; the smaller of equals."""
    return np.argmax(list(maps.attention.values()), axis=0).astype(np.uint8)


def palette_png(indices: np.ndarray, palette: np.ndarray) -> bytes:
    """PNG bytes of uint8 (H, W), stored as indices with the palette uint8 (n, 3) RGB."""
    picture = Image.fromarray(indices)
    picture.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, 'PNG')
    return buffer.getvalue()


def palette(count: int) -> np.ndarray:
    """uint8 (count, 3) RGB, evenly spaced from dark to bright."""
    steps = np.linspace(0, 255, count).round().astype(np.uint8)
    return cv2.applyColorMap(steps[:, None], COLORS)[:, 0, ::-1]
