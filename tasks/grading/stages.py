"""What the grader saw and which rule decided, noted for a reader who asks (python -m tasks.grading)."""

import contextlib

notes: list[tuple[str, str]] | None = None  # (stage, what it came to); None: nobody asks


def note(stage: str, *texts) -> None:
    """Note what a stage came to, the answer's and the reference's side."""
    if notes is not None:
        notes.append((stage, "   |   ".join(map(str, texts))))


def by(rule: str, verdict: bool) -> bool:
    """The verdict, with the rule that gave it noted."""
    if notes is not None:
        notes.append(("rule", f"{rule}: {'yes' if verdict else 'no'}"))
    return verdict


@contextlib.contextmanager
def noted():
    """The list of notes of whatever is graded within."""
    global notes
    before, notes = notes, []
    try:
        yield notes
    finally:
        notes = before
