"""SplitMix64: the hash behind every order that must follow from content and a seed alone."""

import numpy as np
from numpy.typing import NDArray


def splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One step, a bijection of 64 bits that spreads every one of them, same shape.

    Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
    """
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
