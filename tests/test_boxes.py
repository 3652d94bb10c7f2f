"""Boxes: how they are read, found in a text without tags, and compared. All expectations are made by hand."""

import itertools
import json
import random
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, ROOT)
import rewards  # noqa: E402
from rewards import accuracy_reward, iou_reward, score  # noqa: E402
from tasks.grading import boxes  # noqa: E402
from tasks.grading.box_words import items_of  # noqa: E402


def row(solution, task="grounding"):
    return {"problem": "?", "solution": solution, "task": task}


# -----------------------------------------------------------------------------
# reading
# -----------------------------------------------------------------------------

# every line says [41, 19, 153, 132]
SAY_IT = r"""
[41, 19, 153, 132]
(41, 19, 153, 132)
41, 19, 153, 132
41 19 153 132
[41.0, 19.0, 153.00, 132.0]
[41., 19., 153., 132.]
[41px, 19px, 153px, 132 px]
41 pixels, 19 pixels, 153 pixels, 132 pixels
["41", "19", "153", "132"]
[41, 19, 153, 132, ]
The dog is at 41, 19, 153, 132.
41, 19, 153 and 132
dog: [41, 19, 153, 132]
[41, 19, 153, 132] (the dog)
[41, 19, 153, 132]: dog
dog 2: [41, 19, 153, 132]
1. [41, 19, 153, 132]
The image is 640x480. The box is [41, 19, 153, 132].
the left dog is at [41, 19, 153, 132]
bbox = (41, 19, 153, 132)
**[41, 19, 153, 132]**
`[41, 19, 153, 132]`
**41**, **19**, **153**, **132**
| 41 | 19 | 153 | 132 |
{"bbox_2d": [41, 19, 153, 132], "label": "the bottom right dog"}
{"label": "the dog at the bottom right", "bbox_2d": [41, 19, 153, 132]}
{"bbox_2d": [41, 19, 153, 132], "score": 0.98}
{"bbox_2d": [41, 19, 153, 132], "center": [97, 75], "size": [112, 113]}
{'bbox_2d': [41, 19, 153, 132], 'label': "dog's"}
{"bbox_2d": "41,19,153,132"}
[{"bbox_2d": [41, 19, 153, 132], "label": "dog"}]
[[41, 19, 153, 132]]
[[41, 19, 153, 132], [41, 19, 153, 132]]
```json {"bbox_2d": [41, 19, 153, 132]}```
[{"bbox_2d": [41, 19, 153, 132], "label": "dog"
[{"bbox_2d": [41, 19, 153, 132], "label": "do
{"bbox_2d": [41, 19, 153, 132
{"x1": 41, "y1": 19, "x2": 153, "y2": 132
{"x1": 41, "y1": 19, "x2": 153, "y2": 132}
{"bbox": {"x1": 41, "y1": 19, "x2": 153, "y2": 132}, "label": "left"}
{"label": "left", "x1": 41, "y1": 19, "x2": 153, "y2": 132}
{"xmin": 41, "ymin": 19, "xmax": 153, "ymax": 132}
{"x_min": 41, "y_min": 19, "x_max": 153, "y_max": 132}
{"xMin": 41, "yMin": 19, "xMax": 153, "yMax": 132}
{"min_x": 41, "min_y": 19, "max_x": 153, "max_y": 132}
{"bbox_x1": 41, "bbox_y1": 19, "bbox_x2": 153, "bbox_y2": 132}
{"box_left": 41, "box_top": 19, "box_width": 112, "box_height": 113}
{"x0": 41, "y0": 19, "x1": 153, "y1": 132}
{"left": 41, "top": 19, "right": 153, "bottom": 132}
{"left": 41, "top": 19, "width": 112, "height": 113}
{"x": 41, "y": 19, "width": 112, "height": 113}
{"label": "bottom right player 2", "x": 41, "y": 19, "width": 112, "height": 113}
{"label": "bottom right dog", "x": 41, "y": 19, "width": 112, "height": 113}
{"label": "bottom right", "x": 41, "y": 19, "width": 112, "height": 113}
Rect(x=41, y=19, w=112, h=113)
{"bbox_xywh": [41, 19, 112, 113]}
(x, y, width, height) = (41, 19, 112, 113)
[x1, y1, x2, y2] = [41, 19, 153, 132]
[ymin, xmin, ymax, xmax]: [19, 41, 132, 153]
In [x_min, y_min, x_max, y_max] format, the bounding box is [41, 19, 153, 132].
x1: 41, y1: 19, x2: 153, y2: 132
x1=41 y1=19 x2=153 y2=132
x1 is 41, y1 is 19, x2 is 153 and y2 is 132
x1, y1, x2, y2 are 41, 19, 153 and 132
x_min = 41, y_min = 19, x_max = 153, y_max = 132
<box x1="41" y1="19" x2="153" y2="132"/>
$x_{1} = 41, y_{1} = 19, x_{2} = 153, y_{2} = 132$
$x_{\min} = 41, y_{\min} = 19, x_{\max} = 153, y_{\max} = 132$
{"top_left": [41, 19], "bottom_right": [153, 132]}
{"top_left": [41, 19], "label": "bottom right dog", "bottom_right": [153, 132]}
{"topLeft": {"x": 41, "y": 19}, "bottomRight": {"y": 132, "x": 153}}
{"bottom_right": {"y": 132, "x": 153}, "top_left": {"y": 19, "x": 41}}
{"top_left": {"x1": 41, "y1": 19}, "bottom_right": {"x2": 153, "y2": 132}}
{"top_left_x": 41, "top_left_y": 19, "bottom_right_x": 153, "bottom_right_y": 132}
{"tl": [41, 19], "br": [153, 132]}
top-left (41, 19), bottom-right (153, 132)
bottom-right (153, 132), top-left (41, 19)
Top-left: 41, 19; bottom-right: 153, 132
Top-left: x = 41, y = 19; bottom-right: x = 153, y = 132
- Top left corner coordinates: (41, 19) - Bottom right corner coordinates: (153, 132)
The top-left corner coordinates are x=41, y=19, and the bottom-right ones x=153, y=132.
top-left x-coordinate: 41, y-coordinate: 19, bottom-right x-coordinate: 153, y-coordinate: 132
The upper left corner of the box is (41, 19) and the lower right corner is (153, 132).
top-left (x1, y1) = (41, 19), bottom-right (x2, y2) = (153, 132)
(x1, y1) = (41, 19) and (x2, y2) = (153, 132)
top right (153, 19), bottom left (41, 132)
Upper-left: (41, 19), width: 112, height: 113
<|box_start|>(41,19),(153,132)<|box_end|>
<|object_ref_start|>dog 2<|object_ref_end|><|box_start|>(41,19),(153,132)<|box_end|>
the dog(41,19),(153,132)
(41, 19) - (153, 132)
(41,19)–(153,132)
(41, 19) → (153, 132)
(41, 19) to (153, 132)
It goes from (41, 19) to (153, 132).
It begins at (41, 19) and extends to (153, 132).
The dog at the bottom right is (41,19),(153,132)
The dog in the top left has its top-left corner at (41, 19) and extends to (153, 132).
[[41, 19], [153, 132]]
[(41, 19), (153, 132)]
{"bbox": [[41, 19], [153, 132]]}
<box>[41, 19, 153, 132]</box>
<ref>dog 2</ref><box>[[41, 19, 153, 132]]</box>
<bbox>41, 19, 153, 132</bbox>
\boxed{[41, 19, 153, 132]}
\boxed{41, 19, 153, 132}
$[41, 19, 153, 132]$
$\left[41, 19, 153, 132\right]$
$\left(41, 19\right), \left(153, 132\right)$
\[ [41,\, 19,\, 153,\, 132] \]
$$\boxed{\text{[41, 19, 153, 132]}}$$
【41，19，153，132】
（41，19），（153，132）
［４１，１９，１５３，１３２］
左上角(41, 19)，右下角(153, 132)
狗的边界框是[41, 19, 153, 132]。
""".strip().split("\n")


