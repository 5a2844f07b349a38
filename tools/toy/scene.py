"""Composition of a toy street: what is where, drawn from far to near.

Positions are given as (across, scale): metres to the right of the camera's axis, and picture units per metre at that
depth.
"""
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from tools.toy import objects as things
from tools.toy import vehicles
from tools.toy.canvas import FOCAL, UNITS_HIGH, Canvas, View, circle, mix, rectangle

DrawingFunction: TypeAlias = Callable[[Canvas, np.random.Generator, View, float, float], None]

PLASTER = ((236, 214, 170), (222, 178, 140), (200, 208, 214), (232, 196, 186), (196, 186, 164), (240, 232, 214))
ROOF = ((150, 80, 62), (108, 88, 92), (128, 70, 60))


def compose(size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Draw one street.

    size: (H, W) of the picture. rng: the only source of randomness.
    Returns (uint8 (H, W, 3) RGB picture, list of {'label': name, 'polygon': [[x, y], ...]} in drawing order).
    """
    canvas = Canvas(size)
    view = View(canvas.units_wide * rng.uniform(0.42, 0.58), rng.uniform(54, 62))
    road = rng.uniform(3.6, 4.4)  # metres from the axis to the kerb
    green = rng.choice([-1, 1])

    _sky(canvas, view, rng)
    _ground(canvas, view, rng, road, green)
    _town_side(canvas, view, rng, -green, road + 3)
    _green_side(canvas, view, rng, green, road + 4.8)
    for draw, across, scale in sorted(_street_life(canvas, view, rng, road), key=lambda thing: thing[2]):
        canvas.shade(circle(*view.point(across, 0, scale), 0.9 * scale, 0.2 * scale), 0.75)
        draw(canvas, rng, view, across, scale)
    _void(canvas, rng)
    return canvas.finish(rng), canvas.objects


def _sky(canvas: Canvas, view: View, rng: np.random.Generator) -> None:
    top, low = np.array([(92, 150, 222), (130, 170, 220), (150, 168, 196)])[rng.integers(3)], np.array((232, 234, 236))
    cloud = canvas.noise(rng, 28, 7)

    def paint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        color = mix(top, low, y / view.horizon)
        return mix(color, (250, 248, 244), 1.6 * canvas.sample(cloud, x, y) - 0.9)

    canvas.add('sky', rectangle(0, 0, canvas.units_wide, UNITS_HIGH), paint)
    leaves = canvas.noise(rng, 3, 3)
    for _ in range(4):  # the far end of the street
        x, half, high = rng.uniform(0.1, 0.9) * canvas.units_wide, rng.uniform(10, 24), rng.uniform(8, 22)
        box = rectangle(x - half, view.horizon - high, x + half, view.horizon + 3)
        canvas.add('building', box, things.facade(PLASTER[rng.integers(len(PLASTER))], x - half, view.horizon, 5.0))
    for x in np.arange(0, canvas.units_wide + 12, 12) + rng.uniform(-4, 4):
        crown = circle(x, view.horizon + 1, rng.uniform(8, 12), rng.uniform(4, 9))
        canvas.add('vegetation', crown, things.foliage(canvas, leaves, (104, 138, 96), view.horizon, 10))


def _ground(canvas: Canvas, view: View, rng: np.random.Generator, road: float, green: int) -> None:
    grain, patches = canvas.noise(rng, 1.5, 1.5), canvas.noise(rng, 22, 9)

    def turf(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.array((158, 190, 84)) * (0.78 + 0.3 * canvas.sample(grain, x, y)
                                           + 0.14 * canvas.sample(patches, x, y))[:, None]

    def paving(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        across, distance = view.on_ground(x, y)
        joints = ((across % 0.75 < 0.09) | (distance % 0.9 < 0.12)) & (y > view.horizon + 10)
        shade = 0.9 + 0.16 * canvas.sample(patches, x, y) - 0.16 * joints
        kerb = np.abs(np.abs(across) - road) < 0.22
        return np.where(kerb[:, None], (226, 222, 214), np.array((204, 178, 164)) * shade[:, None])

    zebra = rng.uniform(4.0, 6.0) if rng.random() < 0.5 else np.inf  # distance of a crossing

    def asphalt(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        across, distance = view.on_ground(x, y)
        shade = 0.84 + 0.16 * canvas.sample(patches, x, y) + 0.14 * canvas.sample(grain, x, y)
        dashes = (np.abs(across) < 0.1) & (distance % 4 < 2.2) & (np.abs(distance - zebra) > 1.6)
        edge = np.abs(np.abs(across) - road + 0.35) < 0.07
        bars = (np.abs(distance - zebra) < 0.8) & (across % 1.1 < 0.55) & (np.abs(across) < road - 0.6)
        color = np.array((98, 98, 106)) * shade[:, None]
        return np.where((dashes | edge | bars)[:, None], (222, 222, 214), color)

    canvas.add('terrain', rectangle(0, view.horizon + 2, canvas.units_wide, UNITS_HIGH), turf)
    for side in (-1, 1):
        width = 2.0 if side == green else 3.0
        canvas.add('sidewalk', view.strip(side * road, side * (road + width)), paving)
    canvas.add('road', view.strip(-road, road), asphalt)


def _town_side(canvas: Canvas, view: View, rng: np.random.Generator, side: int, across: float) -> None:
    """A row of houses along the pavement."""
    edges = [1.6]
    while edges[-1] < 24:
        edges.append(FOCAL / max(FOCAL / edges[-1] - rng.uniform(5, 10), 4))
    leaves = canvas.noise(rng, 3, 3)
    for far, near in pairwise(edges):
        high = rng.uniform(5, 10)
        paint = things.street_front(view, side * across, high, PLASTER[rng.integers(len(PLASTER))],
                                    ROOF[rng.integers(len(ROOF))])
        canvas.add('building', view.upright(side * across, high, near, far), paint, outline=True)
    for scale in np.sort(rng.uniform(6, 14, rng.integers(0, 3))):
        things.tree(canvas, leaves, rng, view, side * (across - 0.4), scale)


def _green_side(canvas: Canvas, view: View, rng: np.random.Generator, side: int, across: float) -> None:
    """A lawn, then a fence and a wall, one after the other, with trees and a house behind them."""
    leaves = canvas.noise(rng, 3, 3)
    high = rng.uniform(4.5, 7.5)
    near, far = rng.uniform(9, 11), rng.uniform(4, 6)
    front = things.street_front(view, side * (across + 3), high, PLASTER[rng.integers(len(PLASTER))], ROOF[0])
    canvas.add('building', view.upright(side * (across + 3), high, near, far), front, outline=True)
    for scale in np.sort(rng.uniform(3, 12, rng.integers(4, 7))):
        things.tree(canvas, leaves, rng, view, side * (across + rng.uniform(0.8, 2.5)), scale)
    parts = [('fence', things.pickets), ('wall', things.bricks)]
    rng.shuffle(parts)  # type: ignore[arg-type]  # the stubs of NumPy do not know that it takes any list
    middle = rng.uniform(8, 10)
    for (label, paint), (far, near) in zip(parts, ((2.0, middle), (middle, 60.0))):
        high = rng.uniform(1.25, 1.6)
        canvas.add(label, view.upright(side * across, high, near, far), paint(view, side * across, high), outline=True)


def _street_life(canvas: Canvas, view: View, rng: np.random.Generator,
                 road: float) -> list[tuple[DrawingFunction, float, float]]:
    """Everything that stands or moves on the street: a list of (function that draws it, across, scale)."""
    life: list[tuple[DrawingFunction, float, float]] = []
    slots = [(side, scale) for side in (-1, 1) for scale in (11, 13.5, 16.5, 20)]
    rng.shuffle(slots)
    reach = {things.sign_post: (0.25, 0.6), things.traffic_light: (0.25, 0.6), things.person: (-0.4, 1.7),
             things.bicycle: (0.9, 1.6), things.litter_bin: (0.9, 1.6)}  # metres from the kerb
    always = [things.sign_post, things.traffic_light, things.person, things.person, things.person, things.bicycle]
    one_more = list(reach)[rng.integers(len(reach))]
    for thing, (side, scale) in zip([*always, one_more], slots):
        across = road + rng.uniform(*reach[thing])
        room = canvas.units_wide - view.vanish if side > 0 else view.vanish
        life.append((thing, side * across, min(scale * rng.uniform(0.93, 1.07), room / (across + 0.9))))

    lanes = [(side, scale) for side in (-1, 1) for scale in (10.5, 14, 19)]
    rng.shuffle(lanes)
    lanes.sort(key=lambda lane: lane[1] > 16)  # far ones first: they are for the tall vehicles
    traffic = [vehicles.bus] * (rng.random() < 0.7) + [vehicles.truck] * (rng.random() < 0.7)
    traffic += [vehicles.car, vehicles.car]
    for thing, (side, scale) in zip(traffic, lanes):
        life.append((thing, side * road * rng.uniform(0.48, 0.56), scale * rng.uniform(0.93, 1.07)))
    life.append((things.cyclist, road * rng.uniform(-0.8, 0.8), rng.uniform(17, 22)))  # in front of the cars
    return life


def _void(canvas: Canvas, rng: np.random.Generator) -> None:
    """The bonnet of the camera's own car, and the border that is never labelled."""
    wide = canvas.units_wide
    top = rng.uniform(119, 122)
    x = np.linspace(0, 1, 13)
    bonnet = [(wide * (0.06 + 0.88 * a), top + 6 * (2 * a - 1) ** 4) for a in x]
    canvas.add('ego vehicle', [(0, UNITS_HIGH), *bonnet, (wide, UNITS_HIGH)],
               lambda x, y: mix((70, 74, 82), (30, 32, 38), (y - top) / 9), outline=True)
    rim = 1.0
    for box in (rectangle(0, 0, wide, rim), rectangle(0, 0, rim, UNITS_HIGH),
                rectangle(wide - rim, 0, wide, UNITS_HIGH)):
        canvas.add('out of roi', box, None)
