"""CLEVR-like scenes and questions, made on the fly: the data set of nanoR1V is this file.

A scene is a dict in CLEVR's scene-graph layout. `sample_scene` makes one from a seed, `draw_scene` renders it
(a small numpy ray caster makes one sprite per object look, Pillow pastes the sprites), `ask` poses a question
with its program and answer, and `describe_scene` / `full_description` put the scene in words.

Splits   "clevr"       colours of CLEVR-CoGenT condition A (cubes and cylinders share no colour)
         "cogent_b"    condition B: the colours of cubes and cylinders are swapped
         "superclevr"  out of distribution, after Super-CLEVR: vehicles, other colours, grounds and sizes
Layouts  "free"        CLEVR's ground plane seen in perspective, 480x320, objects may hide each other in part
         "grid"        4x4 screen cells of at most one object, 112x112: a cell is one 28-pixel visual token

    scene = sample_scene(7, split="clevr", layout="grid")
    draw_scene(scene).save("scene.png")
    ask(scene, seed=0)          # {"question": "How many items are there in the image?", "answer": "5", ...}

`python -m tasks.scenes out.png` draws a contact sheet of all splits and layouts.
"""

import itertools
import math
import random
import sys
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

# -----------------------------------------------------------------------------
# looks: colours, shapes, models
# -----------------------------------------------------------------------------

SHAPES = ("cube", "sphere", "cylinder")
SIZES = ("large", "small")
MATERIALS = ("rubber", "metal")

