"""Draws assets/packed_group.png, the README's picture of a packed group.

A strip with the tokens of a group and their positions; below it a grid: which token attends to which.

    python assets/draw_packed_group.py
"""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

# (name, colour, tokens): a prompt and its G = 3 completions, in the order in which they stand end to end
SEGMENTS = (
    ("prompt", "#6b7280", 4),
    ("$c_1$", "#0072B2", 3),
    ("$c_2$", "#D55E00", 4),
    ("$c_3$", "#009E73", 2),
)
PROMPT = 0
INK, EMPTY = "#1f2937", "#f1f2f4"

# for every token: which segment it belongs to, and its position index
segment_of, position_of = [], []
for number, (_, _, length) in enumerate(SEGMENTS):
    prompt_length = SEGMENTS[PROMPT][2]
    first = 0 if number == PROMPT else prompt_length  # every completion goes on from the prompt
    segment_of += [number] * length
    position_of += range(first, first + length)
TOKENS = len(segment_of)


def attends(query: int, key: int) -> bool:
    """A token sees its prompt and its own segment, and nothing that comes later."""
    own_segment = segment_of[key] == segment_of[query]
    return key <= query and (own_segment or segment_of[key] == PROMPT)


def box(ax, x: float, y: float, color: str) -> None:
    """A square of the grid, with a little air round it."""
    ax.add_patch(Rectangle((x + 0.05, y + 0.05), 0.9, 0.9, facecolor=color, linewidth=0))


def draw() -> Figure:
    """The picture; x counts tokens from left to right, y from top to bottom, and the strip has y < 0."""
    figure = Figure(figsize=(6.4, 7.05), facecolor="white")
    ax = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    ax.set_xlim(-2.9, TOKENS + 0.4)
    ax.set_ylim(TOKENS + 0.4, -4.6)
    ax.set_aspect("equal")
    ax.axis("off")
    ax.text(0.05, -3.9, "a prompt and its completions, end to end", color=INK, fontsize=13, va="center")
    ax.text(0.05, -0.5, "row by row: what a token attends to", color=INK, fontsize=13, va="center")

    # the strip: one box a token, with its position in it
    ax.text(-0.2, -1.7, "position", color=INK, fontsize=13, ha="right", va="center")
    for place, position in enumerate(position_of):
        box(ax, place, -2.2, SEGMENTS[segment_of[place]][1])
        ax.text(place + 0.5, -1.7, str(position), color="white", fontsize=15, ha="center", va="center")

    # names of the segments, above the strip and to the left of the grid
    first = 0
    for name, color, length in SEGMENTS:
        middle = first + length / 2
        ax.text(middle, -2.8, name, color=color, fontsize=17, ha="center", va="center")
        ax.text(-0.3, middle, name, color=color, fontsize=17, ha="right", va="center")
        first += length

    # the grid: filled, in the colour of what is seen, where a token attends
    for query in range(TOKENS):
        for key in range(TOKENS):
            color = SEGMENTS[segment_of[key]][1] if attends(query, key) else EMPTY
            box(ax, key, query, color)
    return figure


if __name__ == "__main__":
    draw().savefig(Path(__file__).with_name("packed_group.png"), dpi=200)
