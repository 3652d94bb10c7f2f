"""Several data sets as one, each in its share: "clevr:0.5,geoqa:0.5"."""

import bisect
import itertools
import random
import re


def seeded_order(items, seed: str, shuffle: bool) -> list:
    """The items in an order that the seed alone decides; as they are if not `shuffle`."""
    order = list(items)
    if shuffle:
        random.Random(seed).shuffle(order)
    return order


class Mixture:
    """Several sources by weight: Stream draws each in its share, and each runs through epochs of its own.

    Draw number d of all ranks together belongs to a source by a schedule: blocks in which each source has
    exactly its share, in seeded order. So after any number of draws the shares hold to within one block, and
    d alone says which row comes: the cursor is still all there is to save.

    As a sequence a mixture is its sources one after the other. Its length, by which Stream counts epochs, is
    the number of their rows together, though a small source with a large weight comes round more often.
    """

    def __init__(self, name: str, sources: list, weights: list[float]):
        self.name = name
        self.sources = sources
        # where each source starts in the sequence, and where the last one ends
        self.starts = list(itertools.accumulate(map(len, sources), initial=0))
        shares = [weight / sum(weights) for weight in weights]
        size = block_size(shares)
        self.counts = [max(1, round(share * size)) for share in shares]  # draws of each source in a block
        # The orders in use, each a dict of one entry: what it depends on -> the order.
        self.block_slots = {}
        self.epoch_orders = [{} for _ in sources]

    def __len__(self):
        return self.starts[-1]

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(i)
        source = bisect.bisect_right(self.starts, i) - 1
        return self.sources[source][i - self.starts[source]]

    def row_of_draw(self, draw: int, seed: int, shuffle: bool) -> int:
        """Index of the row that draw number `draw` takes."""
        block, place = divmod(draw, sum(self.counts))
        slots = self.slots_of_block(block, seed, shuffle)
        source = slots[place]
        draws_before = block * self.counts[source] + slots[:place].count(source)  # of this source
        epoch, position = divmod(draws_before, len(self.sources[source]))
        order = self.order_of_epoch(source, epoch, seed, shuffle)
        return self.starts[source] + order[position]

    def slots_of_block(self, block: int, seed: int, shuffle: bool) -> list[int]:
        """The source of each draw of a block."""
        key = (block, seed, shuffle)
        slots = self.block_slots.get(key)
        if slots is None:
            slots = [source for source, count in enumerate(self.counts) for _ in range(count)]
            slots = seeded_order(slots, f"{seed}-block-{block}", shuffle)
            self.block_slots = {key: slots}
        return slots

    def order_of_epoch(self, source: int, epoch: int, seed: int, shuffle: bool) -> list[int]:
        """The rows of a source in the order in which one of its epochs takes them."""
        key = (epoch, seed, shuffle)
        order = self.epoch_orders[source].get(key)
        if order is None:
            order = seeded_order(range(len(self.sources[source])), f"{seed}-{source}-{epoch}", shuffle)
            self.epoch_orders[source] = {key: order}
        return order


def block_size(shares: list[float]) -> int:
    """Length of the shortest block in which every share is a whole number of draws, 1,000 at most."""
    for size in range(1, 1000):
        draws = [share * size for share in shares]
        if all(abs(number - round(number)) < 1e-9 for number in draws):
            return size
    return 1000


def mixture_parts(spec: str) -> list[tuple[str, float]]:
    """[("clevr", 0.5), ("geoqa", 0.5)] of "clevr:0.5,geoqa:0.5"; [] of a single source.

    A part ends in a colon and a number: other colons and commas belong to paths (C:\\rows.jsonl, a,b.jsonl)
    or to scenes:clevr?rows=9. Raises SystemExit if a weight is 0.
    """
    if not re.fullmatch(r".+:\d*\.?\d+", spec):
        return []
    found = re.findall(r"(.+?):(\d*\.?\d+)(?:,|$)", spec)
    parts = [(name.strip(), float(weight)) for name, weight in found]
    if any(weight <= 0 for _, weight in parts):
        raise SystemExit(f"data: '{spec}' gives a source no weight; leave that source out")
    return parts