# fmt: off
# CLEVR's published palette (sRGB numbers used as linear albedo, as its Blender scene does)
COLORS = {
    "gray":   (87, 87, 87),
    "red":    (173, 35, 35),
    "blue":   (42, 75, 215),
    "green":  (29, 105, 20),
    "brown":  (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan":   (41, 208, 208),
    "yellow": (255, 238, 51),
}
OOD_COLORS = {
    "red":    COLORS["red"],
    "blue":   COLORS["blue"],
    "yellow": COLORS["yellow"],
    "orange": (255, 105, 8),
    "pink":   (255, 90, 150),
    "white":  (235, 235, 235),
    "lime":   (120, 225, 30),
    "teal":   (0, 90, 85),
}
# fmt: on

# CLEVR-CoGenT: two disjoint sets of colours for cubes and cylinders, swapped in condition B; spheres have all
COGENT_ONE = ["gray", "blue", "brown", "yellow"]
COGENT_TWO = ["red", "green", "purple", "cyan"]
COGENT = {
    "clevr": {"cube": COGENT_ONE, "sphere": list(COLORS), "cylinder": COGENT_TWO},
    "cogent_b": {"cube": COGENT_TWO, "sphere": list(COLORS), "cylinder": COGENT_ONE},
}


class Part(NamedTuple):
    """A piece of a model: x forward, z up, in units of the object's radius."""

    kind: str  # "box", "ball", "drum" (axis along z) or "wheel" (a drum with its axis along y)
    centre: tuple
    half: tuple  # half sizes along x, y, z
    paint: str  # "body" has the object's colour and material, the others are in PAINT


def wheels(xs: tuple, y: float, radius: float, ground: float) -> list[Part]:
    """Pairs of wheels at these x, one on each side, standing at height `ground`."""
    parts = []
    for x in xs:
        for side in (-1, 1):
            parts.append(Part("wheel", (x, side * y, ground + radius), (radius, 0.1, radius), "tyre"))
    return parts


# fmt: off
MODELS = {
    "cube":     [Part("box",  (0, 0, 0), (1, 1, 1), "body")],
    "sphere":   [Part("ball", (0, 0, 0), (1, 1, 1), "body")],
    "cylinder": [Part("drum", (0, 0, 0), (1, 1, 1), "body")],
    "car": [
        Part("box", (0,     0, -0.22), (1.4,  0.62, 0.28), "body"),
        Part("box", (-0.15, 0, 0.25),  (0.72, 0.54, 0.24), "glass"),
        Part("box", (-0.15, 0, 0.5),   (0.66, 0.55, 0.06), "body"),
        *wheels((-0.85, 0.85), 0.6, 0.32, -0.75),
    ],
    "bus": [
        Part("box", (0, 0, -0.15), (1.5,  0.6,  0.5), "body"),
        Part("box", (0, 0, 0.55),  (1.46, 0.57, 0.2), "glass"),
        Part("box", (0, 0, 0.82),  (1.5,  0.6,  0.1), "body"),
        *wheels((-0.95, 0.95), 0.58, 0.3, -0.9),
    ],
    "truck": [
        Part("box", (-0.4, 0, 0.15), (1.05, 0.64, 0.72), "body"),
        Part("box", (1,    0, -0.3), (0.4,  0.58, 0.34), "body"),
        Part("box", (1.0,  0, 0.22), (0.3,  0.54, 0.2),  "glass"),
        *wheels((-1.05, -0.3, 1.0), 0.6, 0.32, -0.9),
    ],
    "motorbike": [
        Part("wheel", (-0.8, 0, -0.3),  (0.5,  0.13, 0.5),  "tyre"),
        Part("wheel", (0.8,  0, -0.3),  (0.5,  0.13, 0.5),  "tyre"),
        Part("ball",  (0.2,  0, 0.2),   (0.55, 0.26, 0.3),  "body"),
        Part("box",   (-0.5, 0, 0.22),  (0.5,  0.2,  0.12), "body"),
        Part("box",   (0,    0, -0.25), (0.42, 0.18, 0.25), "chrome"),
        Part("box",   (0.66, 0, 0.2),   (0.08, 0.1,  0.5),  "chrome"),
        Part("box",   (0.58, 0, 0.68),  (0.07, 0.5,  0.06), "tyre"),
    ],
    "airplane": [
        Part("ball", (0,     0, 0),     (1.55, 0.32, 0.34), "body"),
        Part("box",  (0.1,   0, -0.05), (0.32, 1.5,  0.05), "body"),
        Part("box",  (-1.3,  0, 0.1),   (0.17, 0.55, 0.04), "body"),
        Part("box",  (-1.32, 0, 0.4),   (0.2,  0.05, 0.38), "body"),
        Part("ball", (1.0,   0, 0.16),  (0.28, 0.22, 0.2),  "glass"),
        *wheels((0.3,), 0.35, 0.18, -0.6),
    ],
}
PAINT = {  # linear RGB
    "tyre":   (0.03, 0.03, 0.03),
    "glass":  (0.16, 0.24, 0.30),
    "chrome": (0.45, 0.45, 0.45),
}
# fmt: on
VEHICLES = tuple(shape for shape in MODELS if shape not in SHAPES)


def lowest_point(parts: list[Part]) -> float:
    return min(part.centre[2] - part.half[2] for part in parts)


# height of the ground that a model stands on
GROUND = {shape: lowest_point(parts) for shape, parts in MODELS.items()}
# radius of the footprint
REACH = {"sphere": 1.0, "cylinder": 1.0, "cube": 1.3} | dict.fromkeys(VEHICLES, 1.4)
# degrees after which it looks the same again
TURN = {"sphere": 1, "cylinder": 1, "cube": 90} | dict.fromkeys(VEHICLES, 360)

# -----------------------------------------------------------------------------
# sizes, camera, light
# -----------------------------------------------------------------------------

RADIUS = {"large": 0.7, "small": 0.35}  # CLEVR's half sizes, in world units
GRID_RADIUS = {"large": 0.7, "small": 0.42}  # less small, so that shape and colour survive 28-pixel cells
GRID_SHRINK = {"cube": 0.8, "cylinder": 0.84}  # look bigger than a ball: fit them to the cell
CELLS = 4  # in a row and in a column of the grid

# Camera, from CLEVR's base scene (fits its published pixel_coords); it looks at the origin
CAM_DIST = 9.92
CAM_HEIGHT = 5.34
FOCAL = 35 / 32  # focal length in image widths: 35 mm lens, 32 mm sensor
PITCH = math.atan2(CAM_HEIGHT, CAM_DIST)
GRID_ELEVATION = 30  # degrees: the grid is seen by a far camera, without perspective

# Ground directions as the camera sees them (CLEVR's numbers)
RIGHT = (0.65631, 0.75449)
BEHIND = (-0.75449, 0.65631)
DIRECTIONS = {
    "right": [*RIGHT, 0.0],
    "behind": [*BEHIND, 0.0],
    "left": [-RIGHT[0], -RIGHT[1], 0.0],
    "front": [-BEHIND[0], -BEHIND[1], 0.0],
    "above": [0.0, 0.0, 1.0],
    "below": [0.0, 0.0, -1.0],
}

# CLEVR's generator options, in world units
MIN_DIST = 0.25  # between the footprints of two objects
MARGIN = 0.4  # between two objects along each of the directions
EPS = 0.2  # less than this is neither left nor right, neither in front nor behind

ASK_MARGIN = {"free": MARGIN, "grid": 0.8}  # relations are asked only if clearer than this
MIN_VISIBLE = 0.5  # every object shows at least this part of its bounding disc

# Direction to each lamp (right, away from the camera, up) and its strength. Assumed, by eye, after CLEVR's
LAMPS = (
    ((0.62, -0.50, 0.62), 0.34),
    ((-0.70, -0.35, 0.65), 0.12),
    ((0.25, 0.50, 0.83), 0.22),
)
BACKGROUNDS = {
    "clevr": ("gray0", "gray1", "gray2", "gray3"),
    "superclevr": ("sand", "meadow", "dusk", "asphalt"),
}
TINTS = {
    "sand": (0.275, 0.245, 0.205),
    "meadow": (0.215, 0.25, 0.205),
    "dusk": (0.215, 0.23, 0.27),
    "asphalt": (0.17, 0.17, 0.178),
}

# -----------------------------------------------------------------------------
# sampling
# -----------------------------------------------------------------------------

# x, y, z   CLEVR's world: the ground is z = 0
# u, v      the same ground as the camera sees it: u to the right, v away from the camera


def sample_scene(
    seed: int,
    split: str = "clevr",
    layout: str = "free",
    min_objects: int = 3,
    max_objects: int = 10,
    size: tuple[int, int] | None = None,
) -> dict:
    """A scene graph in CLEVR's layout; the same arguments always give the same scene.

    `size` is (width, height) in pixels. ValueError if so many objects have no room.
    """
    seed, low, high = int(seed), int(min_objects), int(max_objects)
    if split == "superclevr":
        default_sizes = {"free": (640, 480), "grid": (140, 112)}
        backgrounds = BACKGROUNDS["superclevr"]
    else:
        default_sizes = {"free": (480, 320), "grid": (112, 112)}
        backgrounds = BACKGROUNDS["clevr"]
    default = default_sizes[layout]
    width, height = (int(side) for side in (size or default))

    rng = random.Random(f"scene {seed} {split} {layout} {low} {high} {width}x{height}")
    looks = [sample_look(rng, split) for _ in range(rng.randint(low, high))]
    place = place_grid if layout == "grid" else place_free
    objects = place(rng, looks, width, height)
    return {
        "split": split,
        "layout": layout,
        "seed": seed,
        "width": width,
        "height": height,
        "background": rng.choice(backgrounds),
        "directions": DIRECTIONS,
        "relationships": relationships(objects),
        "objects": objects,
    }


def sample_look(rng: random.Random, split: str) -> dict:
    """The attributes of an object, and how it is turned."""
    if split == "superclevr":
        shape = rng.choice(VEHICLES)
        colors = list(OOD_COLORS)
    else:
        shape = rng.choice(SHAPES)
        colors = COGENT[split][shape]
    return {
        "color": rng.choice(colors),
        "shape": shape,
        "size": rng.choice(SIZES),
        "material": rng.choice(MATERIALS),
        "rotation": rng.uniform(0, 360),
    }


def to_camera_axes(x: float, y: float) -> tuple[float, float]:
    """Ground coordinates x, y -> u, v."""
    return x * RIGHT[0] + y * RIGHT[1], x * BEHIND[0] + y * BEHIND[1]


def focal_length(width: int, height: int) -> float:
    """In pixels. Limited by the height too: a flat picture must not cut off the front row."""
    return FOCAL * min(width, 1.5 * height)


def project(u: float, v: float, z: float, width: int, height: int) -> list:
    """A point above the ground -> its pixel x, y and its depth, the distance along the camera's axis."""
    focal = focal_length(width, height)
    cos, sin = math.cos(PITCH), math.sin(PITCH)
    depth = (CAM_DIST + v) * cos + (CAM_HEIGHT - z) * sin
    up = (CAM_DIST + v) * sin + (z - CAM_HEIGHT) * cos
    return [round(width / 2 + focal * u / depth), round(height / 2 - focal * up / depth), depth]


def place_free(rng: random.Random, looks: list[dict], width: int, height: int) -> list[dict]:
    """Rejection sampling as in CLEVR's generator: start over when an object finds no place or is hidden."""
    for attempt in range(1, 1000):
        if attempt % 20 == 0:  # too crowded: keep the number, make one of the large objects small
            large = [look for look in looks if look["size"] == "large"]
            if large:
                rng.choice(large)["size"] = "small"
        objects = try_to_place(rng, looks, width, height)
        if objects is not None and all_visible(objects, focal_length(width, height)):
            return objects
    raise ValueError(f"no room for {len(looks)} objects")


def try_to_place(rng: random.Random, looks: list[dict], width: int, height: int) -> list[dict] | None:
    """One object after the other on the ground; None if one of them finds no place in 60 tries."""
    objects = []
    placed = []  # (u, v, footprint)
    for look in looks:
        radius = RADIUS[look["size"]]
        footprint = radius * REACH[look["shape"]]
        for _ in range(60):
            x, y = rng.uniform(-3, 3), rng.uniform(-3, 3)
            u, v = to_camera_axes(x, y)
            if has_room(u, v, footprint, placed):
                break
        else:
            return None
        placed.append((u, v, footprint))
        z = -GROUND[look["shape"]] * radius
        pixel = project(u, v, z, width, height)
        objects.append(look | {"3d_coords": [x, y, z], "pixel_coords": pixel})
    return objects


def has_room(u: float, v: float, footprint: float, placed: list[tuple]) -> bool:
    """Whether an object here keeps its distance from all that are placed, given as (u, v, footprint)."""
    for other_u, other_v, other_footprint in placed:
        if abs(u - other_u) <= MARGIN or abs(v - other_v) <= MARGIN:
            return False  # it would be unclear which of the two is further left, or further back
        if math.hypot(u - other_u, v - other_v) <= footprint + other_footprint + MIN_DIST:
            return False
    return True


def spiral(points: int) -> list[tuple[float, float]]:
    """Points spread evenly over the unit disc, like the seeds of a sunflower: a golden angle apart."""
    disc = []
    for k in range(points):
        radius = math.sqrt((k + 0.5) / points)
        angle = 2.39996 * k
        disc.append((radius * math.cos(angle), radius * math.sin(angle)))
    return disc


DISC = spiral(40)


def all_visible(objects: list[dict], focal: float) -> bool:
    """Whether enough of each object shows. Objects are taken for discs of 40 points; no pixel is counted."""
    discs = []
    for obj in objects:
        x, y, depth = obj["pixel_coords"]
        radius = 1.1 * focal * RADIUS[obj["size"]] * REACH[obj["shape"]] / depth
        discs.append((depth, x, y, radius))
    discs.sort()
    for i, (_, x, y, radius) in enumerate(discs):
        nearer = []  # the discs that may cover this one
        for _, other_x, other_y, other_radius in discs[:i]:
            if math.hypot(other_x - x, other_y - y) < other_radius + radius:
                nearer.append((other_x, other_y, other_radius))
        radius *= 0.75  # the corners of the disc are mostly empty: look at its core
        seen = 0
        for point_x, point_y in DISC:
            seen += not is_covered(x + radius * point_x, y + radius * point_y, nearer)
        if seen < MIN_VISIBLE * len(DISC):
            return False
    return True


def is_covered(x: float, y: float, discs: list[tuple]) -> bool:
    """Whether a pixel lies in one of the discs (x, y, radius)."""
    return any((x - disc_x) ** 2 + (y - disc_y) ** 2 <= radius * radius for disc_x, disc_y, radius in discs)


def grid_scale(height: int) -> float:
    """Pixels per world unit in a grid: a large ball is 0.76 cells high."""
    return 0.76 * height / CELLS / (2 * GRID_RADIUS["large"])


def pixel_in_cell(rng: random.Random, cell: int, side: int) -> int:
    """A random place near the middle of one of the cells along a side of the picture."""
    place = cell + 0.5 + rng.uniform(-0.27, 0.27)
    place = min(max(place, 0.4), CELLS - 0.4)  # the edge of the picture cuts nothing off
    return round(place * side / CELLS)


def place_grid(rng: random.Random, looks: list[dict], width: int, height: int) -> list[dict]:
    """One object in each of some random cells; ground coordinates follow from the pixel (no perspective)."""
    scale = grid_scale(height)
    elevation = math.radians(GRID_ELEVATION)
    cells = sorted(rng.sample(range(CELLS * CELLS), len(looks)))
    objects = []
    for look, cell in zip(looks, cells, strict=True):
        pixel_x = pixel_in_cell(rng, cell % CELLS, width)
        pixel_y = pixel_in_cell(rng, cell // CELLS, height)
        u = (pixel_x - width / 2) / scale
        v = (height / 2 - pixel_y) / scale / math.sin(elevation)
        depth = math.hypot(CAM_DIST, CAM_HEIGHT) + v * math.cos(elevation)
        x = u * RIGHT[0] + v * BEHIND[0]
        y = u * RIGHT[1] + v * BEHIND[1]
        z = -GROUND[look["shape"]] * GRID_RADIUS[look["size"]]
        objects.append(look | {"3d_coords": [x, y, z], "pixel_coords": [pixel_x, pixel_y, depth]})
    rng.shuffle(objects)  # or else the order of the list would tell where things are
    return objects


def relationships(objects: list[dict]) -> dict[str, list[list[int]]]:
    """relationships["left"][i] = the objects left of object i, by more than EPS (as in CLEVR)."""
    places = [to_camera_axes(*obj["3d_coords"][:2]) for obj in objects]
    related = {"left": [], "right": [], "front": [], "behind": []}
    for u, v in places:
        related["left"].append([j for j, other in enumerate(places) if other[0] < u - EPS])
        related["right"].append([j for j, other in enumerate(places) if other[0] > u + EPS])
        related["front"].append([j for j, other in enumerate(places) if other[1] < v - EPS])
        related["behind"].append([j for j, other in enumerate(places) if other[1] > v + EPS])
    return related


# -----------------------------------------------------------------------------
# pictures: a background, then all shadows, then the objects from the back to the front
# -----------------------------------------------------------------------------


def draw_scene(scene: dict) -> Image.Image:
    """RGB picture, width x height."""
    image = background(scene["background"], scene["width"], scene["height"]).copy()
    stamps = []
    for obj in sorted(scene["objects"], key=lambda obj: -obj["pixel_coords"][2]):
        x, y, _ = obj["pixel_coords"]
        stamps.append((x, y, *object_sprite(obj, scene)))
    for x, y, _, _, shadow, (left, top) in stamps:
        image.paste((14, 14, 16), (x + left, y + top), shadow)
    for x, y, body, (left, top), _, _ in stamps:
        image.paste(body, (x + left, y + top), body)
    return image


def object_sprite(obj: dict, scene: dict) -> tuple:
    """The sprite of an object at its place. Angles are rounded, so that few sprites serve many objects."""
    shape = obj["shape"]
    _, pixel_y, depth = obj["pixel_coords"]
    if scene["layout"] == "grid":
        row = int(pixel_y * CELLS / scene["height"])
        nearness = 0.85 + 0.05 * row  # the upper rows are a bit further away
        scale = grid_scale(scene["height"]) * GRID_RADIUS[obj["size"]] * nearness
        scale *= GRID_SHRINK.get(shape, 1)
        elevation = GRID_ELEVATION
        aside = 0.0
        step = 30
    else:
        x, y, z = obj["3d_coords"]
        u, v = to_camera_axes(x, y)
        scale = focal_length(scene["width"], scene["height"]) * RADIUS[obj["size"]] / depth
        elevation = round(math.degrees(math.atan2(CAM_HEIGHT - z, CAM_DIST + v)) / 5) * 5
        aside = math.degrees(math.atan2(u, CAM_DIST + v))  # seen from the side, it shows another face
        step = 15
    if shape == "cube":
        step = 10
    angle = (obj["rotation"] - 49 + aside) % TURN[shape]  # 49 degrees: from CLEVR's axes to the camera's
    rotation = round(angle / step) * step % TURN[shape]
    return sprite(shape, obj["color"], obj["material"], rotation, elevation, round(scale * 4))


@lru_cache(maxsize=64)
def background(name: str, width: int, height: int) -> Image.Image:
    """The empty studio: a dark far end, brighter ground in front on the right, a bluish glow, grain."""
    rng = np.random.default_rng(sum(name.encode()))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = x / width, y / height
    edge = 0.33 + rng.uniform(-0.04, 0.04)
    glow = 0.38 + rng.uniform(-0.05, 0.05)
    tilt = rng.uniform(-0.1, 0.1)
    ramp = 1 / (1 + np.exp(-(y - edge - 0.12 * (x - 0.5) ** 2) / 0.045))  # far end -> ground, softly
    near = np.clip(y - edge, 0, 1)
    grey = 103 + 18 * ramp + near * (16 + 56 * np.clip(x + tilt, 0, 0.75))
    grey += 10 * np.exp(-((x - 0.5) ** 2 + (y - 0.42) ** 2) * 8)
    grey -= 14 * ramp * np.clip(x - 0.8, 0, 1) * np.exp(-(((y - 0.5) / 0.2) ** 2)) * 5
    left = 22 * np.exp(-((x / 0.16) ** 2 + ((y - glow) / 0.09) ** 2))
    rgb = np.stack([grey + left - 0.5, grey + left, grey + 1.15 * left - 6 * near], -1)
    if name in TINTS:  # other grounds: tinted, blotchy, with a clearer horizon
        blotches = Image.fromarray(rng.integers(0, 255, (9, 12), dtype=np.uint8))
        blotches = np.asarray(blotches.resize((width, height), Image.BICUBIC))
        light = (rgb / 255) ** 2.2 / 0.25 * (0.92 + 0.16 * blotches[..., None] / 255)
        rgb = 255 * np.clip(light * np.array(TINTS[name]), 0, 1) ** (1 / 2.2)
    rgb = rgb + rng.normal(0, 1.6, (height, width, 1))
    return Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))


