"""The vehicles of a toy street: boxes in perspective, seen from behind (or in front) and from the side of the road."""
from collections.abc import Iterable, Sequence

import numpy as np

from tools.toy.canvas import FOCAL, Canvas, Part, Point, View
from tools.toy.objects import DARK, GLASS, pick


class _Body:
    """Converts metres on a vehicle to picture units: dx to the right of its middle, height, along the street."""

    def __init__(self, view: View, across: float, scale: float, width: float) -> None:
        self.view, self.across, self.distance, self.half = view, across, FOCAL / scale, width / 2
        self.inner = -self.half if across > 0 else self.half  # dx of the visible side

    def __call__(self, dx: float, height: float, along: float = 0.0) -> Point:
        return self.view.point(self.across + dx, height, FOCAL / (self.distance + along))

    def back(self, left: float, low: float, right: float, high: float) -> list[Point]:
        """A panel on the rear; left and right are -1 to 1."""
        return [self(dx * self.half, height) for dx, height in
                ((left, low), (left, high), (right, high), (right, low))]

    def side(self, start: float, low: float, end: float, high: float, slant: float = 0.0) -> list[Point]:
        """A panel on the visible side; slant shortens its upper edge."""
        return [self(self.inner, low, start), self(self.inner, high, start + slant),
                self(self.inner, high, end - slant), self(self.inner, low, end)]

    def wheel(self, along: float, radius: float) -> list[Point]:
        return [self(self.inner, radius + radius * np.sin(a), along + radius * np.cos(a))
                for a in np.linspace(0, 2 * np.pi, 12, endpoint=False)]

    def box(self, low: float, high: float, length: float) -> list[Point]:
        return [self(dx, height, along) for dx in (-self.half, self.half) for height in (low, high)
                for along in (0, length)]


def _hull(points: Iterable[Point]) -> list[Point]:
    """Corners of the convex hull of 2D points, in order."""
    points = sorted(points)

    def half(points: Sequence[Point]) -> list[Point]:
        chain: list[Point] = []
        for p in points:
            while len(chain) > 1 and ((chain[-1][0] - chain[-2][0]) * (p[1] - chain[-2][1])
                                      <= (chain[-1][1] - chain[-2][1]) * (p[0] - chain[-2][0])):
                chain.pop()
            chain.append(p)
        return chain[:-1]
    return half(points) + half(points[::-1])


def car(canvas: Canvas, rng: np.random.Generator, view: View, across: float, scale: float) -> None:
    """A car: oncoming on the left, seen from behind on the right."""
    body = _Body(view, across, scale, 1.85)
    color = pick(rng, ((188, 34, 38), (38, 70, 160), (206, 208, 212), (62, 66, 74), (96, 150, 196), (150, 30, 60)))
    roof = [body(dx * 0.76, 1.5, along) for dx in (-body.half, body.half) for along in (0.5, 2.4)]
    lamp = (255, 250, 214) if across < 0 else (250, 40, 34)
    parts = [(body.back(-1.1, 0, 1.1, 0.3), DARK), (body.side(0, 0, 4.0, 0.2), DARK),
             ([body(-0.68 * body.half, 1.36), body(0.68 * body.half, 1.36), body(0.84 * body.half, 0.98),
               body(-0.84 * body.half, 0.98)], GLASS),
             (body.side(0.4, 0.98, 2.9, 1.36, 0.3), GLASS),
             (body.back(-0.95, 0.62, -0.62, 0.86), lamp), (body.back(0.62, 0.62, 0.95, 0.86), lamp),
             (body.wheel(0.7, 0.32), DARK), (body.wheel(3.2, 0.32), DARK),
             (body.back(-0.95, 0, -0.6, 0.3), (16, 16, 18)), (body.back(0.6, 0, 0.95, 0.3), (16, 16, 18))]
    canvas.add('car', _hull(body.box(0.0, 0.98, 4.0) + roof), color, parts, outline=True)
    canvas.add('license plate', body.back(-0.28, 0.42, 0.28, 0.6), (236, 236, 230))


def bus(canvas: Canvas, rng: np.random.Generator, view: View, across: float, scale: float) -> None:
    """A city bus with a row of windows."""
    body = _Body(view, across, scale, 2.5)
    color = pick(rng, ((250, 196, 30), (246, 170, 40)))
    parts = [(body.back(-1.1, 0, 1.1, 0.35), DARK), (body.side(0, 0, 9, 0.35), DARK),
             (body.back(-0.82, 1.5, 0.82, 2.45), GLASS), (body.back(-0.5, 2.6, 0.5, 2.85), (40, 40, 40)),
             (body.back(-0.92, 0.6, -0.6, 0.9), (250, 60, 40)), (body.back(0.6, 0.6, 0.92, 0.9), (250, 60, 40)),
             (body.back(-1.1, 1.1, 1.1, 1.25), (250, 250, 244)), (body.side(0, 1.1, 9, 1.25), (250, 250, 244)),
             (body.wheel(1.4, 0.45), DARK), (body.wheel(6.8, 0.45), DARK)]
    parts += [(body.side(start, 1.5, start + 1.25, 2.45), GLASS) for start in np.arange(0.4, 8, 1.5).tolist()]
    canvas.add('bus', _hull(body.box(0, 3.1, 9)), color, parts, outline=True)


def truck(canvas: Canvas, rng: np.random.Generator, view: View, across: float, scale: float) -> None:
    """A lorry: a tall plain box with two doors above a striped bumper."""
    body = _Body(view, across, scale, 2.5)
    color, trim = pick(rng, ((238, 238, 236), (226, 232, 240))), pick(rng, ((40, 120, 90), (60, 80, 150)))
    parts: list[Part] = [
        (body.back(-1.1, 0, 1.1, 0.75), DARK), (body.side(0, 0, 7, 0.75), DARK),
        (body.back(-1.1, 2.2, 1.1, 2.6), trim), (body.side(0, 2.2, 7, 2.6), trim),
        (body.back(-0.03, 0.75, 0.03, 3.4), DARK), (body.back(-0.3, 1.3, -0.12, 1.8), (120, 124, 130)),
        (body.back(0.12, 1.3, 0.3, 1.8), (120, 124, 130)),
        (body.wheel(1.2, 0.45), (16, 16, 18)), (body.wheel(5.8, 0.45), (16, 16, 18))]
    parts += [(body.back(left, 0.5, left + 0.2, 0.75), (220, 40, 40)) for left in np.arange(-1, 1, 0.4).tolist()]
    canvas.add('truck', _hull(body.box(0, 3.4, 7)), color, parts, outline=True)
