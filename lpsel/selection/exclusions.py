"""Why rows cannot be selected.

N rows, M eligible rows
"""

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from lpsel.errors import UserError
from lpsel.scoring.table import ScoreTable
from lpsel.selection.spec import SelectionSpec

UNUSABLE = "unusable: "
EMPTY_ANSWER = "empty answer"
NO_SUPERVISED_TOKEN = "no supervised token"
SHORT_ANSWER = "short answer"
NOT_FINITE = "nll is not finite"
UNDEFINED = "score is undefined"
KNOWN = "already known"
RISING = "loss rises"
DUPLICATE = "duplicate"


class Exclusions:
    """Reasons why rows cannot be selected; the first reason added for a row is kept."""

    def __init__(self, n: int) -> None:
        self.code = np.full(n, -1, np.int32)
        self.reasons: list[str] = []

    def add(self, reason: str, rows: NDArray[np.bool_]) -> None:
        new = rows & (self.code < 0)
        if new.any():
            self.code[new] = len(self.reasons)
            self.reasons.append(reason)

    @property
    def eligible(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.code < 0)

    def check(self, name: str) -> None:
        """Raise a UserError if the rule of this name can select no row."""
        if not len(self.eligible):
            problem = f"none of {len(self.code)} rows can be selected ({', '.join(self.reasons)})"
            raise UserError("selection", name, problem, "use other data or scores")


def exclude_texts(table: ScoreTable, spec: SelectionSpec, exclusions: Exclusions) -> None:
    """Exclude unusable rows and, with budget=exact, empty answers; also rows below min_response_tokens."""
    if table.unusable is not None:
        for kind in table.unusable.drop_null().unique().to_pylist():
            exclusions.add(UNUSABLE + kind, pc.equal(table.unusable, kind).fill_null(False).to_numpy(False))
    if spec.budget == "exact":
        if table.empty_answer is not None and not spec.rule.takes_all:
            exclusions.add(EMPTY_ANSWER, table.empty_answer)
        exclusions.add(NO_SUPERVISED_TOKEN, table.response_tokens == 0)
    if spec.min_response_tokens is not None:
        exclusions.add(SHORT_ANSWER, table.response_tokens < spec.min_response_tokens)


def repeated(table: ScoreTable, rows_M: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mask of rows with the same content as an earlier row in `rows_M`, bool (N,)."""
    if table.id is None:
        problem = "these rows have no content ids to compare"
        raise UserError("selection.duplicates", "drop", problem, "set selection.duplicates=keep")
    code_M = table.id.dictionary_encode().indices.to_numpy()[rows_M]  # equal for equal content
    order_M = np.lexsort((table.index[rows_M], code_M))
    same_as_previous = np.diff(code_M[order_M]) == 0
    repeated_N = np.zeros(len(table), np.bool_)
    repeated_N[rows_M[order_M[1:][same_as_previous]]] = True
    return repeated_N
