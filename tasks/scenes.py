"""
CLEVR-like scenes and questions, made on the fly: the data set of nanoR1V is this file.

A scene is a dict in CLEVR's scene-graph layout. `sample_scene` makes one from a seed, `draw_scene` renders it (a small
numpy ray caster makes one sprite per object look, Pillow pastes the sprites), `ask` poses a question with its program
and answer, and `describe_scene` / `full_description` put the scene in words.

Splits   "clevr"       colours of CLEVR-CoGenT condition A (cubes and cylinders share no colour)
         "cogent_b"    condition B: the colours of cubes and cylinders are swapped
         "superclevr"  out of distribution, after Super-CLEVR: vehicles, other colours, tinted grounds, another size
Layouts  "free"        CLEVR's ground plane seen in perspective, 480x320, objects may hide each other in part
         "grid"        4x4 screen cells with at most one object each, 112x112: a cell is one 28-pixel visual token

    scene = sample_scene(7, split="clevr", layout="grid")
    draw_scene(scene).save("scene.png")
    ask(scene, seed=0)             # {"question": "How many items are there in the image?", "answer": "5", ...}

`python -m tasks.scenes out.png` draws a contact sheet of all splits and layouts.
"""

import itertools
import math
import random
import sys
from functools import lru_cache

import numpy as np
from PIL import Image

# CLEVR's published palette (sRGB numbers used as linear albedo, as its Blender scene does)
COLORS = {
    "gray": (87, 87, 87),
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
}
SHAPES = ("cube", "sphere", "cylinder")
SIZES = ("large", "small")
MATERIALS = ("rubber", "metal")
_ONE, _TWO = ["gray", "blue", "brown", "yellow"], ["red", "green", "purple", "cyan"]
COGENT = {
    "A": {"cube": _ONE, "sphere": list(COLORS), "cylinder": _TWO},
    "B": {"cube": _TWO, "sphere": list(COLORS), "cylinder": _ONE},
}

# Out of distribution: vehicles made of (kind, centre xyz, half size xyz, paint), x forward, in units of the radius
OOD_COLORS = {
    "red": COLORS["red"],
    "blue": COLORS["blue"],
    "yellow": COLORS["yellow"],
    "orange": (255, 105, 8),
    "pink": (255, 90, 150),
    "white": (235, 235, 235),
    "lime": (120, 225, 30),
    "teal": (0, 90, 85),
}


def _wheels(xs: tuple, y: float, r: float, ground: float) -> list:
    return [("wheel", (x, side * y, ground + r), (r, 0.1, r), "tyre") for x in xs for side in (-1, 1)]


MODELS = {
    "cube": [("box", (0, 0, 0), (1, 1, 1), "body")],
    "sphere": [("ball", (0, 0, 0), (1, 1, 1), "body")],
    "cylinder": [("drum", (0, 0, 0), (1, 1, 1), "body")],
    "car": [
        ("box", (0, 0, -0.22), (1.4, 0.62, 0.28), "body"),
        ("box", (-0.15, 0, 0.25), (0.72, 0.54, 0.24), "glass"),
        ("box", (-0.15, 0, 0.5), (0.66, 0.55, 0.06), "body"),
        *_wheels((-0.85, 0.85), 0.6, 0.32, -0.75),
    ],
    "bus": [
        ("box", (0, 0, -0.15), (1.5, 0.6, 0.5), "body"),
        ("box", (0, 0, 0.55), (1.46, 0.57, 0.2), "glass"),
        ("box", (0, 0, 0.82), (1.5, 0.6, 0.1), "body"),
        *_wheels((-0.95, 0.95), 0.58, 0.3, -0.9),
    ],
    "truck": [
        ("box", (-0.4, 0, 0.15), (1.05, 0.64, 0.72), "body"),
        ("box", (1, 0, -0.3), (0.4, 0.58, 0.34), "body"),
        ("box", (1.0, 0, 0.22), (0.3, 0.54, 0.2), "glass"),
        *_wheels((-1.05, -0.3, 1.0), 0.6, 0.32, -0.9),
    ],
    "motorbike": [
        ("wheel", (-0.8, 0, -0.3), (0.5, 0.13, 0.5), "tyre"),
        ("wheel", (0.8, 0, -0.3), (0.5, 0.13, 0.5), "tyre"),
        ("ball", (0.2, 0, 0.2), (0.55, 0.26, 0.3), "body"),
        ("box", (-0.5, 0, 0.22), (0.5, 0.2, 0.12), "body"),
        ("box", (0, 0, -0.25), (0.42, 0.18, 0.25), "chrome"),
        ("box", (0.66, 0, 0.2), (0.08, 0.1, 0.5), "chrome"),
        ("box", (0.58, 0, 0.68), (0.07, 0.5, 0.06), "tyre"),
    ],
    "airplane": [
        ("ball", (0, 0, 0), (1.55, 0.32, 0.34), "body"),
        ("box", (0.1, 0, -0.05), (0.32, 1.5, 0.05), "body"),
        ("box", (-1.3, 0, 0.1), (0.17, 0.55, 0.04), "body"),
        ("box", (-1.32, 0, 0.4), (0.2, 0.05, 0.38), "body"),
        ("ball", (1.0, 0, 0.16), (0.28, 0.22, 0.2), "glass"),
        *_wheels((0.3,), 0.35, 0.18, -0.6),
    ],
}
VEHICLES = tuple(k for k in MODELS if k not in SHAPES)
GROUND = {
    k: min(c[2] - h[2] for _, c, h, _ in parts) for k, parts in MODELS.items()
}  # lowest point of each model
REACH = {"sphere": 1.0, "cylinder": 1.0, "cube": 1.3, **{k: 1.4 for k in VEHICLES}}  # radius of the footprint
TURN = {
    "sphere": 1,
    "cylinder": 1,
    "cube": 90,
}  # rotation after which a shape looks the same (others: 360 degrees)
PAINT = {"tyre": (0.03, 0.03, 0.03), "glass": (0.16, 0.24, 0.30), "chrome": (0.45, 0.45, 0.45)}  # linear RGB