# -----------------------------------------------------------------------------
# sprites: every object look is ray-cast once
# -----------------------------------------------------------------------------

# The camera's frame: x to the right, y away from the camera, z up; origin in the object's centre, lengths in
# its radii. The model's frame is turned against it by `rotation` degrees about z.
#
# o, d, t   n rays o + t d: o and d are [n,3], or [3] if all rays share it; t is [n]. d need not have length 1
# p         points on the surface of a part [n,3], in the model's frame

CANVAS = 1.8  # half size of the canvas of a body
SHADOW = (4.0, 3.0)  # half width and half height of the canvas of a shadow


@lru_cache(maxsize=4096)
def sprite(shape: str, color: str, material: str, rotation: int, elevation: int, quarters: int) -> tuple:
    """(RGBA body, its offset, L shadow, its offset). `quarters`: the object's radius in 1/4 pixels."""
    scale = quarters / 4
    # ray-cast at the next power of sqrt(2), then shrunk
    res = math.ceil(2 ** (math.ceil(2 * math.log2(max(scale, 4))) / 2))
    body, shadow = paint(shape, color, material, rotation, elevation, res)
    return *fit(body, CANVAS, CANVAS, scale), *fit(shadow, *SHADOW, scale)


def fit(image: Image.Image, half_width: float, half_height: float, scale: float) -> tuple:
    """A canvas at `scale` pixels a radius, without its empty border; and its corner, seen from the centre."""
    width = max(1, round(2 * half_width * scale))
    height = max(1, round(2 * half_height * scale))
    resample = Image.BOX if width < image.width / 2 else Image.HAMMING
    image = image.resize((width, height), resample)
    opaque = image.getchannel("A") if image.mode == "RGBA" else image
    box = opaque.getbbox() or (0, 0, 1, 1)
    return image.crop(box), (box[0] - round(width / 2), box[1] - round(height / 2))


