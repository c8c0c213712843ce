"""k-means on weighted vectors, with mini-batches for many rows.

U different vectors, D dimensions
"""

import logging
import warnings

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

MINIBATCH_ABOVE = 200_000  # number of vectors above which k-means uses mini-batches


def k_means(vectors_UD: NDArray[np.float32], count_U: NDArray[np.int64], k: int, seed: int) -> NDArray[np.int32]:
    """Cluster vectors that occur count_U times each; returns int32 (U,), numbered from 0.

    Above MINIBATCH_ABOVE vectors, uses mini-batch k-means (Sculley 2010), which samples vectors in every step.
    """
    from sklearn.cluster import KMeans as Lloyd
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    if len(vectors_UD) > MINIBATCH_ABOVE:
        log.info("Clusters: more than %s rows, so k-means by mini-batches", f"{MINIBATCH_ABOVE:,}")
        kmeans = MiniBatchKMeans(n_clusters=k, n_init=1, random_state=seed, batch_size=max(4 * k, 1024))
    else:
        # float64, so that the order of summation in threads does not change the cluster of a row.
        kmeans = Lloyd(n_clusters=k, n_init=1, random_state=seed)
        vectors_UD = vectors_UD.astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different vectors than clusters
        kmeans.fit(vectors_UD, sample_weight=count_U)
    log.info("Clusters: %s iterations, inertia %.4g", kmeans.n_iter_, kmeans.inertia_)
    return kmeans.labels_.astype(np.int32)