RADIUS = {"large": 0.7, "small": 0.35}  # CLEVR's half sizes, in world units
GRID_RADIUS = {"large": 0.7, "small": 0.42}  # less small, so that shape and colour survive 28-pixel cells
GRID_SHRINK = {"cube": 0.8, "cylinder": 0.84}  # look bigger than a ball: fit them to the cell
CELLS = 4

# Camera, from CLEVR's base scene (fits its published pixel_coords): 9.92 units away, 5.34 high, looks at the origin
CAM_DIST, CAM_HEIGHT, FOCAL = 9.92, 5.34, 35 / 32  # focal length in image widths (35 mm lens, 32 mm sensor)
PITCH = math.atan2(CAM_HEIGHT, CAM_DIST)
GRID_ELEVATION = 30  # degrees: the grid is seen by a far camera, without perspective
RIGHT, BEHIND = (
    (0.65631, 0.75449),
    (-0.75449, 0.65631),
)  # ground directions as the camera sees them (CLEVR's numbers)
DIRECTIONS = {
    "right": [*RIGHT, 0.0],
    "behind": [*BEHIND, 0.0],
    "left": [-RIGHT[0], -RIGHT[1], 0.0],
    "front": [-BEHIND[0], -BEHIND[1], 0.0],
    "above": [0.0, 0.0, 1.0],
    "below": [0.0, 0.0, -1.0],
}
MIN_DIST, MARGIN, EPS = 0.25, 0.4, 0.2  # CLEVR's generator options
ASK_MARGIN = {"free": MARGIN, "grid": 0.8}  # relations are asked only if clearer than this
MIN_VISIBLE = 0.5  # every object shows at least this part of its bounding disc

# Lamps (direction to the lamp: right, away from the camera, up; strength). Assumed: placed by eye like CLEVR's three.
LAMPS = (((0.62, -0.50, 0.62), 0.34), ((-0.70, -0.35, 0.65), 0.12), ((0.25, 0.50, 0.83), 0.22))
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


# ----------------------------------------------------------------------------------------------------------------------
# sampling


def sample_scene(
    seed: int,
    split: str = "clevr",
    layout: str = "free",
    min_objects: int = 3,
    max_objects: int = 10,
    size: tuple[int, int] | None = None,
) -> dict:
    """A scene graph in CLEVR's layout; the same arguments always give the same scene."""
    seed, lo, hi = int(seed), int(min_objects), int(max_objects)
    ood = split == "superclevr"
    default = {"free": (640, 480) if ood else (480, 320), "grid": (140, 112) if ood else (112, 112)}[layout]
    width, height = (int(x) for x in (size or default))
    rng = random.Random(f"scene {seed} {split} {layout} {lo} {hi} {width}x{height}")
    looks = [_sample_look(rng, split) for _ in range(rng.randint(lo, hi))]
    place = _place_grid if layout == "grid" else _place_free
    objects = place(rng, looks, width, height)
    return {
        "split": split,
        "layout": layout,
        "seed": seed,
        "width": width,
        "height": height,
        "background": rng.choice(BACKGROUNDS["superclevr" if ood else "clevr"]),
        "directions": DIRECTIONS,
        "relationships": _relationships(objects),
        "objects": objects,
    }


def _sample_look(rng: random.Random, split: str) -> dict:
    if split == "superclevr":
        shape, colors = rng.choice(VEHICLES), list(OOD_COLORS)
    else:
        shape = rng.choice(SHAPES)
        colors = COGENT[{"clevr": "A", "cogent_b": "B"}[split]][shape]
    return {
        "color": rng.choice(colors),
        "shape": shape,
        "size": rng.choice(SIZES),
        "material": rng.choice(MATERIALS),
        "rotation": rng.uniform(0, 360),
    }


def _ground(x: float, y: float) -> tuple[float, float]:
    """CLEVR's x, y -> camera-aligned ground coordinates: u to the right, v away from the camera."""
    return x * RIGHT[0] + y * RIGHT[1], x * BEHIND[0] + y * BEHIND[1]


def _focal(width: int, height: int) -> float:
    return FOCAL * min(width, 1.5 * height)  # pixels; a flat picture must not cut off the front row


def _project(u: float, v: float, z: float, width: int, height: int) -> list:
    """Ground coordinates and height of a point -> its pixel x, y and depth (distance along the camera's axis)."""
    f, c, s = _focal(width, height), math.cos(PITCH), math.sin(PITCH)
    depth = (CAM_DIST + v) * c + (CAM_HEIGHT - z) * s
    up = (CAM_DIST + v) * s + (z - CAM_HEIGHT) * c
    return [round(width / 2 + f * u / depth), round(height / 2 - f * up / depth), depth]


