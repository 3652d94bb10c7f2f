"""Stage 4, compare: boxes, in every spelling that models use: lists, points, named sides and corners."""

import re

from tasks.grading.box_words import items_of
from tasks.grading.stages import by, note

# -----------------------------------------------------------------------------
# step 1: the three ways to say a box; each returns all boxes said so
# -----------------------------------------------------------------------------

Box = list[float]  # [x1, y1, x2, y2]
ORDER = ["x1", "y1", "x2", "y2"]


def lists_of_four(items: list[tuple]) -> list[Box | None]:
    """[1, 2, 3, 4]; the sides in another order where the text names one: "[x, y, width, height]: [...]"."""
    order, names, found = ORDER, [], []
    for kind, value in items:
        if kind == "side":
            names.append(value)
        elif kind in ("run", "word"):
            names = []
        if len(names) == 4:
            order = list(names)
        if kind == "run" and len(value) >= 4:
            is_box = len(value) == 4 and None not in value
            found.append(box_of(dict(zip(order, value, strict=True))) if is_box else None)
    return found


def pairs_of_points(items: list[tuple]) -> list[Box | None]:
    """(1, 2), (3, 4), "from (1, 2) to (3, 4)", [[1, 2], [3, 4]]; three points in a row are no box."""
    chain, found, before = [], [], ""
    for kind, value in [*items, ("word", "")]:
        if kind == "run" and len(value) == 2 and None not in value and before == "open":
            chain.append(value)
        elif kind not in ("open", "comma", "joint"):
            found += [a + b for a, b in zip(chain[::2], chain[1::2], strict=False)]
            if len(chain) > 1 and len(chain) % 2:
                found.append(None)
            chain = []
        before = kind
    return found


def named_sides(items: list[tuple]) -> list[Box | None]:
    """x1: 1, y1: 2, ..., {"left": 1, ...}, "top-left (1, 2), bottom-right (3, 4)", in any order.

    A side that is given another value begins another box; a part of a box beside one counts as None.
    """
    found, sides = [], {}
    for side, number in said_of_sides(items):
        if sides.get(side, number) != number:
            found.append(box_of(sides))
            sides = {}
        sides[side] = number
    last = box_of(sides)
    return found + [last] if found or last else []


def said_of_sides(items: list[tuple]):
    """Each (side, number) that the items say: of "x1 = 5", of "(x1, y1) = (5, 6)", of "top-left (5, 6)"."""
    names, says, corner, before = [], False, None, ""
    for kind, value in items:
        if kind == "side":
            names.append(value)
        elif kind == "corner":
            corner, names = value, []
        elif kind == "says":
            says = True
        elif kind == "word":
            names, says = [], False
        elif kind == "comma" and before in ("corner", "word"):
            corner = None  # {"label": "the dog at the top left", "x": ...}
        elif kind == "run" and None not in value:
            if says and len(names) >= len(value):
                names = names[-len(value) :]
                if corner:  # its x and y
                    names = [{"x1": corner[0], "y1": corner[1]}.get(name, name) for name in names]
                yield from zip(names, value, strict=True)
            else:
                if corner and len(value) == 2:
                    yield from zip(corner, value, strict=True)
                corner = None
            names, says = [], False
        before = kind


def box_of(sides: dict[str, float]) -> Box | None:
    """The box of named sides, None if one is missing."""
    sides = dict(sides)
    for start, size, end in (("x1", "width", "x2"), ("y1", "height", "y2")):
        if start in sides and size in sides:
            sides.setdefault(end, sides[start] + sides[size])
    return [sides[side] for side in ORDER] if sides.keys() >= set(ORDER) else None


def boxes_in(text: str) -> list[Box | None]:
    """All different boxes that a text names; None stands for what is more or less than a box."""
    items = items_of(text)
    found = lists_of_four(items) + pairs_of_points(items) + named_sides(items)
    return [box for i, box in enumerate(found) if box not in found[:i]]


# -----------------------------------------------------------------------------
# step 2: the box of an answer, and that of a completion without tags
# -----------------------------------------------------------------------------


def read_box(text: str) -> Box | None:
    """The one box [x1, y1, x2, y2] of a text; None if there is none, or a second one: a list must not pay.

    Numbers stay as they are, fractions of 1 too (in_pixels scales them). Where x2 < x1 nobody can know
    whether corners were exchanged or a width is meant: such a box has no area. Named corners may come in any
    order.

    >>> read_box('{"bottom_right": [3, 4], "top_left": [1, 2]}')
    [1.0, 2.0, 3.0, 4.0]
    """
    found = boxes_in(text)
    return found[0] if len(found) == 1 else None