@pytest.mark.parametrize("text", SAY_IT)
def test_every_spelling_is_read(text):
    assert boxes.read_box(text) == [41, 19, 153, 132]
    assert boxes.read_box(text.replace(" ", "\n")) in ([41, 19, 153, 132], None)
    assert accuracy_reward(f"<answer>{text}</answer>", row("[40.0, 20.5, 152.7, 133.0]")) == 1
    assert accuracy_reward(f"<answer>{text}</answer>", row("[160, 20.5, 252.7, 133.0]")) == 0


@pytest.mark.parametrize(
    "text, want",
    [
        ("[1, 2.5, 3, .4]", [1, 2.5, 3, 0.4]),
        ("[-1, 2, -3.5, 4]", [-1, 2, -3.5, 4]),
        ("[3, 4, 1, 2]", [3, 4, 1, 2]),  # corners exchanged, or a width: has no area, so earns nothing
        ("[123456789, 2, 3, 4]", [123456789, 2, 3, 4]),
        ("[1234567890, 2, 3, 4]", None),  # beyond any image
        ("[1, 1234567890, 2, 3, 4]", None),  # no box even without that number
        ("[1234567890, 1, 2, 3, 4]", None),
        ("a " * 2000 + "[1, 2, 3, 4]", None),  # nobody answers at such a length
        ("[" + "9" * 400 + ", 2, 3, 4]", None),  # an integer that no float holds
        ("[1, 2, 3]", None),
        ("[1, 2, 3, 4, 5]", None),
        ("[1, 2, 3, 4, 5], [1, 2, 3, 4]", None),
        ("[NaN, 2, 3, 4]", None),
        ("[true, 2, 3, 4]", None),
        ("[1.2.3, 2, 3, 4]", None),
        ("[12%, 20%, 50%, 90%]", None),
        ("640x480, 2, 3, 4", None),
        ("1 + 2, 3, 4", None),
        ("", None),
        ("__import__('os').system('true')", None),
        ("[" * 5000, None),
        # several boxes
        ("[1, 2, 3, 4], [1, 2, 3, 5]", None),
        ("[[1, 2, 3, 4], [1, 2, 3, 5]]", None),
        ("[1, 2, 3, 4] or (1, 2), (3, 5)", None),
        ("1, 2, 3, 4, 1, 2, 3, 5", None),
        ("(1, 2), (3, 4), (1, 2), (3, 5)", None),
        ("(1, 2), (3, 4), (1, 2), (3, 4)", [1, 2, 3, 4]),
        ('[{"x1": 1, "y1": 2, "x2": 3, "y2": 4}, {"x1": 1, "y1": 2, "x2": 3, "y2": 4}]', [1, 2, 3, 4]),
        ('[{"x1": 1, "y1": 2, "x2": 3, "y2": 4}, {"x1": 1, "y1": 2, "x2": 3, "y2": 5}]', None),
        ('[{"x1": 1, "y1": 2, "x2": 3, "y2": 4}, {"x1": 1, "y1": 5, "x2": 6, "y2": 7}]', None),
        ('[{"x1": 1, "y1": 2, "x2": 3, "y2": 4}, {"x1": 9, "y1": 5, "x2": 16, "y2": 7}]', None),
        ("top-left (1, 2), bottom-right (3, 4), bottom-right (3, 5)", None),
        ("top-left (1, 2), bottom-right (3, 4), (5, 6)", None),
        ("x1: 1, y1: 2, x2: 3, y2: 4, or [1, 2, 3, 5]", None),
        # parts of a box
        ("(1, 2)", None),
        ("(1, 2), (3, 4), (5, 6)", None),
        ("(1, 2) is the centre, (3, 4)", None),
        ("1, 2 to 3, 4", None),
        ("top-left (1, 2)", None),
        ("top-left (1, 2), top-right (3, 2)", None),
        ("x1: 1, y1: 2, x2: 3", None),
        ('{"x": 1, "y": 2}', None),
        ('{"x": 1, "y": 2, "width": 3}', None),
        ('{"x_center": 5, "y_center": 5, "width": 2, "height": 2}', None),
        ("[x1, x1, x2, y2]: [1, 2, 3, 4]", None),  # the order that it names is none
        ("x1 1, y1 2, x2 3, y2 4", None),
        ("x1 1; y1: 2, x2: 3, y2: 4", None),
        ("x1: 1, y1 2, x2 3, y2 4", None),
        ("in x1 1 in y1 2 in x2 3 in y2 4", None),
        ("(5) x1 1, y1 2, x2 3, y2 4", None),
        ("left dog: 1, top dog: 2, right dog: 3, bottom dog: 4", None),
        # names that say nothing of these numbers
        ("the top dog, left of the right one, at the bottom: [1, 2, 3, 4]", [1, 2, 3, 4]),
        ("x1: 1, x2: 3, y1: 2, y2: 4, so [1, 2, 3, 4]", [1, 2, 3, 4]),
        ("the dog to the left, 1 of 2: [1, 2, 3, 4]", [1, 2, 3, 4]),
        ("width: 640, height: 480, box: [1, 2, 3, 4]", [1, 2, 3, 4]),
        ("top, left: the dog. [1, 2, 3, 4]", [1, 2, 3, 4]),
        ("left: [1, 2, 3, 4]", [1, 2, 3, 4]),
        ("leftmost: (1, 2), (3, 4)", [1, 2, 3, 4]),
        ("top-left of the 2 dogs, (1, 2), bottom-right (3, 4)", None),
    ],
)
def test_read_box(text, want):
    assert boxes.read_box(text) == want


