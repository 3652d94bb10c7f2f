"""Boxes: how they are read and compared."""

import sys
from pathlib import Path

import pytest

ROOT = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, ROOT)
import rewards  # noqa: E402
from rewards import accuracy_reward  # noqa: E402
from tasks.grading import boxes  # noqa: E402


def row(solution, task):
    return {"problem": "?", "solution": solution, "task": task}


@pytest.mark.parametrize(
    "text, want",
    [
        ("[1, 2, 3, 4]", [1, 2, 3, 4]),
        ('{"bbox_2d": [1, 2.5, 3, 4], "label": "cat"}', [1, 2.5, 3, 4]),
        ("1, 2, 3, 4", [1, 2, 3, 4]),
        ('```json\n[{"bbox_2d": [1, 2, 3, 4]}]\n```', [1, 2, 3, 4]),
        ("(1,2),(3,4)", [1, 2, 3, 4]),
        ("the box is [1, 2, 3, 4].", [1, 2, 3, 4]),
        ("<|box_start|>(1,2),(3,4)<|box_end|>", [1, 2, 3, 4]),
        ("[[1, 2, 3, 4], [1, 2, 3, 4]]", [1, 2, 3, 4]),
        ("[[1, 2, 3, 4], [1, 2, 3, 5]]", None),
        ("[1, 2, 3]", None),
        ("", None),
        ("[NaN, 2, 3, 4]", None),
        ("[true, 2, 3, 4]", None),
        ("__import__('os').system('true')", None),
        ("[" * 5000, None),
        ("[" + "9" * 400 + ", 2, 3, 4]", None),  # an integer that no float holds
    ],
)
def test_read_box(text, want):
    assert boxes.read_box(text) == want


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


def test_boxes_are_rescaled_from_the_policys_frame():
    truth = row("[64, 48, 320, 240]", "grounding") | {"image_size": (640, 480)}
    thousandths = truth | {"box_frame": (1000, 1000)}  # Qwen2-VL
    halved = truth | {"box_frame": (320, 240)}
    assert accuracy_reward("<answer>[100, 100, 500, 500]</answer>", thousandths) == 1
    assert accuracy_reward("<answer>[32, 24, 160, 120]</answer>", halved) == 1
    # no frame known: pixels of the image
    assert accuracy_reward("<answer>[100, 100, 500, 500]</answer>", truth) == 0
    assert rewards.iou_reward("<answer>[100, 100, 500, 500]</answer>", thousandths) == 1.0
