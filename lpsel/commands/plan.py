"""What a dry run says: the work of every job in order, as a table, and what it adds up to."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from lpsel.console import printable, show

GIB = 2**30


@dataclass(frozen=True)
class Work:
    """A model's training or recording, as a dry run says it.

    Attributes:
        what: score or train.
        model: its name.
        rows: trained on, or scored.
        tokens: fed, over all passes.
        lengths: where the tokens are from.
        flops: None where the model's shapes are not known.
        bytes: of each device, likewise.
        key: of scores: what they depend on; None of a target.
        epochs, columns: of scores: what is recorded.
        found: in the cache, by an earlier run.
        problem: why it cannot be done as asked.
    """

    what: str
    model: str
    rows: int
    tokens: float
    lengths: str
    flops: float | None
    bytes: float | None
    key: str | None = None
    epochs: int = 0
    columns: tuple[str, ...] = ()
    found: bool = False
    problem: str | None = None

    def covers(self, other: "Work") -> bool:
        """Whether the other's scores are among these."""
        same = self.key is not None and self.key == other.key
        return same and self.epochs >= other.epochs and set(other.columns) <= set(self.columns)


def show_plan(jobs: Sequence[tuple[str, Sequence[Work] | None]], experiment: bool = False) -> None:
    """Print the work of jobs in the order they would run in.

    Scores that an earlier job makes, or that are in the cache, are named and not counted again.

    Args:
        jobs: names with their work; None where the job was done before.
        experiment: whether an evaluation and a report follow.
    """
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for title in ("job", "work", "rows", "tokens", "FLOPs", "GiB per GPU"):
        made.add_column(title, justify="left" if title in ("job", "work") else "right", overflow="fold")
    counted: list[Work] = []
    for name, work in jobs:
        if not work:
            made.add_row(Text(printable(name)), "done before" if work is None else "no model runs", "", "", "", "")
        for place, piece in enumerate(work or ()):
            made.add_row(Text(printable("" if place else name)), *_cells(piece, counted))
            if not piece.found and not any(other.covers(piece) for other in counted):
                counted.append(piece)
    made.caption, made.caption_justify = Text(_sums(counted, experiment)), "left"
    show(made)


def _cells(piece: Work, earlier: Sequence[Work]) -> list[str]:
    name = printable(piece.model)
    if piece.found:
        return [f"scores by {name}, there already", "", "", "", ""]
    if any(other.covers(piece) for other in earlier):
        return [f"scores by {name}, as above", "", "", "", ""]
    epochs = f", {piece.epochs} epochs" if piece.what == "score" else ""
    return [
        f"{piece.what} {'with ' if piece.what == 'score' else ''}{name}{epochs}",
        f"{piece.rows:,}",
        _short(piece.tokens),
        "unknown" if piece.flops is None else f"{piece.flops:.2g}",
        "unknown" if piece.bytes is None else f"{piece.bytes / GIB:,.1f}{' !' if piece.problem else ''}",
    ]


def _sums(counted: Sequence[Work], experiment: bool) -> str:
    known = [piece.flops for piece in counted if piece.flops is not None]
    least = "at least " if len(known) < len(counted) else ""
    tokens = _short(sum(piece.tokens for piece in counted))
    how = {
        way: ", ".join(sorted({piece.model for piece in counted if piece.lengths == way}))
        for way in dict.fromkeys(piece.lengths for piece in counted)
    }
    return "\n".join(
        [
            f"Together: {tokens} tokens, {least}{sum(known):.3g} FLOPs.",
            *(f"Tokens {way}: {printable(models)}." for way, models in how.items()),
            "Chosen rows count as long as the average row. Memory is weights, gradients, moments and an estimate of",
            f"activations. Embeddings{', evaluation' if experiment else ''} and reading files are not counted.",
        ]
    )


def _short(count: float) -> str:
    unit, of = next(((u, n) for u, n in (("G", 1e9), ("M", 1e6), ("k", 1e3)) if count >= n), ("", 1.0))
    return f"{count / of:.3g} {unit}".rstrip()