ANSWERS = re.compile(r"(?i)\b(?:answer|final|finally)\b|\\boxed|答案")
CONCLUDES = re.compile(rf"{ANSWERS.pattern}|\b(?:therefore|thus|hence|in conclusion|(?-i:So))\b|因此|所以")
NAMES_BOX = re.compile(r"(?i)\b(?:bounding box|b?box|coordinates|located)\b|坐标|边界框")
STARTS_BARE = re.compile(r"(?:[-*•] |\d{1,2}\. )?[`*$]{0,3}[\[({<\\]")  # - [1, 2, 3, 4]
QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'|(?:<ref>|ref_start\|>)[^<]*<")
PROSE = re.compile(r"[^\W\d_]{2,} [^\W\d_]{2,} [^\W\d_]{2,}")  # three words in a row
FENCE = re.compile(r"```(?:json|python)?")
SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[A-Z])|(?<=。)")


def said_box(completion: str) -> str | None:
    """What a completion without tags says of its box in the end, for read_box; None if nothing definite.

    A box that is the only one of the reply, or behind its last conclusion, is the answer. Else the last
    sentence counts that speaks of the answer, else what is nothing but a box (JSON, a list), else what is
    said of a bounding box, if the text ends with that. A list of different boxes is no answer.

    >>> said_box("The man is at [1, 2, 3, 4]. So the dog's box is [5, 6, 7, 8].")
    "So the dog's box is [5, 6, 7, 8]."
    """
    reply = completion
    for tag in ("<answer>", "</think>"):  # what stands behind it, unless it was cut off just there
        before, _, behind = reply.rpartition(tag)
        reply = behind if behind.strip() else before
    reply = reply[-4000:]
    stated = [sentence for sentence in sentences(reply) if boxes_in(sentence)]
    endings = [reply[cue.start() :] for cue in CONCLUDES.finditer(reply)]
    for text in (reply, *endings[-4:]):
        box = read_box(text)
        if box:
            same = [sentence for sentence in stated if read_box(sentence) == box]
            return same[-1] if same else text.strip()
    answers = [sentence for sentence in stated if ANSWERS.search(sentence)]
    for statements in (answers[-1:], ending(stated, is_bare), ending(stated, NAMES_BOX.search)):
        if statements:
            return statements[-1] if read_box(" . ".join(statements)) else None
    return None


def is_bare(sentence: str) -> bool:
    """Is it a box and its label only, as JSON or a list?"""
    return bool(STARTS_BARE.match(sentence)) and not PROSE.search(QUOTED.sub(" ", sentence))


def ending(sentences: list[str], is_such) -> list[str]:
    """All such sentences if the last sentence is one, else none."""
    such = [sentence for sentence in sentences if is_such(sentence)]
    return such if such[-1:] == sentences[-1:] else []


def sentences(text: str) -> list[str]:
    """The sentences of a text; what ends with a colon or within brackets goes on in the next line."""
    lines = [""]
    for line in FENCE.sub("\n", text).split("\n"):
        line = " ".join(line.split())
        if lines[-1].endswith((":", ",", "[", "{", "(", "：")) or line.startswith(("]", "}", ")")):
            lines[-1] += f" {line}"
        elif line:
            lines.append(line)
    return [sentence for line in lines for sentence in SENTENCE_END.split(line)]


# -----------------------------------------------------------------------------
# step 3: compare
# -----------------------------------------------------------------------------


def in_pixels(box: Box, row: dict) -> Box:
    """The box in pixels of the original image, if row["image_size"] (width, height) is known.

    Fractions of 1 are parts of the image. A policy speaks in a frame of its own, row["box_frame"]: pixels of
    the resized image (Qwen2.5-VL) or thousandths (Qwen2-VL, Qwen3-VL).
    """
    frame = row.get("box_frame")
    if all(0 <= x <= 1 for x in box) and any(x % 1 for x in box):
        frame = (1, 1)
    if frame and row.get("image_size"):
        return scale_box(box, frame, row["image_size"])
    return box


def scale_box(box: Box, size: tuple[float, float], to: tuple[float, float]) -> Box:
    """The box of a frame of `size` (width, height) in a frame of size `to`."""
    x1, y1, x2, y2 = box
    return [
        x1 * to[0] / size[0],
        y1 * to[1] / size[1],
        x2 * to[0] / size[0],
        y2 * to[1] / size[1],
    ]


def iou(a: Box, b: Box) -> float:
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
    """IoU of the answer's box with the reference's, which is in pixels; 0 without one box each."""
    row = row or {}
    given, wanted = read_box(answer), read_box(solution)
    note("boxes", given, wanted)
    if given is None or wanted is None:
        return 0.0
    return iou(in_pixels(given, row), in_pixels(wanted, row | {"box_frame": None}))


def same_box(answer: str, solution: str, row: dict | None = None) -> bool:
    """IoU over 0.5, the usual criterion of RefCOCO."""
    return by("an IoU over 0.5", box_overlap(answer, solution, row) > 0.5)