def _place_free(rng: random.Random, looks: list[dict], width: int, height: int) -> list[dict]:
    """Rejection sampling as in CLEVR's generator: start over when an object finds no place or is hidden."""
    for attempt in range(1, 1000):
        large = [look for look in looks if look["size"] == "large"]
        if attempt % 20 == 0 and large:  # too crowded: keep the number, make one of them small
            rng.choice(large)["size"] = "small"
        placed, objects = [], []  # placed: (u, v, footprint)
        for look in looks:
            r = RADIUS[look["size"]]
            for _ in range(60):
                x, y = rng.uniform(-3, 3), rng.uniform(-3, 3)
                u, v = _ground(x, y)
                foot = r * REACH[look["shape"]]
                if all(
                    abs(u - a) > MARGIN
                    and abs(v - b) > MARGIN
                    and math.hypot(u - a, v - b) > foot + g + MIN_DIST
                    for a, b, g in placed
                ):
                    break
            else:
                break  # no place found in 60 tries: the for-else below starts over
            placed.append((u, v, foot))
            z = -GROUND[look["shape"]] * r
            objects.append({**look, "3d_coords": [x, y, z], "pixel_coords": _project(u, v, z, width, height)})
        else:
            if _all_visible(objects, _focal(width, height)):
                return objects
    raise ValueError(f"no room for {len(looks)} objects")


# 40 points spread evenly over the unit disc (a sunflower spiral): a cheap stand-in for counting visible pixels
_DISC = [
    (math.sqrt((k + 0.5) / 40) * math.cos(2.39996 * k), math.sqrt((k + 0.5) / 40) * math.sin(2.39996 * k))
    for k in range(40)
]


def _all_visible(objects: list[dict], f: float) -> bool:
    discs = sorted(
        (
            o["pixel_coords"][2],
            *o["pixel_coords"][:2],
            1.1 * f * RADIUS[o["size"]] * REACH[o["shape"]] / o["pixel_coords"][2],
        )
        for o in objects
    )
    for i, (_, x, y, r) in enumerate(discs):
        nearer = [(a, b, q) for _, a, b, q in discs[:i] if math.hypot(a - x, b - y) < q + r]
        r *= 0.75  # the corners of the disc are mostly empty: look at its core
        seen = sum(
            all((x + r * p - a) ** 2 + (y + r * t - b) ** 2 > q * q for a, b, q in nearer) for p, t in _DISC
        )
        if seen < MIN_VISIBLE * len(_DISC):
            return False
    return True


def _grid_scale(width: int, height: int) -> float:
    return (
        0.76 * height / CELLS / (2 * GRID_RADIUS["large"])
    )  # pixels per world unit: a large ball is 0.76 cells high


