"""What a toy street contains: surfaces (functions that return a paint) and objects (functions that draw)."""
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np

from tools.toy.canvas import Canvas, Color, Part, Point, View, circle, mix, rectangle

Surface: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]  # a paint that varies, see Paint

GLASS = (74, 98, 124)
DARK = (36, 36, 40)
STEEL = (112, 120, 128)


def facade(plaster: Color, left: float, foot: float, unit: float) -> Surface:
    """Paint of a distant front that faces the camera: a grid of windows."""
    def paint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        window = ((x - left) % unit > 0.45 * unit) & ((foot - y) % unit > 0.45 * unit)
        return mix(mix(plaster, GLASS, 0.7 * window), (224, 228, 232), np.full(len(x), 0.25))
    return paint


def street_front(view: View, across: float, high: float, plaster: Color, roof: Color) -> Surface:
    """Paint of a house along the street: windows with frames, a plinth and a tiled eave."""
    def paint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        distance, height, scale = view.on_upright(across, x, y)
        column, floor = distance % 2.2 / 2.2, (height - 0.7) % 2.7 / 2.7
        frame = (np.abs(column - 0.5) < 0.32) & (np.abs(floor - 0.42) < 0.33)
        glass = (np.abs(column - 0.5) < 0.24) & (np.abs(floor - 0.42) < 0.26) & (np.abs(column - 0.5) > 0.03)
        near = scale > 3.5  # further away, windows are smaller than a pixel
        color = np.broadcast_to(np.array(plaster, float), (len(x), 3))
        color = np.where((frame & near)[:, None], (246, 244, 238), color)
        color = np.where((glass & near)[:, None], GLASS, color)
        color = np.where((height < 0.6)[:, None], np.array(plaster) * 0.66, color)
        color = np.where((height > high - 0.8)[:, None], roof, color)
        return mix((222, 228, 234), color, 0.45 + scale / 8)
    return paint


def pickets(view: View, across: float, high: float) -> Surface:
    """Paint of a white wooden fence."""
    def paint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        distance, height, scale = view.on_upright(across, x, y)
        gap = (distance % 0.42 < 0.16) & (scale > 4)
        rail = (np.abs(height - 0.35) < 0.1) | (np.abs(height - 0.95) < 0.1)
        return np.where((gap & ~rail)[:, None], (92, 74, 52), np.where(rail[:, None], (206, 170, 116), (232, 200, 146)))
    return paint


def bricks(view: View, across: float, high: float) -> Surface:
    """Paint of a brick wall with a light coping."""
    def paint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        distance, height, scale = view.on_upright(across, x, y)
        row = np.floor(height / 0.26)
        joint = ((height % 0.26 < 0.06) | ((distance + 0.3 * row) % 0.6 < 0.07)) & (scale > 5)
        color = np.where(joint[:, None], (196, 168, 152), (168, 82, 62))
        return np.where((height > high - 0.16)[:, None], (214, 196, 184), color)
    return paint


def foliage(canvas: Canvas, leaves: np.ndarray, color: Color, top: float, high: float) -> Surface:
    """Paint of leaves: clumps, lighter towards the sun."""
    def paint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        clumps = 0.62 + 0.6 * canvas.sample(leaves, x, y) - 0.3 * np.clip((y - top) / high, 0, 1)
        return np.array(color) * clumps[:, None]
    return paint


class Local:
    """Converts lengths around an object's foot to picture units: x to the right (or left if mirrored), y upwards.

    unit: metres of a length of 1.
    """

    def __init__(self, view: View, across: float, scale: float, mirror: bool = False, unit: float = 1.0) -> None:
        self.x, self.y = view.point(across, 0, scale)
        self.scale, self.sign = scale * unit, -1 if mirror else 1

    def __call__(self, points: Iterable[Point]) -> list[Point]:
        return [(self.x + self.sign * a * self.scale, self.y - b * self.scale) for a, b in points]


def pick(rng: np.random.Generator, colors: Sequence[Color]) -> np.ndarray:
    """One of the colours, a little lighter or darker."""
    return np.array(colors[int(rng.integers(len(colors)))]) * rng.uniform(0.85, 1.1)