def test_items_of_a_text():
    assert items_of("Box: [1, 2]") == [
        ("word", "box"),
        ("says", ":"),
        ("open", "["),
        ("run", [1, 2]),
        ("joint", "]"),
    ]
    assert items_of("top left x: 1% 2") == [("corner", ("x1", "y1")), ("side", "x1"), ("says", ":")] + [
        ("run", [None, 2])
    ]


KEYED = [
    {"bbox_2d": [41, 19, 153, 132], "label": "left dog", "score": 0.9},
    {"x1": 41, "y1": 19, "x2": 153, "y2": 132},
    {"xmin": 41, "ymin": 19, "xmax": 153, "ymax": 132, "label": "top right"},
    {"left": 41, "top": 19, "right": 153, "bottom": 132},
    {"x": 41, "y": 19, "width": 112, "height": 113, "label": "dog at the bottom right"},
    {"label": "bottom right player 2", "left": 41, "top": 19, "width": 112, "height": 113},
    {"top_left": [41, 19], "bottom_right": [153, 132], "label": "bottom right dog"},
    {"top_right": [153, 19], "bottom_left": [41, 132]},
    {"top_left": {"x": 41, "y": 19}, "bottom_right": {"y": 132, "x": 153}},
]


@pytest.mark.parametrize("keyed", KEYED, ids=str)
def test_the_order_of_keys_does_not_matter(keyed):
    for items in itertools.permutations(keyed.items()):
        for text in (json.dumps(dict(items)), str(dict(items)), json.dumps([dict(items)], indent=2)):
            assert boxes.read_box(text) == [41, 19, 153, 132], text