def _place_grid(rng: random.Random, looks: list[dict], width: int, height: int) -> list[dict]:
    """One object in each of some random cells; ground coordinates follow from the pixel (no perspective)."""
    scale, sin = _grid_scale(width, height), math.sin(math.radians(GRID_ELEVATION))
    objects = []
    for look, cell in zip(looks, sorted(rng.sample(range(CELLS * CELLS), len(looks))), strict=True):
        px, py = (
            round(
                min(max(k + 0.5 + rng.uniform(-0.27, 0.27), 0.4), CELLS - 0.4) * side / CELLS
            )  # not cut off
            for k, side in ((cell % CELLS, width), (cell // CELLS, height))
        )
        u, v = (px - width / 2) / scale, (height / 2 - py) / scale / sin
        z = -GROUND[look["shape"]] * GRID_RADIUS[look["size"]]
        depth = math.hypot(CAM_DIST, CAM_HEIGHT) + v * math.cos(math.radians(GRID_ELEVATION))
        x, y = u * RIGHT[0] + v * BEHIND[0], u * RIGHT[1] + v * BEHIND[1]
        objects.append({**look, "3d_coords": [x, y, z], "pixel_coords": [px, py, depth]})
    rng.shuffle(objects)  # or else the order of the list would tell where things are
    return objects


def _relationships(objects: list[dict]) -> dict[str, list[list[int]]]:
    """relationships["left"][i] = the objects left of object i, by more than EPS (as in CLEVR)."""
    uv = [_ground(*o["3d_coords"][:2]) for o in objects]
    return {
        "left": [[j for j, b in enumerate(uv) if b[0] < a[0] - EPS] for a in uv],
        "right": [[j for j, b in enumerate(uv) if b[0] > a[0] + EPS] for a in uv],
        "front": [[j for j, b in enumerate(uv) if b[1] < a[1] - EPS] for a in uv],
        "behind": [[j for j, b in enumerate(uv) if b[1] > a[1] + EPS] for a in uv],
    }


# ----------------------------------------------------------------------------------------------------------------------
# drawing: every object look is ray-cast once into a sprite; a picture is a background, shadows and sprites


def draw_scene(scene: dict) -> Image.Image:
    """RGB picture, width x height. All shadows go below all objects; objects are pasted from the back to the front."""
    w, h, grid = scene["width"], scene["height"], scene["layout"] == "grid"
    image = _background(scene["background"], w, h).copy()
    stamps = []
    for o in sorted(scene["objects"], key=lambda o: -o["pixel_coords"][2]):
        px, py, depth = o["pixel_coords"]
        if grid:  # the upper rows are a bit further away
            scale = _grid_scale(w, h) * GRID_RADIUS[o["size"]] * (0.85 + 0.05 * int(py * CELLS / h))
            scale, elevation, aside = scale * GRID_SHRINK.get(o["shape"], 1), GRID_ELEVATION, 0.0
        else:
            u, v = _ground(*o["3d_coords"][:2])
            scale = _focal(w, h) * RADIUS[o["size"]] / depth
            away = CAM_DIST + v
            elevation = round(math.degrees(math.atan2(CAM_HEIGHT - o["3d_coords"][2], away)) / 5) * 5
            aside = math.degrees(math.atan2(u, away))  # seen from the side, an object shows another face
        turn, step = TURN.get(o["shape"], 360), 10 if o["shape"] == "cube" else 30 if grid else 15
        rotation = (
            round((o["rotation"] - 49 + aside) % turn / step) * step % turn
        )  # 49: world -> camera frame
        sprite = _sprite(o["shape"], o["color"], o["material"], rotation, elevation, round(scale * 4))
        stamps.append((px, py, *sprite))
    for px, py, _, _, shadow, (dx, dy) in stamps:
        image.paste((14, 14, 16), (px + dx, py + dy, px + dx + shadow.width, py + dy + shadow.height), shadow)
    for px, py, body, (dx, dy), _, _ in stamps:
        image.paste(body, (px + dx, py + dy), body)
    return image


@lru_cache(maxsize=64)
def _background(name: str, width: int, height: int) -> Image.Image:
    """The empty studio: a dark far end, a ground brighter to the front right, a bluish glow at the left, grain."""
    rng = np.random.default_rng(sum(name.encode()))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = x / width, y / height
    edge, glow, tilt = (
        0.33 + rng.uniform(-0.04, 0.04),
        0.38 + rng.uniform(-0.05, 0.05),
        rng.uniform(-0.1, 0.1),
    )
    ramp = 1 / (1 + np.exp(-(y - edge - 0.12 * (x - 0.5) ** 2) / 0.045))  # far end -> ground, softly
    near = np.clip(y - edge, 0, 1)
    grey = 103 + 18 * ramp + near * (16 + 56 * np.clip(x + tilt, 0, 0.75))
    grey += 10 * np.exp(-((x - 0.5) ** 2 + (y - 0.42) ** 2) * 8)
    grey -= 14 * ramp * np.clip(x - 0.8, 0, 1) * np.exp(-(((y - 0.5) / 0.2) ** 2)) * 5
    left = 22 * np.exp(-((x / 0.16) ** 2 + ((y - glow) / 0.09) ** 2))
    rgb = np.stack([grey + left - 0.5, grey + left, grey + 1.15 * left - 6 * near], -1)
    if name in TINTS:  # other grounds: tinted, blotchy, with a clearer horizon
        blotch = Image.fromarray(rng.integers(0, 255, (9, 12), dtype=np.uint8)).resize(
            (width, height), Image.BICUBIC
        )
        light = (rgb / 255) ** 2.2 / 0.25 * (0.92 + 0.16 * np.asarray(blotch)[..., None] / 255)
        rgb = 255 * np.clip(light * np.array(TINTS[name]), 0, 1) ** (1 / 2.2)
    rgb = rgb + rng.normal(0, 1.6, (height, width, 1))
    return Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))


@lru_cache(maxsize=4096)
def _sprite(shape: str, color: str, material: str, rotation: int, elevation: int, quarter_pixels: int):
    """-> (RGBA body, its offset, L shadow, its offset); quarter_pixels: the object's radius in 1/4 pixels."""
    scale = quarter_pixels / 4
    res = math.ceil(
        2 ** (math.ceil(2 * math.log2(max(scale, 4))) / 2)
    )  # ray-cast at powers of sqrt(2), then shrink
    body, shadow = _paint(shape, color, material, rotation, elevation, res)

    def fit(image: Image.Image, half_w: float, half_h: float) -> tuple[Image.Image, tuple[int, int]]:
        w, h = max(1, round(2 * half_w * scale)), max(1, round(2 * half_h * scale))
        image = image.resize((w, h), Image.BOX if w < image.width / 2 else Image.HAMMING)
        box = (image.getchannel("A") if image.mode == "RGBA" else image).getbbox() or (0, 0, 1, 1)
        return image.crop(box), (box[0] - round(w / 2), box[1] - round(h / 2))

    return *fit(body, CANVAS, CANVAS), *fit(shadow, *SHADOW)


CANVAS, SHADOW = 1.8, (4.0, 3.0)  # half sizes of the two canvases, in radii


@lru_cache(maxsize=4096)
def _paint(shape: str, color: str, material: str, rotation: int, elevation: int, res: int):
    cover, shade, fixed, shadow = _render(shape, material, rotation, elevation, res)
    albedo = np.array((COLORS | OOD_COLORS)[color], np.float32) / 255
    light = (shade[..., None] * albedo + fixed) / np.maximum(cover, 1e-3)[..., None]
    rgb = np.clip(light, 0, 1) ** (1 / 2.2)  # linear light -> display
    rgba = np.concatenate([rgb, cover[..., None]], -1) * 255 + 0.5
    return Image.fromarray(rgba.astype(np.uint8)), shadow