def tree(canvas: Canvas, leaves: np.ndarray, rng: np.random.Generator, view: View, across: float, scale: float) -> None:
    """A trunk and a crown."""
    local = Local(view, across, scale)
    crown_y, radius = rng.uniform(3.4, 4.4), rng.uniform(1.5, 2.1)
    canvas.add('vegetation', local(rectangle(-0.2, crown_y, 0.2, 0)), (96, 70, 48), outline=True)
    angle = np.arange(14) * 2 * np.pi / 14
    reach = radius * rng.uniform(0.85, 1.12, 14)
    crown = local(zip(reach * np.cos(angle), crown_y + reach * np.sin(angle)))
    color = pick(rng, ((76, 124, 54), (62, 112, 62), (92, 130, 50)))
    canvas.add('vegetation', crown, foliage(canvas, leaves, color, local.y - 5.5 * scale, 4 * scale), outline=True)


def _post(canvas: Canvas, local: Local, high: float) -> None:
    shine = [(local([(-0.04, high), (0.05, high), (0.05, 0), (-0.04, 0)]), (150, 158, 166))]
    canvas.add('pole', local(rectangle(-0.18, high, 0.18, 0)), STEEL, shine, outline=True)


def sign_post(canvas: Canvas, rng: np.random.Generator, view: View, across: float, scale: float) -> None:
    """One of four traffic signs on a post."""
    local, high = Local(view, across, scale), rng.uniform(2.6, 3.0)
    _post(canvas, local, high)
    red, blue, yellow, white = (206, 36, 40), (40, 84, 190), (246, 206, 40), (246, 246, 246)
    triangle = [(-0.58, high - 0.45), (0.58, high - 0.45), (0, high + 0.6)]
    board, color, inner, inner_color = (
        (circle(0, high, 0.52), red, circle(0, high, 0.32), white),
        (triangle, red, [(-0.3, high - 0.27), (0.3, high - 0.27), (0, high + 0.27)], white),
        (rectangle(-0.46, high - 0.46, 0.46, high + 0.46), blue, circle(0, high, 0.22), white),
        ([(-0.6, high), (0, high - 0.6), (0.6, high), (0, high + 0.6)], white,
         [(-0.42, high), (0, high - 0.42), (0.42, high), (0, high + 0.42)], yellow))[rng.integers(4)]
    canvas.add('traffic sign', local(board), color, [(local(inner), inner_color)], outline=True)


def traffic_light(canvas: Canvas, rng: np.random.Generator, view: View, across: float, scale: float) -> None:
    """A black box with three lamps, one of them lit, on a post."""
    local, high = Local(view, across, scale), rng.uniform(2.5, 2.9)
    _post(canvas, local, high)
    lit = rng.integers(3)
    lamps = [(local(circle(0, high + 0.82 - 0.42 * i, 0.19)), color if i == lit else np.array(color) * 0.25)
             for i, color in enumerate(((255, 60, 40), (255, 190, 40), (60, 240, 110)))]
    canvas.add('traffic light', local(rectangle(-0.36, high + 1.15, 0.36, high - 0.35)), (26, 28, 30), lamps)


def person(canvas: Canvas, rng: np.random.Generator, view: View, across: float, scale: float) -> None:
    """A pedestrian."""
    tall, stride = rng.uniform(1.7, 2.0), rng.uniform(0.06, 0.15)
    local = Local(view, across, scale, rng.random() < 0.5, tall)
    right = [(stride, 0), (stride + 0.11, 0), (0.14, 0.46), (0.24, 0.44), (0.25, 0.52), (0.21, 0.74), (0.15, 0.82),
             (0.06, 0.83)]
    head = [(0.1 * np.sin(a), 0.9 - 0.1 * np.cos(a)) for a in np.linspace(0.6, 2 * np.pi - 0.6, 11)]
    left = [(-x, y) for x, y in reversed(right)]
    shirt = pick(rng, ((196, 52, 60), (58, 92, 180), (128, 62, 140), (226, 120, 170), (70, 150, 160)))
    trousers, hair = pick(rng, ((48, 52, 84), (70, 60, 56), (40, 42, 46))), pick(rng, ((60, 40, 28), (150, 100, 50)))
    skin = (228, 180, 150)
    parts: list[Part] = [
        (local(rectangle(-0.4, 0.48, 0.4, -0.1)), trousers), (local(rectangle(-0.4, 0.04, 0.4, -0.1)), DARK),
        (local(rectangle(-0.3, 0.5, -0.15, 0.4)), skin), (local(rectangle(0.15, 0.5, 0.3, 0.4)), skin),
        (local(circle(0, 0.9, 0.12)), skin),
        (local([(-0.12, 0.9), (-0.12, 1.1), (0.12, 1.1), (0.12, 0.95)]), hair)]
    canvas.add('person', local([*right, *head, *left, (0, 0.4)]), shirt, parts, outline=True)


