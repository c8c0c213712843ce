"""Size limits that prevent a small file from exhausting memory or keeping a run busy forever."""

from pathlib import Path

from lpsel.errors import UserError

MIB = 1 << 20
VALUE_BYTES = 64 * MIB  # maximum size of a line or an item of a JSON list, thousands of times that of a long row
EXPANDED_BYTES = 256 * MIB  # up to this size, any compression ratio is accepted
RATIO = 200  # maximum compression ratio above it; text has a ratio of about 4, very repetitive text 50


def check_expansion(path: Path, expanded: int, name: str = "") -> None:
    """Reject decompression bombs.

    Args:
        expanded: bytes decompressed so far, or the size declared in the file.
        name: name of the file in the error message.

    Raises:
        UserError: the content is larger than EXPANDED_BYTES and than RATIO times the file.
    """
    if expanded > EXPANDED_BYTES and expanded > RATIO * (packed := path.stat().st_size):
        problem = f"{packed:,} bytes expand to {expanded:,} or more, over {RATIO} times the size"
        raise UserError(name or path, None, problem, "decompress it yourself if that is intended")


def too_long(location: str) -> UserError:
    """Return the error for a value of more than VALUE_BYTES."""
    return UserError(location, None, f"a value of more than {VALUE_BYTES // MIB} MiB", "split or remove it")