@lru_cache(maxsize=4096)
def paint(shape: str, color: str, material: str, rotation: int, elevation: int, res: int) -> tuple:
    """RGBA body and L shadow of a model of radius `res` pixels."""
    cover, shade, fixed, shadow = render(shape, material, rotation, elevation, res)
    albedo = np.array((COLORS | OOD_COLORS)[color], np.float32) / 255
    light = (shade[..., None] * albedo + fixed) / np.maximum(cover, 1e-3)[..., None]
    rgb = np.clip(light, 0, 1) ** (1 / 2.2)  # linear light -> display
    rgba = np.concatenate([rgb, cover[..., None]], -1) * 255 + 0.5
    return Image.fromarray(rgba.astype(np.uint8)), shadow


@lru_cache(maxsize=2048)
def render(shape: str, material: str, rotation: int, elevation: int, res: int) -> tuple:
    """Ray-cast a model of radius `res` pixels -> cover [n,n], shade [n,n], fixed [n,n,3], shadow picture.

    The light of a pixel is shade * colour + fixed: the colour is left out so that one rendering serves all.
    """
    n = round(2 * CANVAS * res)
    samples = 3 if res < 24 else 2  # of a pixel, along each axis
    d = rays(elevation, n * samples, n * samples, CANVAS, CANVAS)
    which, p = first_hits(MODELS[shape], rotation, elevation, d)
    shade = np.zeros(len(d), np.float32)
    fixed = np.zeros((len(d), 3), np.float32)
    for k, part in enumerate(MODELS[shape]):
        hit = np.flatnonzero(which == k)
        if len(hit) == 0:
            continue
        light = reflected_light(part, p[hit], d[hit], rotation, material, GROUND[shape])
        if part.paint == "body":
            shade[hit] = light
        else:
            fixed[hit] = light[:, None] * np.array(PAINT[part.paint], np.float32)
    cover = (which >= 0).astype(np.float32)
    shadow = shadow_picture(shape, rotation, elevation, res)
    cover, shade, fixed = (pixel_means(values, n, samples) for values in (cover, shade, fixed))
    return cover, shade, fixed, shadow