# -----------------------------------------------------------------------------
# comparing
# -----------------------------------------------------------------------------


def test_iou_equals_torchvision_on_random_boxes():
    import torch
    from torchvision.ops import box_iou

    corners = torch.rand(2, 10_000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 100
    low = torch.minimum(corners[..., :2], corners[..., 2:])
    high = torch.maximum(corners[..., :2], corners[..., 2:])
    a, b = torch.cat([low, high], -1)
    reference = [box_iou(a[i : i + 100], b[i : i + 100]).diagonal() for i in range(0, 10_000, 100)]
    ours = [boxes.iou(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert (torch.tensor(ours, dtype=torch.float64) - torch.cat(reference)).abs().max() < 1e-12


def test_iou_by_hand():
    assert boxes.iou([0, 0, 2, 2], [1, 1, 3, 3]) == 1 / 7 and boxes.iou([0, 0, 1, 1], [1, 0, 2, 1]) == 0
    assert boxes.iou([0, 0, 0, 0], [0, 0, 0, 0]) == 0 and boxes.iou([2, 2, 0, 0], [0, 0, 2, 2]) == 0


def test_the_overlap_must_be_over_one_half():
    assert boxes.same_box("[0, 0, 3, 2]", "[0, 0, 2, 2]") and not boxes.same_box(
        "[0, 0, 4, 2]", "[0, 0, 2, 2]"
    )
    assert boxes.box_overlap("[0, 0, 4, 2]", "[0, 0, 2, 2]") == 0.5
    assert boxes.box_overlap("[0, 0, 4, 2]", "none") == boxes.box_overlap("none", "[0, 0, 2, 2]") == 0


def test_exchanged_corners_earn_nothing_unless_they_are_named():
    truth = row("[41, 19, 153, 132]")
    assert accuracy_reward("<answer>[153, 132, 41, 19]</answer>", truth) == 0
    assert accuracy_reward("<answer>(153, 132), (41, 19)</answer>", truth) == 0
    assert accuracy_reward("<answer>bottom-right (153, 132), top-left (41, 19)</answer>", truth) == 1


def test_boxes_are_rescaled_from_the_policys_frame():
    truth = row("[64, 48, 320, 240]") | {"image_size": (640, 480)}
    thousandths = truth | {"box_frame": (1000, 1000)}  # Qwen2-VL
    halved = truth | {"box_frame": (320, 240)}
    assert accuracy_reward("<answer>[100, 100, 500, 500]</answer>", thousandths) == 1
    assert accuracy_reward("<answer>[32, 24, 160, 120]</answer>", halved) == 1
    # no frame known: pixels of the image
    assert accuracy_reward("<answer>[100, 100, 500, 500]</answer>", truth) == 0
    assert rewards.iou_reward("<answer>[100, 100, 500, 500]</answer>", thousandths) == 1.0


def test_fractions_are_parts_of_the_image():
    truth = row("[64, 48, 320, 240]") | {"image_size": (640, 480)}
    for frame in (None, (1000, 1000), (320, 240)):  # whatever else the policy speaks in
        assert iou_reward("<answer>[0.1, 0.1, 0.5, 0.5]</answer>", truth | {"box_frame": frame}) == 1
    assert iou_reward("<answer>[0.1, 0.1, 0.5, 0.5]</answer>", row("[64, 48, 320, 240]")) == 0
    assert iou_reward("<answer>[0.1, 0.1, 0.5, 0.5]</answer>", row("[0.1, 0.1, 0.5, 0.5]")) == 1
    # a reference in fractions
    assert (
        iou_reward("<answer>[64, 48, 320, 240]</answer>", truth | {"solution": "[0.1, 0.1, 0.5, 0.5]"}) == 1
    )
    # whole numbers are pixels, even where the whole image may be meant
    assert iou_reward("<answer>[0, 0, 1, 1]</answer>", truth | {"solution": "[0, 0, 640, 480]"}) < 0.01
    assert iou_reward("<answer>[0, 0, 1, 0.5]</answer>", truth | {"solution": "[0, 0, 640, 240]"}) == 1
    assert iou_reward("<answer>[0.5, 0.5, 1.5, 1.5]</answer>", truth | {"solution": "[1, 1, 2, 2]"}) == 1 / 7
    assert iou_reward("<answer>[-0.5, 0, 0.5, 1]</answer>", truth | {"solution": "[-0.5, 0, 0.5, 1]"}) == 1


# -----------------------------------------------------------------------------
# without a tag, in evaluation only
# -----------------------------------------------------------------------------

DOG = [41, 19, 153, 132]


@pytest.mark.parametrize(
    "completion, want",
    [
        ("[41, 19, 153, 132]", "[41, 19, 153, 132]"),
        ("Sure! Let me look.\nIt is [41, 19, 153, 132]. Do you need more?", "It is [41, 19, 153, 132]."),
        ('```json\n[\n\t{"bbox_2d": [41, 19, 153, 132]}\n]\n```', '[ {"bbox_2d": [41, 19, 153, 132]} ]'),
        ('```json\n[\n\t{"bbox_2d": [41, 19, 153, 132], "lab', '[ {"bbox_2d": [41, 19, 153, 132], "lab'),
        (
            "The box:\n- x1: 41\n- y1: 19\n- x2: 153\n- y2: 132\n",
            "The box:\n- x1: 41\n- y1: 19\n- x2: 153\n- y2: 132",
        ),
        # behind the reasoning, unless it was cut off there
        ("<think>[1, 2, 30, 40]?</think>[41, 19, 153, 132]", "[41, 19, 153, 132]"),
        ("<think>It is [41, 19, 153, 132]</think>\n<answer>\n", "<think>It is [41, 19, 153, 132]"),
        ("[1, 2, 30, 40]? <answer>[41, 19, 153, 132]", "[41, 19, 153, 132]"),
        # a conclusion
        ("The man: [1, 2, 30, 40]. So it is [41, 19, 153, 132].", "So it is [41, 19, 153, 132]."),
        ("[1, 2, 30, 40] or [41, 19, 153, 132]: \\boxed{41, 19, 153, 132}", "\\boxed{41, 19, 153, 132}"),
        ("Of [1, 2, 30, 40] and [41, 19, 153, 132] the answer is [41, 19, 153, 132].", None),
        ("I see [1, 2, 30, 40].\n**Final answer:**\n[41, 19, 153, 132]", "[41, 19, 153, 132]"),
        ("The answer is [41, 19, 153, 132]. Not [1, 2, 30, 40].", "The answer is [41, 19, 153, 132]."),
        ("The answer: [1, 2, 30, 40]. No! The answer: [41, 19, 153, 132]. Not [1, 2, 30, 40].", None),
        ("The answer is [1, 2, 30, 40]. No! The answer is [41, 19, 153, 132].", None),
        ("[1, 2, 30, 40]? Therefore: [41, 19, 153, 132]. So it is done.", None),
        (
            "The man: [1, 2, 30, 40].\nHence the corners:\n- top-left (41, 19)\n- bottom-right (153, 132)",
            None,
        ),
        # nothing but a box, behind prose
        ("The man is at [1, 2, 30, 40].\n\n[41, 19, 153, 132]", "[41, 19, 153, 132]"),
        (
            'The man is at [1, 2, 30, 40].\n```json\n{"bbox_2d": [41, 19, 153, 132], "label": "dog on mat"}',
            None,
        ),
        ("The man is at [1, 2, 30, 40].\n- [41, 19, 153, 132]\n- [41, 19, 153, 132]", "- [41, 19, 153, 132]"),
        ("The man is at [1, 2, 30, 40].\n- [41, 19, 153, 132]\n- (41, 19), (153, 132)", None),
        ("He is at [1, 2, 30, 40].\n<ref>the dog on it</ref><box>[[41, 19, 153, 132]]</box>", None),
        (
            "He is at [1, 2, 30, 40].\n<|object_ref_start|>the dog on it<|object_ref_end|>"
            "<|box_start|>(41,19),(153,132)<|box_end|>",
            None,
        ),
        # what is said of a bounding box
        ("The man is at [1, 2, 30, 40]. The bounding box of the dog is [41, 19, 153, 132].", None),
        (
            'The man: [1, 2, 30, 40].\nThe bounding box is:\n```json\n{"bbox_2d": [41, 19, 153, 132]}\n```',
            None,
        ),
        ("那个人在[1, 2, 30, 40]。狗的边界框是[41, 19, 153, 132]。", None),
    ],
)
def test_said_box(completion, want):
    said = boxes.said_box(completion)
    assert boxes.read_box(said) == DOG
    assert want is None or said == want
    assert score(completion, row("[40, 20, 150, 130]"), strict=False)["accuracy"] == 1
    assert score(completion, row("[1, 2, 30, 40]"), strict=False)["accuracy"] == 0
    assert score(completion, row("[40, 20, 150, 130]"), strict=True)["accuracy"] == 0


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "I see no dog.",
        "There are 2 dogs at (41, 19).",
        "[1, 2, 30, 40]\n[41, 19, 153, 132]",
        "1. [1, 2, 30, 40]\n2. [41, 19, 153, 132]",
        '[{"bbox_2d": [1, 2, 30, 40]},\n {"bbox_2d": [41, 19, 153, 132]}]',
        '```json\n[\n\t{"bbox_2d": [1, 2, 30, 40]},\n\t{"bbox_2d": [41, 19, 153, 132]}\n]\n```',
        '```json\n{"bbox_2d": [1, 2, 30, 40]}\n```\n```json\n{"bbox_2d": [41, 19, 153, 132]}\n```',
        "```json [1, 2, 30, 40]```\n```json\n[41, 19, 153, 132]```",
        "The left dog is at [1, 2, 30, 40]. The right dog is at [41, 19, 153, 132].",
        "The box of the left dog is [1, 2, 30, 40]. The box of the right dog is [41, 19, 153, 132].",
        "The box of the dog is [41, 19, 153, 132]. Or is it [1, 2, 30, 40]?",
        "[41, 19, 153, 132]\nOr is it at [1, 2, 30, 40]?",
        "The answer is [1, 2, 30, 40] or [41, 19, 153, 132].",
        "So the dog is at [1, 2, 30, 40]. The other one is at [41, 19, 153, 132].",
        "\\boxed{[1, 2, 30, 40], [41, 19, 153, 132]}",
        "<think>[1, 2, 30, 40], [41, 19, 153, 132]</think>",
        "<think>It is [41, 19, 153, 132].</think> I cannot say.",
    ],
)
def test_several_boxes_are_no_answer(completion):
    assert boxes.said_box(completion) is None
    for solution in ("[1, 2, 30, 40]", "[41, 19, 153, 132]"):
        assert score(completion, row(solution), strict=False)["accuracy"] == 0


# ten ways in which models that were never asked for tags answer; the frame in which they speak
UNTRAINED = {
    "Qwen2-VL": ("the dog({0},{1}),({2},{3})", (1000, 1000)),
    "Qwen2-VL with tokens": (
        "<|object_ref_start|>the dog<|object_ref_end|><|box_start|>({0},{1}),({2},{3})<|box_end|>",
        (1000, 1000),
    ),
    "Qwen2.5-VL": (
        '```json\n[\n\t{{"bbox_2d": [{0}, {1}, {2}, {3}], "label": "the dog on the left"}}\n]\n```',
        (644, 476),
    ),
    "Qwen2.5-VL at the length limit": (
        '```json\n[\n\t{{"bbox_2d": [{0}, {1}, {2}, {3}], "label": "the dog',
        (644, 476),
    ),
    "Qwen3-VL": ('{{"bbox_2d": [{0}, {1}, {2}, {3}], "label": "dog 2"}}', (1000, 1000)),
    "LLaVA": ("[{0}, {1}, {2}, {3}]", (1, 1)),
    "InternVL": ("<ref>the dog</ref><box>[[{0}, {1}, {2}, {3}]]</box>", (1000, 1000)),
    "points": ("({0}, {1}) - ({2}, {3})", (640, 480)),
    "corners": ("- **Top-left corner**: ({0}, {1})\n- **Bottom-right corner**: ({2}, {3})", (640, 480)),
    "names": ('{{\n  "x_min": {0},\n  "y_min": {1},\n  "x_max": {2},\n  "y_max": {3}\n}}', (640, 480)),
}
AROUND = (
    "{}",
    "The bounding box of the dog is:\n\n{}",
    "Sure! Here are the coordinates of the dog on the left: {}",
    "Looking at the picture, I see 2 dogs and a man at [1, 1, 9, 9].\n\nTherefore, the bounding box is\n{}",
    "<think>\nThe dog may be at [2, 2, 9, 9] or [1, 1, 9, 9].\n</think>\n\n{}",
)


def test_two_hundred_outputs_of_untrained_models_are_read():
    dice = random.Random(0)
    read = 0
    for (spelling, frame), around in itertools.product(UNTRAINED.values(), AROUND):
        for _ in range(4):
            x1, y1 = dice.randint(20, 400), dice.randint(20, 300)
            truth = [x1, y1, x1 + dice.randint(60, 200), y1 + dice.randint(60, 160)]
            said = boxes.scale_box(truth, (640, 480), frame)
            said = [round(x, 3) if frame == (1, 1) else round(x) for x in said]
            output = around.format(spelling.format(*said))
            asked = row(json.dumps(truth)) | {"image_size": (640, 480), "box_frame": frame}
            assert boxes.read_box(boxes.said_box(output)) == said, output
            assert score(output, asked, strict=False)["accuracy"] == 1, output
            assert score(output, asked, strict=True)["accuracy"] == 0
            other = asked | {"solution": json.dumps([x + 300 for x in truth])}
            assert score(output, other, strict=False)["accuracy"] == 0
            read += 1
    assert read == 200


# -----------------------------------------------------------------------------
# what must hold for any text
# -----------------------------------------------------------------------------

SPELLINGS = [spelling for spelling, _ in UNTRAINED.values()]
SPELLINGS += ["{0}, {1}, {2}, {3}", "x1 = {0}, y1 = {1}, x2 = {2}, y2 = {3}", "from ({0}, {1}) to ({2}, {3})"]
SPELLINGS += ['{{"bottom_right": {{"y": {3}, "x": {2}}}, "top_left": {{"x": {0}, "y": {1}}}}}']
SIDE = st.integers(1, 300)
BOX = st.builds(lambda x, y, w, h: [x, y, x + w, y + h], st.integers(0, 400), st.integers(0, 400), SIDE, SIDE)
SPELLED = st.builds(lambda box, spelling: spelling.format(*box), BOX, st.sampled_from(SPELLINGS))
PIECE = st.one_of(SPELLED, st.sampled_from([" or ", ", ", "\n", "left", "So", "x1: 5", "(1, 2)", "]", "top"]))
ANY_TEXT = st.one_of(st.text(max_size=100), st.lists(PIECE, max_size=5).map("".join))


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT, BOX, BOX)
def test_no_text_is_paid_for_two_boxes_that_are_apart(text, a, b):
    """1 - IoU is a distance, so no box is close to two that are far from each other."""
    completion = f"<answer>{text}</answer>"
    rows = [row(json.dumps(box)) for box in (a, b)]
    for strict in (True, False):
        first, second = (iou_reward(completion if strict else text, asked, strict) for asked in rows)
        assert first + second <= 1 + boxes.iou(a, b) + 1e-9
    if boxes.iou(a, b) == 0:
        assert sum(accuracy_reward(completion, asked) for asked in rows) <= 1


