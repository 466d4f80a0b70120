"""Scenes of one or two people: jointed dolls with the 17 COCO keypoints."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from sphinx_jax.data.playground.canvas import Canvas, new_canvas, paint
from sphinx_jax.data.playground.scene import Person, Scene, scene_of
from sphinx_jax.data.playground.things import COLOURS, Thing
from sphinx_jax.data.tasks import Box, Point, Pose

SKIN = ((236, 190, 152), (204, 146, 104), (148, 98, 66), (96, 62, 44))
_OVERSAMPLING = 3

# Lengths in shares of a standing person's height: about a grown body's, with a large head (to be seen).
_HEAD, _NECK, _SHOULDERS, _HIPS, _TRUNK, _ARM, _LEG = 0.105, 0.045, 0.13, 0.085, 0.30, 0.165, 0.215
_THICK = 0.062


def person_scene(rng: np.random.Generator, domain: str, split: str) -> Scene:
    """One person at least 0.6 of the picture high, or two beside each other, seen from the front."""
    canvas = new_canvas(rng, domain, split)
    count = 1 if rng.random() < 0.6 else 2
    colours = [str(c) for c in rng.permutation(list(COLOURS))[:count]]
    people = []
    for place, colour in enumerate(colours):
        middle = (place + 0.5) / count * canvas.width + rng.uniform(-0.04, 0.04) * canvas.width
        people.append(_draw(canvas, colour, middle, canvas.width / count - 4))
    things = tuple(Thing("person", person.colour, person.box) for person in people)
    return scene_of("person", canvas, things=things, people=tuple(people))


def arms_raised(person: Person) -> int:
    """How many wrists are above their shoulders."""
    points = person.pose.points
    return sum(points[wrist].y < points[shoulder].y for wrist, shoulder in ((9, 5), (10, 6)))


def _joints(rng: np.random.Generator) -> np.ndarray:
    """(17, 2) keypoints in shares of the height, y down, the middle of the hips at the origin."""
    lean = rng.uniform(-0.12, 0.12)
    up = np.array([np.sin(lean), -np.cos(lean)])
    across = np.array([np.cos(lean), np.sin(lean)])  # towards the viewer's right, the person's left
    chest = _TRUNK * up
    head = chest + (_NECK + _HEAD) * up
    face = [(0, -0.012), (0.36, 0.25), (-0.36, 0.25), (0.98, 0.05), (-0.98, 0.05)]
    points = [head + _HEAD * (x * across + y * up) for x, y in face]
    limbs: dict[str, list[np.ndarray]] = {"left": [], "right": []}
    for name, sign in (("left", 1), ("right", -1)):
        shoulder, hip = chest + sign * _SHOULDERS * across, sign * _HIPS * across
        # angles outwards from hanging down: a raised arm ends clearly above the shoulder, another below
        raised = rng.random() < 0.5
        upper = rng.uniform(1.75, 2.6) if raised else rng.uniform(0.15, 1.1)
        lower = upper + (rng.uniform(-0.1, 0.7) if raised else rng.uniform(-0.5, 0.3))
        elbow = shoulder + _ARM * _swing(upper, sign)
        wrist = elbow + _ARM * _swing(lower, sign)
        thigh = rng.uniform(0.02, 0.4)
        knee = hip + _LEG * _swing(thigh, sign)
        ankle = knee + _LEG * _swing(thigh + rng.uniform(-0.3, 0.05), sign)
        limbs[name] = [shoulder, elbow, wrist, hip, knee, ankle]
    for joint in range(6):
        points += [limbs["left"][joint], limbs["right"][joint]]
    return np.array(points)


def _swing(angle: float, sign: int) -> np.ndarray:
    return np.array([sign * np.sin(angle), np.cos(angle)])


def _draw(canvas: Canvas, colour: str, middle: float, room: float) -> Person:
    """A person about `middle`, as large as `room` pixels of width and the picture's height allow."""
    rng = canvas.rng
    joints = _joints(rng)
    body = np.concatenate([joints, [joints[0] - (0, _HEAD * 1.1)]])
    low, high = body.min(0) - _THICK / 2 - 0.01, body.max(0) + _THICK / 2 + 0.01
    scale = min(rng.uniform(0.84, 0.96) * canvas.height, room * (high[1] - low[1]) / (high[0] - low[0]))
    scale /= high[1] - low[1]
    size = np.ceil((high - low) * scale).astype(int)
    left = int(np.clip(middle - size[0] / 2, 1, canvas.width - size[0] - 1))
    top = int(rng.integers(1, max(canvas.height - size[1] - 1, 2)))
    points = (joints - low) * scale
    parts = _parts(points, scale, size)
    boxes = [paint(canvas, parts["body"], left, top, COLOURS[colour])]
    skin = SKIN[int(rng.integers(len(SKIN)))]
    boxes.append(paint(canvas, parts["skin"], left, top, skin, shadow=False))
    paint(canvas, parts["face"], left, top, (20, 20, 20), shadow=False)
    there = np.maximum(parts["body"], parts["skin"]) >= 96
    rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
    box = Box(left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1)
    return Person(colour, box, Pose(tuple(Point(float(x) + left, float(y) + top) for x, y in points)))


def _parts(points: np.ndarray, scale: float, size: np.ndarray) -> dict[str, np.ndarray]:
    """Coverages (h, w) uint8 of the clothed body, of head and hands, and of the features of the face."""
    zoom = _OVERSAMPLING
    images = {name: Image.new("L", (int(size[0]) * zoom, int(size[1]) * zoom)) for name in ("body", "skin", "face")}
    draws = {name: ImageDraw.Draw(image) for name, image in images.items()}
    fine = points * zoom
    thick = _THICK * scale * zoom

    def limb(a: np.ndarray, b: np.ndarray) -> None:
        draws["body"].line([tuple(a), tuple(b)], fill=255, width=max(2, round(thick)))
        for end in (a, b):
            disc("body", end, thick / 2)

    def disc(part: str, at: np.ndarray, radius: float) -> None:
        draws[part].ellipse([*(at - radius), *(at + radius)], fill=255)

    for chain in ((5, 7, 9), (6, 8, 10), (11, 13, 15), (12, 14, 16)):
        for a, b in zip(chain, chain[1:], strict=False):
            limb(fine[a], fine[b])
    draws["body"].polygon([tuple(fine[i]) for i in (5, 6, 12, 11)], fill=255)
    for a, b in ((5, 6), (11, 12), (5, 11), (6, 12)):
        limb(fine[a], fine[b])
    head = (fine[3] + fine[4]) / 2
    limb((fine[5] + fine[6]) / 2, head)
    disc("skin", head, _HEAD * scale * zoom)
    for wrist in (9, 10):
        disc("skin", fine[wrist], 0.6 * thick)
    for feature, radius in ((0, 0.13), (1, 0.15), (2, 0.15)):
        disc("face", fine[feature], radius * _HEAD * scale * zoom)
    return {name: np.asarray(image.reduce(zoom)) for name, image in images.items()}
