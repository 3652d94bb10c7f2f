"""Reward parts for tests, as a user would write them: any policy can raise them at once, trained or not."""


def flat(row: dict) -> bool:
    """A row for which all completions earn the same."""
    return row["id"].startswith("flat")


def share(completion: str, row: dict) -> float:
    """Share of the letter e in the completion."""
    if flat(row):
        return 0.5
    return completion.count("e") / max(len(completion), 1)


def digits(completion: str, row: dict) -> float:
    """Share of digits in the completion."""
    if flat(row):
        return 0.0
    return sum(c.isdigit() for c in completion) / max(len(completion), 1)
