"""What a text about boxes is made of: runs of numbers, names of sides and corners, other words and signs."""

import re
import unicodedata

SIDES = {  # x and y: of a corner, or with width and height
    "x1": ("x1", "xmin", "minx", "xstart", "left", "x"),
    "y1": ("y1", "ymin", "miny", "ystart", "top", "y"),
    "x2": ("x2", "xmax", "maxx", "xend", "right"),
    "y2": ("y2", "ymax", "maxy", "yend", "bottom"),
    "width": ("w", "width"),
    "height": ("h", "height"),
}
CORNERS = {
    ("x1", "y1"): ("topleft", "upperleft", "lefttop", "tl"),
    ("x2", "y1"): ("topright", "upperright", "righttop", "tr"),
    ("x1", "y2"): ("bottomleft", "lowerleft", "leftbottom", "bl"),
    ("x2", "y2"): ("bottomright", "lowerright", "rightbottom", "br"),
}
SIDE = {word: side for side, words in SIDES.items() for word in words}
CORNER = {word: corner for corner, words in CORNERS.items() for word in words}
SIDE |= {f"{word}x": corner[0] for word, corner in CORNER.items()}  # top_left_x
SIDE |= {f"{word}y": corner[1] for word, corner in CORNER.items()}

KINDS = {  # every other word and sign is a "word"
    "open": ("[", "(", "{"),
    "comma": (",", ";", "、"),
    "says": (":", "=", "is", "are"),
    # what stands between two points: (1, 2) - (3, 4), [[1, 2], [3, 4]], at (1, 2) and extends to (3, 4)
    "joint": ("]", ")", "}", "-", "–", "—", ">", "→", "to", "and", "at", "ends", "extends"),
}
KIND = {word: kind for kind, words in KINDS.items() for word in words}

TOKEN = re.compile(
    # 12, -3, 0.25, .25, 12 px; "12." in a list only; at most 9 digits, as no image is larger
    r"(?P<number>(?<![\w.])-?(?:\d{1,9}(?:\.\d{1,20}|\.(?=\s?[,\])]))?|\.\d{1,20}))"
    r"(?:\s?(?:px|pixels?)\b)?(?![\w%]|\.\d)"
    r"|(?P<no_coordinate>\d[\w.%]*)"  # 9999999999, 12%, 1.2.3
    r"|(?P<word>[a-z][a-z0-9_-]*)"
    r"|(?P<sign>[^\s\"'`*$|\\_])"  # blanks, quotes and markup say nothing
)
SPELLINGS = {
    r"\\(?:left|right)": " ",  # \left[
    r"_\{\\?": "_",  # x_{1}, x_{\min}
    r"\bb?box_(?=[a-z])": "",  # bbox_left
    r"[ _-](?:position|coordinates?|values?)\b": "",  # x-coordinate
    r"xywh": " x, y, w, h ",
    r"(top|upper|bottom|lower) (left|right)\b": r"\1\2",
    r"左上": " topleft ",
    r"右下": " bottomright ",
}


def items_of(text: str) -> list[tuple]:
    """What a text says, in order, as (kind, value); numbers with nothing but commas between them are one run.

    >>> items_of("Box: [1, 2]")
    [('word', 'box'), ('says', ':'), ('open', '['), ('run', [1.0, 2.0]), ('joint', ']')]
    """
    text = unicodedata.normalize("NFKC", text[:4000])[:4000].lower()  # full-width brackets and digits, too
    text = text.replace("【", "[").replace("】", "]")
    if "x0" in text:  # x0, y0, x1, y1
        text = re.sub(r"\b([xy])([01])\b", lambda name: f"{name[1]}{int(name[2]) + 1}", text)
    for spelling, plain in SPELLINGS.items():
        text = re.sub(spelling, plain, text)
    items = []
    for token in TOKEN.finditer(text):
        word = token["word"] or token["sign"] or ""
        name = word.replace("_", "").replace("-", "")
        if not word:
            add_number(items, float(token["number"]) if token["number"] else None)
        elif name in SIDE:
            items.append(("side", SIDE[name]))
        elif name in CORNER:
            items.append(("corner", CORNER[name]))
        else:
            items.append((KIND.get(word, "word"), word))
    return items


def add_number(items: list[tuple], number: float | None) -> None:
    """Add a number to the last run of the items or as a new one; None is a number that is no coordinate."""
    while items and (items[-1][0] == "comma" or items[-1][1] == "and"):
        items.pop()
    if items and items[-1][0] == "run":
        items[-1][1].append(number)
    else:
        items.append(("run", [number]))