def _unit(part: tuple, x: np.ndarray, point: bool = True) -> np.ndarray:
    """Model coordinates of points (or of directions) -> coordinates in which the part is a unit box, ball or drum."""
    kind, centre, half, _ = part
    x = (x - np.array(centre if point else (0, 0, 0), np.float32)) / np.array(half, np.float32)
    return x[..., [0, 2, 1]] if kind == "wheel" else x  # a wheel is a drum with its axis along y


def _interval(part: tuple, o: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the rays o + t d are inside a part: t at the entry and at the exit (a miss: exit < entry)."""
    o, d = _unit(part, o), _unit(part, d, point=False)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = (-1 - o) / d, (1 - o) / d  # the box's planes
        low, high = np.minimum(low, high), np.maximum(low, high)
        if part[0] == "box":
            (a, b, c), (x, y, z) = low.T, high.T  # (numpy's max over an axis of three is many times slower)
            return np.maximum(np.maximum(a, b), c), np.minimum(np.minimum(x, y), z)
        n = 3 if part[0] == "ball" else 2  # a drum is an endless tube between two planes
        o, d = o[..., :n], d[..., :n]
        a, b, c = (np.einsum("...i,...i", x, y) for x, y in ((d, d), (o, d), (o, o)))
        root = np.sqrt(b * b - a * (c - 1))  # nan: the ray misses
        t0, t1 = np.nan_to_num((-b - root) / a, nan=np.inf), np.nan_to_num((-b + root) / a, nan=-np.inf)
        return (t0, t1) if n == 3 else (np.maximum(t0, low[..., 2]), np.minimum(t1, high[..., 2]))


def _normal(part: tuple, p: np.ndarray) -> np.ndarray:
    """Outward normals at model points p [n,3]. They point away from a slightly smaller core, which rounds the edges."""
    kind, _, half, _ = part
    axes = [0, 2, 1] if kind == "wheel" else [0, 1, 2]
    p, half = _unit(part, p), np.array(half, np.float32)[axes]
    core = np.maximum(1 - 0.13 / half, 0.5)
    if kind == "ball":
        n = p / half
    else:
        n = (p - np.clip(p, -core, core)) * half
        if kind != "box":
            rho = np.maximum(np.hypot(p[:, :1], p[:, 1:2]), 1e-6)
            n[:, :2] = p[:, :2] * half[:2] * (1 - np.minimum(1, core[0] / rho))
    return n[:, axes] / np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-6)


def _turn(x: np.ndarray, degrees: float) -> np.ndarray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return x @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]], np.float32)


def _mirror(r: np.ndarray) -> np.ndarray:
    """What a metal surface sees in direction r [n,3]: bright ground, dark ceiling, lamps (these exceed 1)."""
    x, y, z = r.T
    ground = 0.27 + 0.10 * x - 0.12 * y  # brighter to the front right, like the background
    ground = ground * np.clip(1.45 + 1.3 * z, 0.25, 1)  # straight down it sees its own shadow
    ceiling = 0.03 + 0.13 * np.exp(-((z / 0.25) ** 2))
    seen = ceiling + (ground - ceiling) / (1 + np.exp((z + 0.03) / 0.035))
    for direction, power in LAMPS:
        cos = r @ (np.array(direction, np.float32) / np.linalg.norm(direction))
        seen = (
            seen + 30 * power * np.clip((cos - 0.982) / 0.008, 0, 1) + 0.9 * power * np.clip(cos, 0, 1) ** 24
        )
    return np.minimum(seen, 4)  # or else tiny highlights on edges would flicker


@lru_cache(maxsize=2048)
def _render(shape: str, material: str, rotation: int, elevation: int, res: int):
    """Ray-cast a model of radius `res` pixels -> cover [n,n], shade [n,n], fixed [n,n,3], shadow picture.

    The light of a pixel is shade * colour + fixed: the colour is left out so that one rendering serves all colours.
    Frame: x right, y away from the camera, z up, origin at the object's centre.
    """
    parts, over = MODELS[shape], 3 if res < 24 else 2  # over: supersampling per axis
    n, e = round(2 * CANVAS * res), math.radians(elevation)
    cam = (
        np.array([0, -math.cos(e), math.sin(e)], np.float32) * 16
    )  # 16 radii away: mild perspective inside a sprite
    right, up = np.array([1, 0, 0], np.float32), np.array([0, math.sin(e), math.cos(e)], np.float32)

    def rays(nx: int, ny: int, half_w: float, half_h: float) -> np.ndarray:
        x, y = ((np.arange(nx) + 0.5) / nx * 2 - 1) * half_w, (1 - (np.arange(ny) + 0.5) / ny * 2) * half_h
        d = x[None, :, None] * right + y[:, None, None] * up - cam
        return d.reshape(-1, 3).astype(np.float32)

    d = rays(n * over, n * over, CANVAS, CANVAS)
    o_model, d_model = _turn(cam, -rotation), _turn(d, -rotation)
    best, which = np.full(len(d), np.inf, np.float32), np.full(len(d), -1)
    for k, part in enumerate(parts):
        centre, reach = _turn(np.array(part[1], np.float32), rotation), 1.15 * math.hypot(*part[2])
        near = np.flatnonzero(
            (abs(d @ right - centre @ right) < reach) & (abs((d + cam) @ up - centre @ up) < reach)
        )
        t0, t1 = _interval(part, o_model, d_model[near])  # only the rays that may hit: most parts are small
        closer = (t0 < t1) & (t0 < best[near])
        best[near[closer]], which[near[closer]] = t0[closer], k
    shade, fixed = np.zeros(len(d), np.float32), np.zeros((len(d), 3), np.float32)
    for k, part in enumerate(parts):
        hit = np.flatnonzero(which == k)
        if len(hit):
            p = o_model + best[hit, None] * d_model[hit]
            light = _shade(part, p, d[hit], rotation, material, GROUND[shape])
            if part[3] == "body":
                shade[hit] = light
            else:
                fixed[hit] = light[:, None] * np.array(PAINT[part[3]], np.float32)

    def down(a: np.ndarray) -> np.ndarray:  # average the supersamples of each pixel
        return a.reshape(n, over, n, over, -1).mean((1, 3)).squeeze(-1 if a.ndim == 1 else ())

    cover = down((which >= 0).astype(np.float32))
    w, h = (round(s * min(res, 32)) for s in SHADOW)  # shadows are soft: half resolution or less will do
    shadow = _shadow(parts, rotation, GROUND[shape], cam, rays(w, h, *SHADOW)).reshape(h, w)
    fade = (
        np.outer(np.hanning(h + 2)[1:-1], np.hanning(w + 2)[1:-1]).clip(0, 0.2) * 5
    )  # no hard end at the edge
    shadow = Image.fromarray((255 * np.clip(0.85 * shadow, 0, 1) * fade).astype(np.uint8))
    shadow = shadow.resize([round(2 * s * res) for s in SHADOW], Image.BICUBIC)
    return cover, down(shade), down(fixed), shadow


def _shade(
    part: tuple, p: np.ndarray, d: np.ndarray, rotation: int, material: str, ground: float
) -> np.ndarray:
    """Light (a factor on the surface colour) at model points p [n,3], seen along d [n,3]."""
    normal = _turn(_normal(part, p), rotation)
    lambert = 0.07 + 0.05 * normal[:, 2]  # a little light from everywhere, more from above
    for direction, power in LAMPS:
        to_lamp = np.array(direction, np.float32) / np.linalg.norm(direction)
        lambert = lambert + power * np.clip(
            (normal @ to_lamp + 0.15) / 1.15, 0, 1
        )  # wide lamps reach round corners
    contact = 0.6 + 0.4 * np.clip((p[:, 2] - ground) / 0.5, 0, 1)  # darker just above the ground
    if part[3] == "tyre" or (material == "rubber" and part[3] == "body"):
        return lambert * contact
    d = d / np.linalg.norm(d, axis=1, keepdims=True)
    facing = (d * normal).sum(1, keepdims=True)
    return (1.15 * _mirror(d - 2 * facing * normal) + 0.16 * lambert) * contact


def _shadow(parts: list, rotation: int, ground: float, cam: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Share of the lamps' light that the object takes from the ground points where rays d meet the ground."""
    spot = cam + d * ((ground - cam[2]) / d[:, 2])[:, None]
    dark, rng = np.zeros(len(d), np.float32), np.random.default_rng(0)
    origin = _turn(spot, -rotation)
    for direction, power in LAMPS:
        for jitter in rng.uniform(-0.28, 0.28, (16, 3)):  # 16 points of each wide lamp: soft edges
            lamp = np.array(direction) / np.linalg.norm(direction) + jitter
            lamp = _turn(lamp.astype(np.float32), -rotation)
            blocked = np.zeros(len(d), bool)
            for part in parts:
                t0, t1 = _interval(part, origin, lamp)
                blocked |= (t0 < t1) & (t1 > 0)
            dark += blocked * (power / 16)
    return dark


# ----------------------------------------------------------------------------------------------------------------------
# words


def reading_order(scene: dict) -> list[dict]:
    """Objects row by row, left to right in a row. Rows: a grid's cells; if free, eighths of the height."""
    rows = CELLS if scene["layout"] == "grid" else 8
    at = {id(o): o["pixel_coords"] for o in scene["objects"]}
    return sorted(scene["objects"], key=lambda o: (int(at[id(o)][1] * rows / scene["height"]), at[id(o)][0]))


def described_objects(scene: dict, miss: float = 0.0, seed: int | None = None) -> list[dict]:
    """What a fallible teacher sees: each small object is overlooked with probability `miss`, always the same ones."""
    rng = random.Random(
        f"miss {scene['split']} {scene['layout']} {scene['seed'] if seed is None else int(seed)}"
    )
    order = reading_order(scene)
    kept = [o for o in order if not (o["size"] == "small" and rng.random() < miss)]
    return kept or order[:1]


def describe_scene(
    scene: dict, miss: float = 0.0, seed: int | None = None, words: tuple[str, ...] = ("color", "shape")
) -> str:
    """ "red cube, blue sphere, ...": a chain of thought in as few words as possible."""
    return ", ".join(" ".join(o[w] for w in words) for o in described_objects(scene, miss, seed))


def full_description(scene: dict) -> str:
    """The caption that R1-V distils from: every object with its attributes, rotation and coordinates."""
    lines = ["Scene Description:"]
    for o in reading_order(scene):
        (x, y, z), (px, py, depth) = o["3d_coords"], o["pixel_coords"]
        lines.append(
            f"A {o['size']} {o['color']} {o['material']} {o['shape']} rotated {o['rotation']:.1f}° located at "
            f"3D coordinates ({x:.2f}, {y:.2f}, {z:.2f}) and pixel coordinates ({px}, {py}, {depth:.2f})"
        )
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------------------
# questions: a program of CLEVR's functions is written first, then put in words and executed on the scene graph

ATTRIBUTES = ("size", "color", "material", "shape")  # in the order in which English puts them
SYNONYMS = {
    "cube": ("cube", "block"),
    "sphere": ("sphere", "ball"),
    "large": ("large", "big"),
    "small": ("small", "tiny"),
    None: ("thing", "object"),
    "metal": ("metal", "metallic", "shiny"),
    "rubber": ("rubber", "matte"),
}
RELATIONS = {"left": "left of", "right": "right of", "front": "in front of", "behind": "behind"}
COUNT_ALL = (
    "How many items are there in the image?",
    "How many things are there?",
    "How many objects are there?",
    "What number of objects are in the image?",
    "How many things are in the picture?",
)
COMPARISONS = ("greater_than", "less_than", "equal_integer")
FAMILIES = (
    "count_all",
    "count",
    "exist",
    "compare_number",
    "compare_attribute",
    "query",
    "query_color",
    "count_relation",
)


def execute(program: list[dict], scene: dict) -> int | str:
    """Run a functional program (steps as in CLEVR: type, inputs, value_inputs) on a scene graph."""
    objects, out = scene["objects"], []
    for step in program:
        kind, args, values = step["type"], [out[i] for i in step["inputs"]], step["value_inputs"]
        name, _, attribute = kind.partition("_")
        if kind == "scene":
            out.append(list(range(len(objects))))
        elif name == "filter":
            out.append([i for i in args[0] if objects[i][attribute] == values[0]])
        elif kind == "unique":
            if len(args[0]) != 1:
                raise ValueError(f"{len(args[0])} objects are not unique")
            out.append(args[0][0])
        elif kind == "relate":
            out.append(scene["relationships"][values[0]][args[0]])
        elif name == "query":
            out.append(objects[args[0]][attribute])
        elif kind == "count":
            out.append(len(args[0]))
        else:  # exist, greater_than, less_than, equal_*
            yes = {
                "exist": lambda a: len(a) > 0,
                "greater": lambda a, b: a > b,
                "less": lambda a, b: a < b,
                "equal": lambda a, b: a == b,
            }[name](*args)
            out.append("yes" if yes else "no")
    return out[-1]


def _step(program: list[dict], kind: str, *inputs: int, value: str | None = None) -> int:
    program.append({"type": kind, "inputs": list(inputs), "value_inputs": [] if value is None else [value]})
    return len(program) - 1


def _find(program: list[dict], spec: dict, start: int | None = None) -> int:
    """Append the filters of spec ({attribute: value}); returns the index of the step that holds the set."""
    at = _step(program, "scene") if start is None else start
    for attribute, value in spec.items():
        at = _step(program, f"filter_{attribute}", at, value=value)
    return at


def _phrase(rng: random.Random, spec: dict, plural: bool = False) -> str:
    """{"color": "red", "shape": "cube"} -> "red block", with CLEVR's synonyms."""
    words = [rng.choice(SYNONYMS.get(spec[a], (spec[a],))) for a in ATTRIBUTES[:3] if a in spec]
    noun = spec.get("shape")
    noun = rng.choice(SYNONYMS.get(noun, (noun,)))
    return " ".join([*words, noun + ("" if not plural else "es" if noun.endswith("s") else "s")])


def _some_spec(rng: random.Random, scene: dict, present: float) -> dict:
    """1 to 3 attributes with the values of an object of the scene (probability `present`) or with random values."""
    chosen = set(rng.sample(ATTRIBUTES, rng.choice((1, 1, 2, 2, 3))))
    source = rng.choice(scene["objects"]) if rng.random() < present else _sample_look(rng, scene["split"])
    return {a: source[a] for a in ATTRIBUTES if a in chosen}


def _unique_spec(rng: random.Random, scene: dict, target: dict, without: str = "") -> dict | None:
    """A description that fits only `target` and uses as few attributes as possible (a random one of those)."""
    usable = [a for a in ATTRIBUTES if a != without]
    for count in range(1, len(usable) + 1):
        options = list(itertools.combinations(usable, count))
        for chosen in rng.sample(options, len(options)):
            if sum(all(o[a] == target[a] for a in chosen) for o in scene["objects"]) == 1:
                return {a: target[a] for a in chosen}
    return None


def ask(scene: dict, seed: int, family: str = "count_all", vary: bool = False) -> dict:
    """{"question", "answer", "family", "program"}; ValueError if the family cannot be asked of this scene.

    Yes/no families first toss the wanted answer and then look for a question that has it, so both are equally likely.
    """
    rng = random.Random(f"ask {scene['split']} {scene['layout']} {scene['seed']} {int(seed)} {family}")
    want = rng.choice(("yes", "no"))
    writer = {
        "count_all": _count_all,
        "count": _count,
        "exist": _exist,
        "compare_number": _compare_number,
        "compare_attribute": _compare_attribute,
        "query": _query,
        "query_color": _query_color,
        "count_relation": _count_relation,
    }[family]
    # One comparison is tried for long before the next, or else "equal" would become a sign of its easier answer, "no"
    for op in rng.sample(COMPARISONS, 3):
        for _ in range(60):
            made = writer(rng, scene, op)
            if made is None:
                continue
            question, program = made
            answer = str(execute(program, scene))
            if answer in ("yes", "no") and answer != want:
                continue
            question = (
                rng.choice(COUNT_ALL)
                if vary and family == "count_all"
                else question[0].upper() + question[1:]
            )
            return {"question": question, "answer": answer, "family": family, "program": program}
    raise ValueError(f"{family} cannot be asked of this scene")


def _count_all(rng, scene, op):
    program = []
    _step(program, "count", _find(program, {}))
    return COUNT_ALL[0], program


def _count(rng, scene, op):
    spec, program = _some_spec(rng, scene, 0.85), []
    _step(program, "count", _find(program, spec))
    what = _phrase(rng, spec, plural=True)
    return rng.choice((f"how many {what} are there?", f"what number of {what} are there?")), program


def _exist(rng, scene, op):
    spec, program = _some_spec(rng, scene, 0.5), []
    _step(program, "exist", _find(program, spec))
    one = _phrase(rng, spec)
    one = ("an " if one[0] in "aeiou" else "a ") + one
    return rng.choice((f"are there any {_phrase(rng, spec, True)}?", f"is there {one}?")), program


def _compare_number(rng, scene, op):
    one, two, program = _some_spec(rng, scene, 0.9), _some_spec(rng, scene, 0.9), []
    if one == two:
        return None
    a = _step(program, "count", _find(program, one))
    b = _step(program, "count", _find(program, two))
    _step(program, op, a, b)
    x, y = _phrase(rng, one, True), _phrase(rng, two, True)
    return {
        "greater_than": f"are there more {x} than {y}?",
        "less_than": f"are there fewer {x} than {y}?",
        "equal_integer": f"are there an equal number of {x} and {y}?",
    }[op], program


def _compare_attribute(rng, scene, op):
    if len(scene["objects"]) < 2:
        return None
    attribute, program = rng.choice(ATTRIBUTES), []
    specs = [_unique_spec(rng, scene, o, without=attribute) for o in rng.sample(scene["objects"], 2)]
    if None in specs:
        return None
    asked = [_step(program, f"query_{attribute}", _step(program, "unique", _find(program, s))) for s in specs]
    _step(program, f"equal_{attribute}", *asked)
    x, y = (_phrase(rng, s) for s in specs)
    return rng.choice(
        (
            f"do the {x} and the {y} have the same {attribute}?",
            f"is the {attribute} of the {x} the same as the {attribute} of the {y}?",
        )
    ), program


def _query(rng, scene, op, attribute=""):
    attribute, program = attribute or rng.choice(ATTRIBUTES), []
    spec = _unique_spec(rng, scene, rng.choice(scene["objects"]), without=attribute)
    if spec is None:
        return None
    _step(program, f"query_{attribute}", _step(program, "unique", _find(program, spec)))
    what = _phrase(rng, spec)
    other = {
        "size": f"how big is the {what}?",
        "color": f"what is the color of the {what}?",
        "material": f"what is the {what} made of?",
        "shape": f"what is the shape of the {what}?",
    }[attribute]
    return rng.choice((f"what {attribute} is the {what}?", other)), program


def _query_color(rng, scene, op):
    return _query(rng, scene, op, "color")


def _count_relation(rng, scene, op):
    target, relation, program = rng.choice(scene["objects"]), rng.choice(tuple(RELATIONS)), []
    spec, axis = _unique_spec(rng, scene, target), int(relation in ("front", "behind"))
    at = {id(o): _ground(*o["3d_coords"][:2])[axis] for o in scene["objects"]}
    gaps = [abs(at[id(o)] - at[id(target)]) for o in scene["objects"] if o is not target]
    if spec is None or min(gaps, default=9) < ASK_MARGIN[scene["layout"]]:
        return None  # too close to call for at least one object
    of = _step(program, "relate", _step(program, "unique", _find(program, spec)), value=relation)
    counted = _some_spec(rng, scene, 1.0) if rng.random() < 0.3 else {}
    _step(program, "count", _find(program, counted, of))
    return (
        f"how many {_phrase(rng, counted, True)} are {RELATIONS[relation]} the {_phrase(rng, spec)}?",
        program,
    )


if __name__ == "__main__":
    kinds = [(s, y) for y in ("free", "grid") for s in ("clevr", "cogent_b", "superclevr")]
    sheet = Image.new("RGB", (4 * 240, 6 * 180))
    for row, (split, layout) in enumerate(kinds):
        for column in range(4):
            picture = draw_scene(sample_scene(column, split, layout))
            factor = min(236 / picture.width, 176 / picture.height)
            picture = picture.resize(
                (int(picture.width * factor), int(picture.height * factor)), Image.LANCZOS
            )
            sheet.paste(picture, (column * 240 + 2, row * 180 + 2))
    sheet.save(sys.argv[1] if len(sys.argv) > 1 else "scenes.png")
