"""Near-duplicates: rows whose texts share most of their word triples.

N texts, F triples in several texts, G groups of texts
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from lpsel.data.values import WITHOUT_SPACES

SIMILAR = 0.7  # smallest Jaccard similarity of the sets of word triples of near-duplicates
MOST_ROWS = 5_000  # more rows are sampled, which takes less than a second
MOST_PRODUCTS = 2_000_000_000  # pairs of rows with a common triple, summed over triples: about 10 s; more are sampled
BLOCK = 256  # rows compared with all others at once
HASHES = 2**22  # hash values of triples; collisions slightly increase the similarity
WORD = rf"[{WITHOUT_SPACES}]|[^\W{WITHOUT_SPACES}]+"


class NearDuplicates(NamedTuple):
    """Number of `rows`, among those `compared`, that are near-duplicates of an earlier row."""

    rows: int
    compared: int


def sample(rows: NDArray[np.int64], most: int | None = None) -> NDArray[np.int64]:
    """Draw at most `most` (default: MOST_ROWS) of the rows at random."""
    most = most or MOST_ROWS
    return rows if len(rows) <= most else np.random.default_rng(0).choice(rows, most, replace=False)


def near_duplicates(texts: Sequence[str]) -> NearDuplicates:
    """Count near-duplicates of an earlier text; uses a random sample if many texts share long passages."""
    return near_duplicates_in(np.ones((1, len(texts)), np.bool_), texts)[0]


def near_duplicates_in(groups_GN: NDArray[np.bool_], texts: Sequence[str]) -> list[NearDuplicates]:
    """Count near-duplicates among the texts of each group.

    Texts are compared by the Jaccard similarity of their sets of n-grams, |A and B| / |A or B|, as for web data
    (Broder 1997; Lee et al. 2022, arXiv 2107.06499). Case and punctuation are ignored.
    """
    if not texts:
        return [NearDuplicates(0, 0) for _ in groups_GN]
    hashed = _triples(texts)
    rows_F = np.bincount(hashed.indices, minlength=HASHES)
    size_N = np.diff(hashed.indptr)  # different triples of each text
    triples_NF = hashed[:, np.flatnonzero(rows_F > 1)]
    products = (rows_F.astype(np.float64) ** 2).sum()
    if products > MOST_PRODUCTS:
        n = int(len(texts) * np.sqrt(MOST_PRODUCTS / products))
        rows = np.sort(np.random.default_rng(0).choice(len(texts), n, replace=False))
        size_N, triples_NF, groups_GN = size_N[rows], triples_NF[rows], groups_GN[:, rows]
    triples_FN = triples_NF.T.tocsr()
    count_G = np.zeros(len(groups_GN), np.int64)
    for start in range(0, len(size_N), BLOCK):
        shared = (triples_NF[start : start + BLOCK] @ triples_FN).tocoo()  # number of triples that two texts share
        row, other = shared.row + start, shared.col
        union = size_N[row] + size_N[other] - shared.data
        similar = (shared.data >= SIMILAR * union) & (other < row)
        row, other = row[similar], other[similar]
        count_G += [len(np.unique(row[group_N[row] & group_N[other]])) for group_N in groups_GN]
    return list(map(NearDuplicates, count_G.tolist(), groups_GN.sum(axis=1).tolist()))


def _triples(texts: Sequence[str]) -> csr_array:
    """Binary indicators of the hashed word triples in each text, float32 (N, HASHES)."""
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(
        ngram_range=(3, 3), token_pattern=WORD, n_features=HASHES, binary=True, norm=None, alternate_sign=False,
        dtype=np.float32,
    )  # fmt: skip
    return csr_array(vectorizer.transform(texts))
