"""Limits that keep a small file from filling the memory or keeping a run busy forever."""

from pathlib import Path

from lpsel.errors import UserError

MIB = 1 << 20
VALUE_BYTES = 64 * MIB  # of a line or a row of a JSON list: thousands of times a long row
EXPANDED_BYTES = 256 * MIB  # a file may expand to this size at any ratio
RATIO = 200  # expanded size to file size above that; text compresses about 4 times, very repetitive text 50 times


def check_expansion(path: Path, expanded: int, name: str = "") -> None:
    """Reject decompression bombs.

    Args:
        expanded: bytes so far, or as the file declares.
        name: of the file in the message.

    Raises:
        UserError: the content is larger than EXPANDED_BYTES and RATIO times the file.
    """
    if expanded > EXPANDED_BYTES and expanded > RATIO * (packed := path.stat().st_size):
        problem = f"{packed:,} bytes expand to {expanded:,} or more, above {RATIO} times the file"
        raise UserError(name or path, None, problem, "decompress it yourself if that is intended")


def too_long(location: str) -> UserError:
    """The error for a value of more than VALUE_BYTES."""
    return UserError(location, None, f"a value of more than {VALUE_BYTES // MIB} MiB", "split or remove it")
