"""Stage 4, compare: boxes."""

import json
import re

CORNER = r"\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*"
BOX_IN_BRACKETS = re.compile(rf"[\[(]{CORNER},{CORNER}(?:\)\s*,\s*\(|,){CORNER},{CORNER}[\])]")
BARE_BOX = re.compile(rf"{CORNER},{CORNER},{CORNER},{CORNER}")


def read_box(text: str) -> list[float] | None:
    """The one box [x1, y1, x2, y2] of a text: JSON of any depth, a bare list, or Qwen2-VL's (x1,y1),(x2,y2).

    None if there is no box, or if there are different ones: listing many boxes must not pay.
    """
    text = re.sub(r"```(?:json)?|<\|box_(?:start|end)\|>", " ", text[:4000]).strip()
    try:
        found = boxes_in(json.loads(text))
    except (ValueError, OverflowError, RecursionError):  # no JSON that can be used: four numbers in brackets
        found = BOX_IN_BRACKETS.findall(text)
        bare = BARE_BOX.fullmatch(text)
        if bare:
            found.append(bare.groups())
    boxes = [[float(x) for x in box] for box in found]
    if not boxes or any(box != boxes[0] for box in boxes):
        return None
    return boxes[0]


def boxes_in(node) -> list[list]:
    """All lists of four numbers in a value that json.loads has read, none beyond any image (or NaN)."""
    if isinstance(node, dict):
        return [box for child in node.values() for box in boxes_in(child)]
    if not isinstance(node, list):
        return []
    if len(node) == 4 and all(type(x) in (int, float) and abs(x) < 1e9 for x in node):
        return [node]
    return [box for child in node for box in boxes_in(child)]


def scale_box(box: list[float], size: tuple[float, float], to: tuple[float, float]) -> list[float]:
    """The box of a frame of `size` (width, height) in a frame of size `to`."""
    x1, y1, x2, y2 = box
    return [
        x1 * to[0] / size[0],
        y1 * to[1] / size[1],
        x2 * to[0] / size[0],
        y2 * to[1] / size[1],
    ]


def iou(a: list[float], b: list[float]) -> float:
    """Intersection over union of two boxes [x1, y1, x2, y2], as torchvision.ops.box_iou computes it."""
    width_a, height_a = a[2] - a[0], a[3] - a[1]
    width_b, height_b = b[2] - b[0], b[3] - b[1]
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if min(width, height, width_a, height_a, width_b, height_b) <= 0:
        return 0.0
    both = width * height
    return both / (width_a * height_a + width_b * height_b - both)


def box_overlap(answer: str, solution: str, row: dict | None = None) -> float:
    """IoU of the answer's box with the reference's; 0 without one box each.

    The reference is in pixels of the original image. A policy speaks in a frame of its own, row["box_frame"]:
    pixels of the resized image (Qwen2.5-VL) or thousandths (Qwen2-VL, Qwen3-VL); with row["image_size"] known
    its box is scaled back.
    """
    row = row or {}
    given, wanted = read_box(answer), read_box(solution)
    if given is None or wanted is None:
        return 0.0
    if row.get("box_frame") and row.get("image_size"):
        given = scale_box(given, row["box_frame"], row["image_size"])
    return iou(given, wanted)


def same_box(answer: str, solution: str, row: dict | None = None) -> bool:
    """IoU over 0.5, the usual criterion of RefCOCO."""
    return box_overlap(answer, solution, row) > 0.5
