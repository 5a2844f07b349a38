"""The sheet a toy street is drawn on: every polygon is painted and noted down at the same time.

Drawing functions speak in units of a picture that is 128 units high; the canvas turns them into whole pixels once, and
both the paint and the annotation use those whole pixels, so the picture and its polygons agree to the pixel.
"""
import cv2
import numpy as np
from PIL import Image, ImageDraw

UNITS_HIGH = 128
CAMERA_HEIGHT = 1.5  # metres above the flat ground
FOCAL = 140.0  # units: what is d metres away is drawn at FOCAL / d units per metre


def mix(first, second, amount):
    """Colours (N, 3) between `first` and `second` ((3,) or (N, 3)), amount (N,) clipped to 0..1."""
    amount = np.clip(amount, 0, 1)[:, None]
    return np.asarray(first) * (1 - amount) + np.asarray(second) * amount


def rectangle(left, top, right, bottom):
    """Corner points of an upright box."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def circle(x, y, radius, radius_y=None, points=16):
    """Points of an ellipse around (x, y)."""
    angle = np.arange(points) * 2 * np.pi / points
    return list(zip(x + radius * np.cos(angle), y + (radius_y or radius) * np.sin(angle)))


class View:
    """The camera: where the street vanishes and how metres become picture units."""

    def __init__(self, vanish, horizon):
        self.vanish, self.horizon = vanish, horizon

    def point(self, across, height, scale):
        """Picture position (x, y) of a point `across` metres to the right and `height` metres above the ground."""
        return self.vanish + across * scale, self.horizon + (CAMERA_HEIGHT - height) * scale

    def strip(self, left, right, near=60.0, far=1.0):
        """Polygon of the ground between two distances from the axis, from scale `near` to scale `far`."""
        return [self.point(left, 0, near), self.point(left, 0, far), self.point(right, 0, far),
                self.point(right, 0, near)]

    def upright(self, across, height, near, far, foot=0.0):
        """Polygon of a vertical plane that runs along the street."""
        return [self.point(across, foot, near), self.point(across, height, near), self.point(across, height, far),
                self.point(across, foot, far)]

    def on_ground(self, x, y):
        """(across, distance) in metres of the ground seen at picture position (x, y)."""
        scale = np.maximum(y - self.horizon, 0.5) / CAMERA_HEIGHT
        return (x - self.vanish) / scale, FOCAL / scale

    def on_upright(self, across, x, y):
        """(distance, height, scale) of a plane along the street seen at picture position (x, y)."""
        scale = np.maximum((x - self.vanish) / across, 0.5)
        return FOCAL / scale, CAMERA_HEIGHT - (y - self.horizon) / scale, scale


class Canvas:
    """A picture under construction and the polygons drawn so far.

    size: (H, W) in pixels. objects: list of {'label', 'polygon'} in the order of drawing, as in a Cityscapes JSON file.
    """

    def __init__(self, size, rng):
        self.height, self.width = size
        self.scale = self.height / UNITS_HIGH
        self.units_wide = self.width / self.scale
        self.objects = []
        self._picture = np.zeros((self.height, self.width, 3), np.float32)

    def add(self, label, polygon, paint, parts=(), outline=False):
        """Draws an object over what is there, and notes its polygon.

        polygon: [(x, y), ...] in units. paint: RGB colour, or function (x (N,), y (N,)) -> (N, 3), or None to leave the
        picture as it is. parts: [(polygon, paint), ...], details that are painted inside the object only.
        outline: darkens the object's rim.
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

    def shade(self, polygon, factor):
        """Multiplies the brightness under a polygon; shadows have no label."""
        self._picture[self._mask(self._pixels(polygon))] *= factor

    def noise(self, rng, step_x, step_y):
        """float32 (H, W) smooth noise in 0..1 whose grains measure step_x by step_y units."""
        rows, columns = int(UNITS_HIGH / step_y) + 2, int(self.units_wide / step_x) + 2
        coarse = rng.random((rows, columns), np.float32)
        return cv2.resize(coarse, (self.width, self.height), interpolation=cv2.INTER_LINEAR)

    def sample(self, field, x, y):
        """Values (N,) of a (H, W) field at positions in units."""
        return field[(y * self.scale).astype(int), (x * self.scale).astype(int)]

    def finish(self, rng):
        """uint8 (H, W, 3) RGB: the picture under a random light, through a slightly soft and noisy camera."""
        picture = cv2.GaussianBlur(self._picture, (3, 3), 0.45)
        picture *= rng.uniform(0.86, 1.14) * rng.uniform(0.95, 1.05, 3)
        picture *= 0.88 + 0.22 * self.noise(rng, 60, 40)[..., None]
        picture += rng.normal(0, 3.5, picture.shape)
        return np.clip(np.rint(picture), 0, 255).astype(np.uint8)

    def _pixels(self, polygon):
        return np.rint(np.asarray(polygon, np.float64) * self.scale).astype(int).tolist()

    def _mask(self, pixels):
        # The rasteriser of cityscapesscripts, on the whole picture: a crop could round an edge differently.
        mask = Image.new('1', (self.width, self.height))
        ImageDraw.Draw(mask).polygon([tuple(point) for point in pixels], fill=1)
        return np.array(mask)

    def _fill(self, mask, paint):
        if callable(paint):
            y, x = np.nonzero(mask)
            self._picture[y, x] = paint(x / self.scale, y / self.scale)
        else:
            self._picture[mask] = paint
