"""The canvas of a toy street: every polygon is painted and annotated at the same time.

Drawing functions use the units of a picture that is 128 units high. The canvas converts them to whole pixels once, for
both the paint and the annotation, so the picture and its polygons agree to the pixel.
"""
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np
from PIL import Image, ImageDraw

UNITS_HIGH = 128
CAMERA_HEIGHT = 1.5  # metres above the flat ground
FOCAL = 140.0  # units: an object d metres away is drawn at FOCAL / d units per metre

Point: TypeAlias = tuple[float, float]
Color: TypeAlias = Sequence[float] | np.ndarray  # RGB
# A colour, or a function (x (N,), y (N,)), in units -> (N, 3) RGB, all float arrays.
Paint: TypeAlias = Color | Callable[[np.ndarray, np.ndarray], np.ndarray]
Part: TypeAlias = tuple[Sequence[Point], Paint]  # a painted detail of an object


def mix(first: Color, second: Color, amount: np.ndarray) -> np.ndarray:
    """Colours, float (N, 3), between `first` and `second` ((3,) or (N, 3)); amount: (N,), clipped to 0..1."""
    amount = np.clip(amount, 0, 1)[:, None]
    return np.asarray(first) * (1 - amount) + np.asarray(second) * amount


def rectangle(left: float, top: float, right: float, bottom: float) -> list[Point]:
    """Corner points of an upright box."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def circle(x: float, y: float, radius: float, radius_y: float | None = None, points: int = 16) -> list[Point]:
    """Points of an ellipse around (x, y)."""
    angle = np.arange(points) * 2 * np.pi / points
    return list(zip(x + radius * np.cos(angle), y + (radius_y or radius) * np.sin(angle)))


class View:
    """The camera: converts metres to picture units. vanish: x of the vanishing point. horizon: its y."""

    def __init__(self, vanish: float, horizon: float) -> None:
        self.vanish, self.horizon = vanish, horizon

    def point(self, across: float, height: float, scale: float) -> Point:
        """Picture position (x, y) of a point `across` metres to the right and `height` metres above the ground."""
        return self.vanish + across * scale, self.horizon + (CAMERA_HEIGHT - height) * scale

    def strip(self, left: float, right: float, near: float = 60.0, far: float = 1.0) -> list[Point]:
        """Polygon of the ground between two distances from the axis, from scale `near` to scale `far`."""
        return [self.point(left, 0, near), self.point(left, 0, far), self.point(right, 0, far),
                self.point(right, 0, near)]

    def upright(self, across: float, height: float, near: float, far: float, foot: float = 0.0) -> list[Point]:
        """Polygon of a vertical plane parallel to the street."""
        return [self.point(across, foot, near), self.point(across, height, near), self.point(across, height, far),
                self.point(across, foot, far)]

    def on_ground(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(across, distance) in metres of the ground seen at picture positions (x, y), all float (N,)."""
        scale = np.maximum(y - self.horizon, 0.5) / CAMERA_HEIGHT
        return (x - self.vanish) / scale, FOCAL / scale

    def on_upright(self, across: float, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(distance, height, scale) of a plane along the street seen at picture positions (x, y), all float (N,)."""
        scale = np.maximum((x - self.vanish) / across, 0.5)
        return FOCAL / scale, CAMERA_HEIGHT - (y - self.horizon) / scale, scale


class Canvas:
    """An unfinished picture and the polygons drawn so far.

    size: (H, W) in pixels. objects: list of {'label', 'polygon'} in the order of drawing, as in a Cityscapes JSON file.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.height, self.width = size
        self.scale = self.height / UNITS_HIGH
        self.units_wide = self.width / self.scale
        self.objects: list[dict[str, Any]] = []
        self._picture = np.zeros((self.height, self.width, 3), np.float32)

    def add(self, label: str, polygon: Sequence[Point], paint: Paint | None,
            parts: Iterable[Part] = (), outline: bool = False) -> None:
        """Draw an object over the picture so far, and record its polygon.

        polygon: in units. paint: None leaves the picture as it is. parts: [(polygon, paint), ...], details that are
        painted inside the object only. outline: whether to darken the object's rim.
        """
        pixels = self._pixels(polygon)
        self.objects.append({'label': label, 'polygon': pixels})
        if paint is None:
            return
        mask = self._mask(pixels)
        self._fill(mask, paint)
        for part, part_paint in parts:
            self._fill(mask & self._mask(self._pixels(part)), part_paint)
        if outline:
            rim = mask & (cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1) == 0)
            self._picture[rim] *= 0.72

    def shade(self, polygon: Sequence[Point], factor: float) -> None:
        """Multiply the brightness under a polygon by `factor`; shadows have no label."""
        self._picture[self._mask(self._pixels(polygon))] *= factor

    def noise(self, rng: np.random.Generator, step_x: float, step_y: float) -> np.ndarray:
        """float32 (H, W) smooth noise in 0..1 with grains of step_x by step_y units."""
        rows, columns = int(UNITS_HIGH / step_y) + 2, int(self.units_wide / step_x) + 2
        coarse = rng.random((rows, columns), np.float32)
        return cv2.resize(coarse, (self.width, self.height), interpolation=cv2.INTER_LINEAR)

    def sample(self, field: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Values (N,) of a (H, W) field at positions in units."""
        return field[(y * self.scale).astype(int), (x * self.scale).astype(int)]

    def finish(self, rng: np.random.Generator) -> np.ndarray:
        """uint8 (H, W, 3) RGB: the picture in random light, taken by a slightly blurry and noisy camera."""
        picture = np.asarray(cv2.GaussianBlur(self._picture, (3, 3), 0.45), np.float32)
        picture *= rng.uniform(0.86, 1.14) * rng.uniform(0.95, 1.05, 3)
        picture *= 0.88 + 0.22 * self.noise(rng, 60, 40)[..., None]
        picture += rng.normal(0, 3.5, picture.shape)
        return np.clip(np.rint(picture), 0, 255).astype(np.uint8)

    def _pixels(self, polygon: Sequence[Point]) -> list[list[int]]:
        return np.rint(np.asarray(polygon, np.float64) * self.scale).astype(int).tolist()

    def _mask(self, pixels: Iterable[Sequence[int]]) -> np.ndarray:
        # The same rasteriser as in cityscapesscripts, on the whole picture: a crop could round edges differently.
        mask = Image.new('1', (self.width, self.height))
        ImageDraw.Draw(mask).polygon([tuple(point) for point in pixels], fill=1)
        return np.array(mask)

    def _fill(self, mask: np.ndarray, paint: Paint) -> None:
        if callable(paint):
            y, x = np.nonzero(mask)
            self._picture[y, x] = paint(x / self.scale, y / self.scale)
        else:
            self._picture[mask] = paint
