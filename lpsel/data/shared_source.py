"""Share sources between the jobs of a sweep, so that the same rows are read only once."""

from dataclasses import asdict
from typing import Any

from lpsel.data.dataset import DatasetSpec, Source
from lpsel.storage import digest

SHARED = 2  # sources to keep; each takes 40 bytes per row

_shared: dict[str, tuple[Source, Any]] = {}  # most recently used sources with their states


def shared_source(spec: DatasetSpec) -> Source:
    """Return the source of a dataset; reuse that of an earlier call in this process if its rows have not changed."""
    source, key = Source(spec), digest(asdict(spec))
    state = source.state()
    known, known_state = _shared.pop(key, (source, state))
    shared = known if known_state == state else source
    shared.report_unusable()  # in the log of every job
    _shared[key] = (shared, state)
    if len(_shared) > SHARED:
        del _shared[next(iter(_shared))]
    return shared
