"""scenes.py against things outside it: the CoGenT table, CLEVR's coordinates, slow brute-force answers."""

import itertools
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tasks import scenes
from tasks.scenes import (
    ask,
    describe_scene,
    described_objects,
    draw_scene,
    execute,
    full_description,
    sample_scene,
)

SPLITS = ("clevr", "cogent_b", "superclevr")
LAYOUTS = ("free", "grid")
# the CLEVR paper on CoGenT
ONE = {"gray", "blue", "brown", "yellow"}
TWO = {"red", "green", "purple", "cyan"}
WORDS = {
    "large": "large",
    "big": "large",
    "small": "small",
    "tiny": "small",
    "metal": "metal",
    "metallic": "metal",
    "shiny": "metal",
    "rubber": "rubber",
    "matte": "rubber",
    "block": "cube",
    "ball": "sphere",
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_arguments_same_bytes(split, layout):
    scene = sample_scene(5, split, layout)
    again = sample_scene(np.int64(5), split, layout, np.int32(3), np.int32(10))
    assert scene == again == json.loads(json.dumps(scene))
    assert scene != sample_scene(6, split, layout)
    picture = draw_scene(scene)
    for cache in (scenes.sprite, scenes.paint, scenes.render, scenes.background):
        cache.cache_clear()  # the second picture is made from nothing
    assert picture.tobytes() == draw_scene(again).tobytes()
    assert (picture.mode, picture.size) == ("RGB", (scene["width"], scene["height"]))


def test_default_and_given_sizes():
    sizes = {}
    for split in SPLITS:
        for layout in LAYOUTS:
            scene = sample_scene(0, split, layout)
            sizes[split, layout] = scene["width"], scene["height"]
    assert sizes["clevr", "free"] == (480, 320) and sizes["superclevr", "free"] == (640, 480)
    assert sizes["clevr", "grid"] == (112, 112) and sizes["superclevr", "grid"] == (140, 112)
    assert draw_scene(sample_scene(0, layout="grid", size=(224, 168))).size == (224, 168)


@pytest.mark.parametrize(("split", "cube", "cylinder"), [("clevr", ONE, TWO), ("cogent_b", TWO, ONE)])
def test_cogent_colours(split, cube, cylinder):
    seen = {"cube": set(), "cylinder": set(), "sphere": set()}
    for seed in range(300):
        for obj in sample_scene(seed, split, "grid")["objects"]:
            seen[obj["shape"]].add(obj["color"])
    assert seen == {"cube": cube, "cylinder": cylinder, "sphere": ONE | TWO}


def test_superclevr_is_out_of_distribution():
    colors, shapes = set(), set()
    for seed in range(100):
        for obj in sample_scene(seed, "superclevr", "grid")["objects"]:
            colors.add(obj["color"])
            shapes.add(obj["shape"])
    assert not shapes & {"cube", "sphere", "cylinder"}
    assert len(shapes) >= 5
    assert 0 < len(colors & (ONE | TWO)) < len(colors)


@pytest.mark.parametrize(("layout", "number"), [("free", 150), ("grid", 400)])
def test_every_count_occurs(layout, number):
    counts = Counter(len(sample_scene(seed, layout=layout)["objects"]) for seed in range(number))
    assert set(counts) == set(range(3, 11))
    assert min(counts.values()) > number / 8 / 3  # about uniform
    few = [sample_scene(seed, layout=layout, min_objects=1, max_objects=2) for seed in range(20)]
    assert {len(scene["objects"]) for scene in few} == {1, 2}


def test_no_objects_at_all():
    for layout in LAYOUTS:
        scene = sample_scene(0, layout=layout, min_objects=0, max_objects=0)
        assert scene["objects"] == [] and ask(scene, 0)["answer"] == "0"


def test_too_many_objects_are_refused():
    with pytest.raises(ValueError, match="no room for 40 objects"):
        sample_scene(0, min_objects=40, max_objects=40)


def test_camera_matches_published_coordinates():
    # 3d_coords and pixel_coords of objects in pictures that CLEVR's generator made, 320x240. It moves its
    # camera by up to half a unit along each axis, so only about the same numbers can come out
    known = [
        ((-2.6735, 2.7591, 0.7), (169, 58, 13.69)),
        ((-0.9653, -0.8989, 0.7), (116, 97, 10.45)),
        ((0.4035, -1.7835, 0.7), (122, 125, 9.41)),
        ((-0.0212, 2.7837, 0.35), (220, 86, 12.27)),
    ]
    for (x, y, z), (px, py, depth) in known:
        our_px, our_py, our_depth = scenes.project(*scenes.to_camera_axes(x, y), z, 320, 240)
        assert abs(our_px - px) <= 8
        assert abs(our_py - py) <= 8
        assert abs(our_depth - depth) < 0.87


def test_free_objects_keep_their_distance():
    for seed in range(40):
        scene = sample_scene(seed)
        right, behind = np.array(scene["directions"]["right"]), np.array(scene["directions"]["behind"])
        places = [np.array(obj["3d_coords"]) for obj in scene["objects"]]
        assert np.abs(np.array(places)[:, :2]).max() <= 3  # CLEVR's ground is 6 x 6 units
        for one, other in itertools.combinations(places, 2):
            assert abs((one - other) @ right) > 0.4
            assert abs((one - other) @ behind) > 0.4


@pytest.mark.parametrize("split", SPLITS)
def test_grid_cells_and_reading_order(split):
    for seed in range(100):
        scene = sample_scene(seed, split, "grid", max_objects=16)
        cells = []
        for obj in scenes.reading_order(scene):
            x, y, _ = obj["pixel_coords"]
            cells.append((int(y / scene["height"] * 4), int(x / scene["width"] * 4)))
        assert len(set(cells)) == len(cells)
        assert cells == sorted(cells)
        assert all(0 <= row < 4 and 0 <= column < 4 for row, column in cells)


def further(scene: dict, obj: dict, name: str) -> list[float]:
    """How much further each object of a scene is in the direction `name` than obj."""
    axis = np.array(scene["directions"][name])
    return [np.subtract(other["3d_coords"], obj["3d_coords"]) @ axis for other in scene["objects"]]


def test_relations_agree_with_coordinates():
    for seed in range(60):
        scene = sample_scene(seed, layout=LAYOUTS[seed % 2])
        for name in ("left", "right", "front", "behind"):
            for i, obj in enumerate(scene["objects"]):
                slow = [j for j, gap in enumerate(further(scene, obj, name)) if gap > 0.2]
                assert slow == scene["relationships"][name][i]
    # in the picture, an object clearly to the right of another in a grid is further to the right in pixels
    scene = sample_scene(1, layout="grid")
    pixel_x = [obj["pixel_coords"][0] for obj in scene["objects"]]
    for i, right_ones in enumerate(scene["relationships"]["right"]):
        assert all(pixel_x[j] > pixel_x[i] for j in right_ones)


@pytest.mark.parametrize(
    ("split", "layout", "number"),
    [("clevr", "free", 30), ("superclevr", "free", 1), ("clevr", "grid", 60), ("superclevr", "grid", 10)],
)
def test_every_object_can_be_seen(split, layout, number):
    threshold = {"free": 150, "grid": 25}[layout]
    for seed in range(number):
        scene = sample_scene(seed, split, layout)
        full = np.asarray(draw_scene(scene)).astype(int)
        for i, obj in enumerate(scene["objects"]):
            # recoloured and not removed: its shadow must not count
            objects = list(scene["objects"])
            objects[i] = obj | {"color": "yellow" if obj["color"] != "yellow" else "blue"}
            recoloured = np.asarray(draw_scene(scene | {"objects": objects}))
            changed = np.abs(full - recoloured).max(-1) > 4
            assert changed.sum() >= threshold, (seed, obj)


def test_colour_of_the_picture_is_the_colour_of_the_object():
    for name, rgb in scenes.COLORS.items():
        look = {
            "color": name,
            "shape": "sphere",
            "size": "large",
            "material": "rubber",
            "rotation": 0.0,
            "3d_coords": [0, 0, 0.7],
            "pixel_coords": [56, 56, 11],
        }
        scene = sample_scene(0, layout="grid") | {"objects": [look]}
        middle = np.asarray(draw_scene(scene))[52:58, 52:58].mean((0, 1))
        if name == "gray":
            assert np.ptp(middle) < 8
        else:
            assert np.corrcoef(middle, rgb)[0, 1] > 0.9


def test_descriptions():
    for seed in range(60):
        scene = sample_scene(seed, layout=LAYOUTS[seed % 2])
        in_order = scenes.reading_order(scene)
        large = [obj for obj in in_order if obj["size"] == "large"]
        assert describe_scene(scene).split(", ") == [f"{obj['color']} {obj['shape']}" for obj in in_order]
        assert described_objects(scene, miss=1.0) == (large or in_order[:1])
        assert described_objects(scene, 0.3) == described_objects(scene, 0.3)
        assert len(describe_scene(scene, 0.3).split(", ")) == len(described_objects(scene, 0.3))
        assert len(full_description(scene).splitlines()) == len(scene["objects"]) + 1
    scene = sample_scene(0, layout="grid")
    assert len({len(described_objects(scene, 0.5, seed)) for seed in range(30)}) > 1
    for phrase in describe_scene(scene, words=scenes.ATTRIBUTES).split(", "):
        assert len(phrase.split()) == 4


def test_share_of_missed_objects():
    small, missed = 0, 0
    for seed in range(300):
        scene = sample_scene(seed, layout="grid", min_objects=6)
        small += sum(obj["size"] == "small" for obj in scene["objects"])
        missed += len(scene["objects"]) - len(described_objects(scene, 0.3))
    assert 0.26 < missed / small < 0.34


# -----------------------------------------------------------------------------
# answers, found again from the question's words alone: an independent, slow reading of the English
# -----------------------------------------------------------------------------


def matching(phrase: str, objects: list[dict]) -> list[dict]:
    """The objects that "small red things" means."""
    known = {*scenes.COLORS, *scenes.OOD_COLORS, *scenes.MODELS, *WORDS.values(), "thing", "object"}
    for word in phrase.split():
        singulars = (word, word.removesuffix("s"), word.removesuffix("es"))
        forms = [WORDS.get(form, form) for form in singulars]
        value = next(form for form in forms if form in known)
        if value not in ("thing", "object"):
            objects = [obj for obj in objects if value in (obj[name] for name in scenes.ATTRIBUTES)]
    return objects


def one(phrase: str, objects: list) -> dict:
    found = matching(phrase, objects)
    assert len(found) == 1, phrase
    return found[0]


def yes_or_no(truth: bool) -> str:
    return "yes" if truth else "no"


def slow_answer(question: str, scene: dict, family: str) -> str:
    objects = scene["objects"]
    words = question.lower().rstrip("?")
    if family == "count_all":
        return str(len(objects))
    if family == "count":
        words = words.removeprefix("how many ").removeprefix("what number of ").removesuffix(" are there")
        return str(len(matching(words, objects)))
    if family == "exist":
        for start in ("are there any ", "is there an ", "is there a "):
            words = words.removeprefix(start)
        return yes_or_no(len(matching(words, objects)) > 0)
    if family == "compare_number":
        return slow_comparison_of_numbers(words, objects)
    if family == "compare_attribute":
        return slow_comparison_of_attributes(words, objects)
    if family in ("query", "query_color"):
        return slow_query(words, objects)
    return slow_count_of_related(words, scene)


def slow_comparison_of_numbers(words: str, objects: list[dict]) -> str:
    kind, _, rest = words.removeprefix("are there ").removeprefix("an ").partition(" ")
    between = " and " if kind == "equal" else " than "
    things, _, others = rest.removeprefix("number of ").partition(between)
    count, other_count = len(matching(things, objects)), len(matching(others, objects))
    truths = {"more": count > other_count, "fewer": count < other_count, "equal": count == other_count}
    return yes_or_no(truths[kind])


def slow_comparison_of_attributes(words: str, objects: list[dict]) -> str:
    if words.startswith("do the "):
        thing, _, rest = words.removeprefix("do the ").partition(" and the ")
        other, _, attribute = rest.partition(" have the same ")
    else:
        attribute, _, rest = words.removeprefix("is the ").partition(" of the ")
        thing, _, other = rest.partition(f" the same as the {attribute} of the ")
        thing = thing.removesuffix(" is")
    return yes_or_no(one(thing, objects)[attribute] == one(other, objects)[attribute])


def slow_query(words: str, objects: list[dict]) -> str:
    forms = [
        ("how big is the ", "", "size"),
        ("what is the color of the ", "", "color"),
        ("what is the shape of the ", "", "shape"),
        ("what is the ", " made of", "material"),
    ]
    forms += [(f"what {attribute} is the ", "", attribute) for attribute in scenes.ATTRIBUTES]
    for start, end, attribute in forms:
        if words.startswith(start) and words.endswith(end):
            return one(words.removeprefix(start).removesuffix(end), objects)[attribute]
    raise AssertionError(words)


def slow_count_of_related(words: str, scene: dict) -> str:
    directions = {"left of": "left", "right of": "right", "in front of": "front", "behind": "behind"}
    for relation, name in directions.items():
        things, found, thing = words.removeprefix("how many ").partition(f" are {relation} the ")
        if found:
            gaps = further(scene, one(thing, scene["objects"]), name)
            related = [obj for obj, gap in zip(scene["objects"], gaps, strict=True) if gap > 0]
            return str(len(matching(things, related)))
    raise AssertionError(words)


@pytest.mark.parametrize("family", scenes.FAMILIES)
def test_answers(family):
    answers, asked = Counter(), 0
    for seed in range(300):
        layout = LAYOUTS[seed % 2] if seed < 60 else "grid"
        scene = sample_scene(seed, SPLITS[seed % 3], layout)
        try:
            made = ask(scene, seed, family)
        except ValueError:
            continue
        asked += 1
        assert made == ask(scene, np.int64(seed), family)
        assert made["family"] == family
        assert made["answer"] == str(execute(made["program"], scene))
        assert made["answer"] == slow_answer(made["question"], scene, family), made
        answers[made["answer"]] += 1
    assert asked >= 200
    if family == "query_color":
        assert set(answers) <= {*scenes.COLORS, *scenes.OOD_COLORS}
    if family in ("exist", "compare_number", "compare_attribute"):
        assert set(answers) == {"yes", "no"}
        assert 0.35 < answers["yes"] / asked < 0.65
    else:
        assert answers["0"] < 0.4 * asked
        assert len(answers) >= 5


def test_comparisons_do_not_give_the_answer_away():
    yes = {"greater_than": [], "less_than": [], "equal_integer": []}
    for seed in range(400):
        made = ask(sample_scene(seed, layout="grid"), seed, "compare_number")
        yes[made["program"][-1]["type"]].append(made["answer"] == "yes")
    for comparison, answers in yes.items():
        assert 0.35 < np.mean(answers) < 0.65, comparison


def test_wording_of_count_all():
    scene = sample_scene(0, layout="grid")
    assert {ask(scene, seed)["question"] for seed in range(20)} == {"How many items are there in the image?"}
    assert len({ask(scene, seed, vary=True)["question"] for seed in range(40)}) >= 4


def test_impossible_questions_are_refused():
    scene = sample_scene(0)
    look = {"color": "red", "shape": "cube", "size": "large", "material": "metal"}
    twins = [obj | look for obj in scene["objects"][:2]]
    scene |= {"objects": twins, "relationships": scenes.relationships(twins)}
    for family in ("query", "compare_attribute", "count_relation"):
        with pytest.raises(ValueError, match="cannot be asked"):
            ask(scene, 0, family)
    everything = {"type": "scene", "inputs": [], "value_inputs": []}
    the_one = {"type": "unique", "inputs": [0], "value_inputs": []}
    with pytest.raises(ValueError, match="not unique"):
        execute([everything, the_one], scene)