def pixel_means(values: np.ndarray, n: int, samples: int) -> np.ndarray:
    """Means of samples x samples values, one for each of n x n pixels: [N] -> [n,n], [N,3] -> [n,n,3]."""
    means = values.reshape(n, samples, n, samples, -1).mean((1, 3))
    return means[..., 0] if values.ndim == 1 else means


def camera(elevation: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Its place, 16 radii away (a mild perspective), and its directions right and up: [3] each."""
    angle = math.radians(elevation)
    place = np.array([0, -math.cos(angle), math.sin(angle)], np.float32) * 16
    right = np.array([1, 0, 0], np.float32)
    up = np.array([0, math.sin(angle), math.cos(angle)], np.float32)
    return place, right, up


def rays(elevation: int, columns: int, rows: int, half_width: float, half_height: float) -> np.ndarray:
    """Directions [rows * columns, 3] from the camera to the points of a canvas that stands in the origin."""
    place, right, up = camera(elevation)
    x = ((np.arange(columns) + 0.5) / columns * 2 - 1) * half_width
    y = (1 - (np.arange(rows) + 0.5) / rows * 2) * half_height
    d = x[None, :, None] * right + y[:, None, None] * up - place
    return d.reshape(-1, 3).astype(np.float32)


def turn(vectors: np.ndarray, degrees: float) -> np.ndarray:
    """Vectors [n,3] or [3] turned about the z axis."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return vectors @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]], np.float32)


def first_hits(parts: list[Part], rotation: int, elevation: int, d: np.ndarray) -> tuple:
    """Which part each ray of the camera meets first (-1: none) [n], and where in the model's frame [n,3]."""
    place, right, up = camera(elevation)
    canvas_x, canvas_y = d @ right, (d + place) @ up
    o_model, d_model = turn(place, -rotation), turn(d, -rotation)
    nearest = np.full(len(d), np.inf, np.float32)  # t
    which = np.full(len(d), -1)
    for k, part in enumerate(parts):
        # only the rays that may hit: most parts are small
        centre = turn(np.array(part.centre, np.float32), rotation)
        reach = 1.15 * math.hypot(*part.half)
        near_x = abs(canvas_x - centre @ right) < reach
        near_y = abs(canvas_y - centre @ up) < reach
        near = np.flatnonzero(near_x & near_y)
        enter, leave = interval(part, o_model, d_model[near])
        closer = (enter < leave) & (enter < nearest[near])
        nearest[near[closer]] = enter[closer]
        which[near[closer]] = k
    p = np.zeros_like(d)
    hit = np.flatnonzero(which >= 0)
    p[hit] = o_model + nearest[hit, None] * d_model[hit]
    return which, p


def unit_axes(part: Part, vectors: np.ndarray) -> np.ndarray:
    """Vectors from the part's centre, in coordinates in which the part is a unit box, ball or drum."""
    vectors = vectors / np.array(part.half, np.float32)
    return vectors[..., [0, 2, 1]] if part.kind == "wheel" else vectors


def interval(part: Part, o: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where rays are inside a part: t at the entry [n] and at the exit [n]; of a miss, exit < entry.

    box     between the planes -1 and 1 of all three axes
    ball    in the unit sphere
    drum    in the unit circle of x and y (an endless tube), between the planes -1 and 1 of z; so a wheel
    """
    o = unit_axes(part, o - np.array(part.centre, np.float32))
    d = unit_axes(part, d)
    if part.kind == "box":
        low, high = between_planes(o, d)
        low_x, low_y, low_z = low.T  # numpy's max over an axis of three is many times slower
        high_x, high_y, high_z = high.T
        enter = np.maximum(np.maximum(low_x, low_y), low_z)
        leave = np.minimum(np.minimum(high_x, high_y), high_z)
        return enter, leave
    if part.kind == "ball":
        return in_sphere(o, d)
    enter, leave = in_sphere(o[..., :2], d[..., :2])
    low, high = between_planes(o[..., 2], d[..., 2])
    return np.maximum(enter, low), np.minimum(leave, high)


def between_planes(o: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The t with -1 <= o + t d <= 1, for each coordinate by itself: from one plane to the other."""
    with np.errstate(divide="ignore", invalid="ignore"):  # parallel to the planes
        t_minus, t_plus = (-1 - o) / d, (1 - o) / d
    return np.minimum(t_minus, t_plus), np.maximum(t_minus, t_plus)


def in_sphere(o: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The t with |o + t d| <= 1, in three dimensions or in two.

    |o + t d|^2 = a t^2 + 2 b t + c   with  a = d.d, b = o.d, c = o.o
    so it is 1 at  t = (-b +- sqrt(b^2 - a (c - 1))) / a;  the root of a negative number, nan, is a miss
    """
    a = np.einsum("...i,...i", d, d)
    b = np.einsum("...i,...i", o, d)
    c = np.einsum("...i,...i", o, o)
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(b * b - a * (c - 1))
        enter, leave = (-b - root) / a, (-b + root) / a
    return np.nan_to_num(enter, nan=np.inf), np.nan_to_num(leave, nan=-np.inf)


def normals(part: Part, p: np.ndarray) -> np.ndarray:
    """Outward unit normals [n,3] at points. They point away from a slightly smaller core: rounded edges."""
    axes = [0, 2, 1] if part.kind == "wheel" else [0, 1, 2]
    half = np.array(part.half, np.float32)[axes]
    core = np.maximum(1 - 0.13 / half, 0.5)
    p = unit_axes(part, p - np.array(part.centre, np.float32))
    if part.kind == "ball":
        n = p / half  # the gradient of |p|^2
    else:
        n = (p - np.clip(p, -core, core)) * half  # from the nearest point of the core
        if part.kind != "box":  # likewise in the circle of x and y
            rho = np.maximum(np.hypot(p[:, :1], p[:, 1:2]), 1e-6)
            n[:, :2] = p[:, :2] * half[:2] * (1 - np.minimum(1, core[0] / rho))
    return n[:, axes] / np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-6)


# -----------------------------------------------------------------------------
# light and shadow
# -----------------------------------------------------------------------------


def reflected_light(
    part: Part, p: np.ndarray, d: np.ndarray, rotation: int, material: str, ground: float
) -> np.ndarray:
    """Light [n], a factor on the surface colour, of points that are seen along d."""
    normal = turn(normals(part, p), rotation)
    lambert = 0.07 + 0.05 * normal[:, 2]  # a little light from everywhere, more from above
    for direction, power in LAMPS:
        to_lamp = np.array(direction, np.float32) / np.linalg.norm(direction)
        facing_lamp = (normal @ to_lamp + 0.15) / 1.15  # wide lamps reach round corners
        lambert = lambert + power * np.clip(facing_lamp, 0, 1)
    contact = 0.6 + 0.4 * np.clip((p[:, 2] - ground) / 0.5, 0, 1)  # darker just above the ground
    if part.paint == "tyre" or (material == "rubber" and part.paint == "body"):
        return lambert * contact
    d = d / np.linalg.norm(d, axis=1, keepdims=True)
    along_normal = (d * normal).sum(1, keepdims=True)
    reflected = d - 2 * along_normal * normal
    return (1.15 * mirrored_studio(reflected) + 0.16 * lambert) * contact


def mirrored_studio(directions: np.ndarray) -> np.ndarray:
    """What metal sees [n] in directions [n,3]: bright ground, dark ceiling, lamps (these exceed 1)."""
    x, y, z = directions.T
    ground = 0.27 + 0.10 * x - 0.12 * y  # brighter to the front right, like the background
    ground = ground * np.clip(1.45 + 1.3 * z, 0.25, 1)  # straight down it sees its own shadow
    ceiling = 0.03 + 0.13 * np.exp(-((z / 0.25) ** 2))
    seen = ceiling + (ground - ceiling) / (1 + np.exp((z + 0.03) / 0.035))
    for direction, power in LAMPS:
        cos = directions @ (np.array(direction, np.float32) / np.linalg.norm(direction))
        lamp = 30 * power * np.clip((cos - 0.982) / 0.008, 0, 1)
        halo = 0.9 * power * np.clip(cos, 0, 1) ** 24
        seen = seen + lamp + halo
    return np.minimum(seen, 4)  # or else tiny highlights on edges would flicker


def shadow_picture(shape: str, rotation: int, elevation: int, res: int) -> Image.Image:
    """The shadow on the ground as an L picture: 255 is darkest."""
    # shadows are soft: half the resolution or less will do
    columns, rows = (round(half * min(res, 32)) for half in SHADOW)
    dark = shadow_share(shape, rotation, elevation, rays(elevation, columns, rows, *SHADOW))
    window = np.outer(np.hanning(rows + 2)[1:-1], np.hanning(columns + 2)[1:-1])
    fade = window.clip(0, 0.2) * 5  # no hard end at the edge
    dark = 255 * np.clip(0.85 * dark.reshape(rows, columns), 0, 1) * fade
    picture = Image.fromarray(dark.astype(np.uint8))
    return picture.resize([round(2 * half * res) for half in SHADOW], Image.BICUBIC)


def shadow_share(shape: str, rotation: int, elevation: int, d: np.ndarray) -> np.ndarray:
    """Share [n] of the lamps' light that the object takes from where rays d of the camera meet the ground."""
    place, _, _ = camera(elevation)
    spots = place + d * ((GROUND[shape] - place[2]) / d[:, 2])[:, None]
    spots = turn(spots, -rotation)
    dark = np.zeros(len(d), np.float32)
    rng = np.random.default_rng(0)
    for direction, power in LAMPS:
        for jitter in rng.uniform(-0.28, 0.28, (16, 3)):  # 16 points of each wide lamp: soft edges
            to_lamp = np.array(direction) / np.linalg.norm(direction) + jitter
            to_lamp = turn(to_lamp.astype(np.float32), -rotation)
            blocked = np.zeros(len(d), bool)
            for part in MODELS[shape]:
                enter, leave = interval(part, spots, to_lamp)
                blocked |= (enter < leave) & (leave > 0)
            dark += blocked * (power / 16)
    return dark


# -----------------------------------------------------------------------------
# words
# -----------------------------------------------------------------------------


def reading_order(scene: dict) -> list[dict]:
    """Objects row by row, left to right in a row. Rows: a grid's cells; if free, eighths of the height."""
    rows = CELLS if scene["layout"] == "grid" else 8

    def row_and_x(obj: dict) -> tuple:
        x, y, _ = obj["pixel_coords"]
        return int(y * rows / scene["height"]), x

    return sorted(scene["objects"], key=row_and_x)


def described_objects(scene: dict, miss: float = 0.0, seed: int | None = None) -> list[dict]:
    """What a fallible teacher sees: small objects are overlooked with probability `miss`, always the same."""
    seed = scene["seed"] if seed is None else int(seed)
    rng = random.Random(f"miss {scene['split']} {scene['layout']} {seed}")
    in_order = reading_order(scene)
    kept = []
    for obj in in_order:
        overlooked = obj["size"] == "small" and rng.random() < miss
        if not overlooked:
            kept.append(obj)
    return kept or in_order[:1]


def describe_scene(
    scene: dict, miss: float = 0.0, seed: int | None = None, words: tuple[str, ...] = ("color", "shape")
) -> str:
    """A chain of thought in as few words as possible: "red cube, blue sphere, ..."."""
    phrases = []
    for obj in described_objects(scene, miss, seed):
        phrases.append(" ".join(obj[word] for word in words))
    return ", ".join(phrases)


def full_description(scene: dict) -> str:
    """The caption that R1-V distils from: every object with its attributes, rotation and coordinates."""
    lines = ["Scene Description:"]
    for obj in reading_order(scene):
        x, y, z = obj["3d_coords"]
        pixel_x, pixel_y, depth = obj["pixel_coords"]
        lines.append(
            f"A {obj['size']} {obj['color']} {obj['material']} {obj['shape']} "
            f"rotated {obj['rotation']:.1f}° located at 3D coordinates ({x:.2f}, {y:.2f}, {z:.2f}) "
            f"and pixel coordinates ({pixel_x}, {pixel_y}, {depth:.2f})"
        )
    return "\n".join(lines)


# -----------------------------------------------------------------------------
# programs: steps as in CLEVR, {"type", "inputs" (earlier steps), "value_inputs"}
# -----------------------------------------------------------------------------

ATTRIBUTES = ("size", "color", "material", "shape")  # in the order in which English puts them
RELATIONS = {"left": "left of", "right": "right of", "front": "in front of", "behind": "behind"}


def execute(program: list[dict], scene: dict) -> int | str:
    """The answer of a program on a scene graph. ValueError if `unique` finds no object or several."""
    objects = scene["objects"]
    results = []  # of each step: a list of objects (their indices), one object, a number, a value, yes or no
    for step in program:
        kind, values = step["type"], step["value_inputs"]
        inputs = [results[i] for i in step["inputs"]]
        function, _, attribute = kind.partition("_")
        if kind == "scene":
            result = list(range(len(objects)))
        elif function == "filter":
            result = [i for i in inputs[0] if objects[i][attribute] == values[0]]
        elif kind == "unique":
            if len(inputs[0]) != 1:
                raise ValueError(f"{len(inputs[0])} objects are not unique")
            result = inputs[0][0]
        elif kind == "relate":
            result = scene["relationships"][values[0]][inputs[0]]
        elif function == "query":
            result = objects[inputs[0]][attribute]
        elif kind == "count":
            result = len(inputs[0])
        elif kind == "exist":
            result = yes_or_no(len(inputs[0]) > 0)
        elif kind == "greater_than":
            result = yes_or_no(inputs[0] > inputs[1])
        elif kind == "less_than":
            result = yes_or_no(inputs[0] < inputs[1])
        elif function == "equal":
            result = yes_or_no(inputs[0] == inputs[1])
        else:
            raise ValueError(f"'{kind}' is no step of a program")
        results.append(result)
    return results[-1]


def yes_or_no(truth: bool) -> str:
    return "yes" if truth else "no"


def add_step(program: list[dict], kind: str, *inputs: int, value: str | None = None) -> int:
    """Append a step; returns its index."""
    values = [] if value is None else [value]
    program.append({"type": kind, "inputs": list(inputs), "value_inputs": values})
    return len(program) - 1


def add_filters(program: list[dict], spec: dict, start: int | None = None) -> int:
    """Append the filters of spec, {attribute: value}; returns the index of the step that has the objects."""
    last = add_step(program, "scene") if start is None else start
    for attribute, value in spec.items():
        last = add_step(program, f"filter_{attribute}", last, value=value)
    return last


def add_unique(program: list[dict], spec: dict) -> int:
    """Append the search for the one object that fits spec; returns the index of the step that has it."""
    return add_step(program, "unique", add_filters(program, spec))


# -----------------------------------------------------------------------------
# questions: a program is written first, then put in words
# -----------------------------------------------------------------------------

SYNONYMS = {
    "cube": ("cube", "block"),
    "sphere": ("sphere", "ball"),
    "large": ("large", "big"),
    "small": ("small", "tiny"),
    None: ("thing", "object"),  # no shape given
    "metal": ("metal", "metallic", "shiny"),
    "rubber": ("rubber", "matte"),
}
COUNT_ALL = (
    "How many items are there in the image?",
    "How many things are there?",
    "How many objects are there?",
    "What number of objects are in the image?",
    "How many things are in the picture?",
)
COMPARISONS = ("greater_than", "less_than", "equal_integer")


def phrase(rng: random.Random, spec: dict, plural: bool = False) -> str:
    """{"color": "red", "shape": "cube"} -> "red block", with CLEVR's synonyms."""
    words = []
    for attribute in ("size", "color", "material"):
        if attribute in spec:
            value = spec[attribute]
            words.append(rng.choice(SYNONYMS.get(value, (value,))))
    shape = spec.get("shape")
    noun = rng.choice(SYNONYMS.get(shape, (shape,)))
    if plural:
        noun += "es" if noun.endswith("s") else "s"
    return " ".join([*words, noun])


def some_spec(rng: random.Random, scene: dict, present: float) -> dict:
    """1 to 3 attributes, with the values of an object of the scene (probability `present`) or random ones."""
    chosen = rng.sample(ATTRIBUTES, rng.choice((1, 1, 2, 2, 3)))
    if rng.random() < present:
        source = rng.choice(scene["objects"])
    else:
        source = sample_look(rng, scene["split"])
    return {attribute: source[attribute] for attribute in ATTRIBUTES if attribute in chosen}


def unique_spec(rng: random.Random, scene: dict, target: dict, without: str = "") -> dict | None:
    """A description that fits only `target`, of as few attributes as possible; None if there is none."""
    usable = [attribute for attribute in ATTRIBUTES if attribute != without]
    for count in range(1, len(usable) + 1):
        options = list(itertools.combinations(usable, count))
        for chosen in rng.sample(options, len(options)):
            spec = {attribute: target[attribute] for attribute in chosen}
            fitting = [obj for obj in scene["objects"] if spec.items() <= obj.items()]
            if len(fitting) == 1:
                return spec
    return None


# A writer returns (question, program), or None if this try has failed; `comparison` is one of COMPARISONS


def write_count_all(rng: random.Random, scene: dict, comparison: str) -> tuple | None:
    program = []
    add_step(program, "count", add_filters(program, {}))
    return COUNT_ALL[0], program


def write_count(rng: random.Random, scene: dict, comparison: str) -> tuple | None:
    spec = some_spec(rng, scene, 0.85)
    program = []
    add_step(program, "count", add_filters(program, spec))
    things = phrase(rng, spec, plural=True)
    question = rng.choice((f"how many {things} are there?", f"what number of {things} are there?"))
    return question, program


def write_exist(rng: random.Random, scene: dict, comparison: str) -> tuple | None:
    spec = some_spec(rng, scene, 0.5)
    program = []
    add_step(program, "exist", add_filters(program, spec))
    thing = phrase(rng, spec)
    article = "an" if thing[0] in "aeiou" else "a"
    things = phrase(rng, spec, plural=True)
    question = rng.choice((f"are there any {things}?", f"is there {article} {thing}?"))
    return question, program


def write_compare_number(rng: random.Random, scene: dict, comparison: str) -> tuple | None:
    spec = some_spec(rng, scene, 0.9)
    other_spec = some_spec(rng, scene, 0.9)
    if spec == other_spec:
        return None
    program = []
    count = add_step(program, "count", add_filters(program, spec))
    other_count = add_step(program, "count", add_filters(program, other_spec))
    add_step(program, comparison, count, other_count)
    things = phrase(rng, spec, plural=True)
    others = phrase(rng, other_spec, plural=True)
    questions = {
        "greater_than": f"are there more {things} than {others}?",
        "less_than": f"are there fewer {things} than {others}?",
        "equal_integer": f"are there an equal number of {things} and {others}?",
    }
    return questions[comparison], program


def write_compare_attribute(rng: random.Random, scene: dict, comparison: str) -> tuple | None:
    if len(scene["objects"]) < 2:
        return None
    attribute = rng.choice(ATTRIBUTES)
    target, other_target = rng.sample(scene["objects"], 2)
    spec = unique_spec(rng, scene, target, without=attribute)
    other_spec = unique_spec(rng, scene, other_target, without=attribute)
    if spec is None or other_spec is None:
        return None
    program = []
    value = add_step(program, f"query_{attribute}", add_unique(program, spec))
    other_value = add_step(program, f"query_{attribute}", add_unique(program, other_spec))
    add_step(program, f"equal_{attribute}", value, other_value)
    thing, other = phrase(rng, spec), phrase(rng, other_spec)
    questions = (
        f"do the {thing} and the {other} have the same {attribute}?",
        f"is the {attribute} of the {thing} the same as the {attribute} of the {other}?",
    )
    return rng.choice(questions), program


def write_query(rng: random.Random, scene: dict, comparison: str) -> tuple | None:
    return write_query_of(rng, scene, rng.choice(ATTRIBUTES))


def write_query_color(rng: random.Random, scene: dict, comparison: str) -> tuple | None:
    return write_query_of(rng, scene, "color")


def write_query_of(rng: random.Random, scene: dict, attribute: str) -> tuple | None:
    target = rng.choice(scene["objects"])
    spec = unique_spec(rng, scene, target, without=attribute)
    if spec is None:
        return None
    program = []
    add_step(program, f"query_{attribute}", add_unique(program, spec))
    thing = phrase(rng, spec)
    other_words = {
        "size": f"how big is the {thing}?",
        "color": f"what is the color of the {thing}?",
        "material": f"what is the {thing} made of?",
        "shape": f"what is the shape of the {thing}?",
    }
    question = rng.choice((f"what {attribute} is the {thing}?", other_words[attribute]))
    return question, program


def write_count_relation(rng: random.Random, scene: dict, comparison: str) -> tuple | None:
    target = rng.choice(scene["objects"])
    relation = rng.choice(tuple(RELATIONS))
    spec = unique_spec(rng, scene, target)
    axis = 1 if relation in ("front", "behind") else 0

    def place(obj: dict) -> float:
        return to_camera_axes(*obj["3d_coords"][:2])[axis]

    gaps = [abs(place(obj) - place(target)) for obj in scene["objects"] if obj is not target]
    too_close_to_call = bool(gaps) and min(gaps) < ASK_MARGIN[scene["layout"]]
    if spec is None or too_close_to_call:
        return None
    program = []
    related = add_step(program, "relate", add_unique(program, spec), value=relation)
    counted = some_spec(rng, scene, 1.0) if rng.random() < 0.3 else {}
    add_step(program, "count", add_filters(program, counted, start=related))
    things = phrase(rng, counted, plural=True)
    thing = phrase(rng, spec)
    return f"how many {things} are {RELATIONS[relation]} the {thing}?", program


WRITERS = {
    "count_all": write_count_all,
    "count": write_count,
    "exist": write_exist,
    "compare_number": write_compare_number,
    "compare_attribute": write_compare_attribute,
    "query": write_query,
    "query_color": write_query_color,
    "count_relation": write_count_relation,
}
FAMILIES = tuple(WRITERS)


def ask(scene: dict, seed: int, family: str = "count_all", vary: bool = False) -> dict:
    """{"question", "answer", "family", "program"}; ValueError if the family cannot be asked of this scene.

    Yes/no families first toss the wanted answer, then look for a question that has it: both are as likely.
    """
    rng = random.Random(f"ask {scene['split']} {scene['layout']} {scene['seed']} {int(seed)} {family}")
    wanted = rng.choice(("yes", "no"))
    writer = WRITERS[family]
    # each comparison is tried for long before the next: or "equal" would be a sign of its easier answer, "no"
    for comparison in rng.sample(COMPARISONS, 3):
        for _ in range(60):
            written = writer(rng, scene, comparison)
            if written is None:
                continue
            question, program = written
            answer = str(execute(program, scene))
            if answer in ("yes", "no") and answer != wanted:
                continue
            if vary and family == "count_all":
                question = rng.choice(COUNT_ALL)
            question = question[0].upper() + question[1:]
            return {"question": question, "answer": answer, "family": family, "program": program}
    raise ValueError(f"{family} cannot be asked of this scene")


def contact_sheet() -> Image.Image:
    """Four scenes of each split and layout, a row each."""
    sheet = Image.new("RGB", (4 * 240, 6 * 180))
    kinds = itertools.product(("free", "grid"), ("clevr", "cogent_b", "superclevr"))
    for row, (layout, split) in enumerate(kinds):
        for column in range(4):
            picture = draw_scene(sample_scene(column, split, layout))
            factor = min(236 / picture.width, 176 / picture.height)
            size = int(picture.width * factor), int(picture.height * factor)
            sheet.paste(picture.resize(size, Image.LANCZOS), (column * 240 + 2, row * 180 + 2))
    return sheet


if __name__ == "__main__":
    contact_sheet().save(sys.argv[1] if len(sys.argv) > 1 else "scenes.png")