@settings(max_examples=300, deadline=None)
@given(
    BOX, BOX, st.sampled_from(SPELLINGS), st.sampled_from(SPELLINGS), st.sampled_from(["\n", " or ", "; "])
)
def test_two_boxes_are_never_one(a, b, spelling, other_spelling, between):
    text = spelling.format(*a) + between + other_spelling.format(*b)
    read = boxes.read_box(text)
    assert read is None or a == b == read
    if a == b and between != " or ":
        assert boxes.said_box(text) is not None or read is None


DECORATIONS = ("{}", " {} ", "{}.", "${}$", "**{}**", "\\boxed{{{}}}", "`{}`", "\n{}\n", "It is {}")


@settings(max_examples=200, deadline=None)
@given(BOX, st.sampled_from(SPELLINGS), st.sampled_from(DECORATIONS), BOX)
def test_decoration_changes_nothing(box, spelling, decoration, reference):
    plain = spelling.format(*box)
    asked = row(json.dumps(reference))
    decorated = decoration.format(plain)
    assert boxes.read_box(decorated) == boxes.read_box(plain) == box
    want = accuracy_reward(f"<answer>{plain}</answer>", asked)
    assert accuracy_reward(f"<answer>{decorated}</answer>", asked) == want
    assert accuracy_reward(decorated, asked, strict=False) == want


HOSTILE = ["[", "(", "a", "1", "1,", "(1,2),", "[1,2,3,4]", '{"x1":', "top left ", "-", " ", "\n", "x_{", "'"]
HOSTILE += ['"', "So ", "the answer is [1,2,3,4] ", ".1", "1.", "px ", "1 px ", "\ufdfa", "</think>", "<ref>"]
HOSTILE += ["\ud800", "x1: 1, ", "[1,2,3,4]\nSo\n", "answer:", "aa aa ", "top-", "\\left", "٣,", "½,"]


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_texts_are_quick(piece):
    for text in (piece * 20_000, f"{piece * 500}[1, 2, 3, 4]", f"[1, 2, 3, 4]{piece * 20_000}"):
        started = time.process_time()
        box = boxes.read_box(text)
        said = boxes.said_box(text)
        assert time.process_time() - started < 0.3
        assert box is None or len(box) == 4
        assert said is None or isinstance(said, str)
