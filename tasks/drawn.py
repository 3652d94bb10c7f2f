"""Drawn scenes as a data set: records that are drawn when they are asked for (tasks/scenes.py draws them)."""

import random
from urllib.parse import parse_qsl

from PIL import Image

from tasks import scenes


class SceneRecords:
    """`rows` drawn scenes as records; scene i is the same for ever, so nothing has to be stored.

    Raises ValueError for options that no scene can have, and for a scene that cannot be asked.
    """

    column_names = ("id", "images", "problem", "solution", "thinking", "task", "labels")

    def __init__(
        self,
        split: str,
        rows: int = 1000,
        seed: int = 0,
        layout: str = "free",
        objects: str = "3-10",
        size: str = "",
        family: str = "count_all",
        miss: float = 0.0,
        jitter: float = 0.0,
        first: int = 0,
    ):
        # the options of a source arrive as text
        self.split = split
        self.rows = int(rows)
        self.seed = int(seed)
        self.family = family
        self.first = int(first)
        self.miss = float(miss)
        self.jitter = float(jitter)
        low, _, high = objects.partition("-")
        self.sample = {
            "layout": layout,
            "min_objects": int(low),
            "max_objects": int(high or low),
            "size": tuple(int(side) for side in size.split("x")) if size else None,
        }
        scenes.sample_scene(0, split=split, **self.sample)  # ValueError now rather than in mid-run
        if family not in scenes.FAMILIES:
            raise ValueError(f"family '{family}' is none of {', '.join(scenes.FAMILIES)}")

    def __len__(self):
        return self.rows

    def scene(self, i: int) -> dict:
        """The scene graph of row i."""
        return scenes.sample_scene(self.seed * 1_000_000 + self.first + i, split=self.split, **self.sample)

    def __getitem__(self, i: int) -> dict:
        number = self.first + i
        row_id = f"{self.split}/{self.seed}/{number}"
        scene = self.scene(i)
        try:
            asked = scenes.ask(scene, number, self.family)
        except ValueError as error:  # no two objects to compare, for example
            raise ValueError(f"scene {row_id}: {error}") from error
        answer = asked["answer"]
        if self.miss and self.family == "count_all":
            # the teacher overlooks small objects: its answer agrees with its list, not with the truth
            answer = str(len(scenes.described_objects(scene, self.miss)))
        image = scenes.draw_scene(scene)
        if self.jitter:
            image = change_light(image, self.jitter, random.Random(f"jitter-{self.seed}-{number}"))
        return {
            "id": row_id,
            "images": [image],
            "problem": asked["question"],
            "solution": answer,
            "thinking": scenes.describe_scene(scene, self.miss),
            "task": "count" if answer.isdigit() else "text",
            "labels": {"objects": len(scene["objects"]), "question": self.family},
        }


def change_light(image: Image.Image, jitter: float, rng: random.Random) -> Image.Image:
    """The image under another lamp: brightness by up to +-jitter, each channel by up to half of that.

    An eye that knows one lamp only is no eye.
    """
    brightness = rng.uniform(1 - jitter, 1 + jitter)
    channels = []
    for channel in image.split():
        gain = brightness * rng.uniform(1 - jitter / 2, 1 + jitter / 2)
        table = [min(255, round(value * gain)) for value in range(256)]
        channels.append(channel.point(table))
    return Image.merge("RGB", channels)


def scene_records(spec: str) -> SceneRecords:
    """The records of "scenes:clevr?rows=1000&layout=grid"."""
    split, _, query = spec.removeprefix("scenes:").partition("?")
    try:
        options = parse_qsl(query, strict_parsing=True) if query else []
        return SceneRecords(split, **dict(options))
    except (TypeError, ValueError, KeyError) as error:
        example = "scenes:clevr?rows=1000&seed=0&layout=grid&objects=1-8"
        raise SystemExit(f"data: '{spec}' is no scene source ({error}); example: {example}") from error