def _tube(a: Point, b: Point, width: float = 0.1) -> list[Point]:
    """Corners of a thick line from a to b."""
    (ax, ay), (bx, by) = a, b
    half = width / 2 / np.hypot(bx - ax, by - ay)
    x, y = -(by - ay) * half, (bx - ax) * half
    return [(ax + x, ay + y), (bx + x, by + y), (bx - x, by - y), (ax - x, ay - y)]


def _bicycle(canvas: Canvas, rng: np.random.Generator, local: Local) -> None:
    turn = np.linspace(-np.pi / 2, 1.1, 9)
    front = [(0.64 + 0.42 * np.cos(a), 0.42 + 0.42 * np.sin(a)) for a in turn]
    back = [(-x, y) for x, y in reversed(front)]
    parts: list[Part] = []
    for x in (-0.64, 0.64):
        parts += [(local(circle(x, 0.42, 0.43)), DARK), (local(circle(x, 0.42, 0.31)), (190, 200, 204))]
    frame = pick(rng, ((30, 150, 160), (214, 70, 140), (120, 60, 190)))
    crank, saddle, head = (-0.06, 0.36), (-0.26, 0.95), (0.42, 0.98)
    tubes = (((-0.64, 0.42), crank), ((-0.64, 0.42), saddle), (crank, saddle), (crank, head), (saddle, head),
             ((0.64, 0.42), head))
    parts += [(local(_tube(a, b)), frame) for a, b in tubes]
    parts += [(local(rectangle(-0.46, 1.12, -0.1, 0.98)), DARK), (local(rectangle(0.28, 1.2, 0.64, 1.06)), DARK)]
    outline = [*front, (0.52, 1.06), (0.62, 1.06), (0.62, 1.18), (0.3, 1.18), (0.34, 0.98), (-0.12, 0.98),
               (-0.12, 1.1), (-0.44, 1.1), (-0.44, 1.0), (-0.34, 0.94), *back, (-0.3, 0.3), (0.3, 0.3)]
    canvas.add('bicycle', local(outline), (168, 162, 160), parts)


def bicycle(canvas: Canvas, rng: np.random.Generator, view: View, across: float, scale: float) -> None:
    """A parked bicycle, seen from its side."""
    _bicycle(canvas, rng, Local(view, across, scale, rng.random() < 0.5))


def cyclist(canvas: Canvas, rng: np.random.Generator, view: View, across: float, scale: float) -> None:
    """A rider with a helmet and a bright vest, on a bicycle."""
    local = Local(view, across, scale, rng.random() < 0.5, 1.1)
    _bicycle(canvas, rng, local)
    head = [(0.26 + 0.19 * np.sin(a), 1.84 - 0.19 * np.cos(a)) for a in np.linspace(0.6, 2 * np.pi - 0.6, 11)]
    body = [(-0.06, 0.22), (0.16, 0.22), (0.14, 0.45), (0.4, 0.86), (0.16, 1.1), (0.5, 1.04), (0.56, 1.2), (0.34, 1.32),
            (0.36, 1.6), *head, (0.02, 1.64), (-0.3, 1.3), (-0.4, 0.95), (-0.1, 0.8), (0.1, 0.78)]
    parts = [(local(rectangle(-0.5, 0.98, 0.6, 0)), (44, 46, 66)), (local(circle(0.26, 1.84, 0.22)), (228, 180, 150)),
             (local(rectangle(0, 2.1, 0.5, 1.9)), (250, 250, 244))]
    canvas.add('rider', local(body), pick(rng, ((214, 236, 40), (255, 150, 30))), parts, outline=True)


def litter_bin(canvas: Canvas, rng: np.random.Generator, view: View, across: float, scale: float) -> None:
    """Street furniture that is in no class."""
    local = Local(view, across, scale)
    canvas.add('static', local([(-0.3, 0), (-0.36, 1.0), (0.36, 1.0), (0.3, 0)]), (60, 110, 80),
               [(local(rectangle(-0.4, 0.9, 0.4, 0.78)), DARK)], outline=True)
