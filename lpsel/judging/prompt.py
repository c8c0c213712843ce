"""What a judge is shown: a prompt file with the request and the answers put in as data that cannot get out.

They stand between lines that carry a code made from their own content. A text that held its own code would have to
know its SHA-256 beforehand.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from lpsel.errors import UserError
from lpsel.judging.judge import ORDERS
from lpsel.storage import digest

PROMPTS = Path(__file__).parent / "prompts"
PLACES = ("nonce", "prompt", "first", "second")
_PLACE = re.compile("{(" + "|".join(PLACES) + ")}")
# What chat templates write between turns, as a server would read it in the middle of a text: <|im_end|>, </s>, [INST].
_CONTROL = re.compile(
    r"<(?=[|｜][^<>\s]{1,60}[|｜]>|/?s>|(?:bos|eos|pad|unk)>|(?:start|end)_of_turn>|<SYS>|</SYS>)|\[(?=/?INST\])"
)


def load_prompt(prompt: str) -> str:
    """The text of a prompt file: one of ours by its name, or a path with an ending such as .txt.

    Raises:
        UserError: no such file, or one without all of {nonce}, {prompt}, {first} and {second}.
    """
    path = Path(prompt).expanduser() if Path(prompt).suffix else PROMPTS / f"{prompt}.txt"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        ours = ", ".join(sorted(file.stem for file in PROMPTS.glob("*.txt")))
        raise UserError(
            f"judge.prompt={prompt}: cannot be read ({type(error).__name__}); give {ours} or the path of a UTF-8 file."
        ) from error
    missing = [f"{{{place}}}" for place in PLACES if f"{{{place}}}" not in text]
    if missing:
        raise UserError(
            f"judge.prompt={prompt}: has no {', '.join(missing)}; a prompt file says where all of "
            "{prompt}, {first} and {second} go, between lines with {nonce}."
        )
    return text.strip()


def fill(template: str, prompt: str, first: str, second: str) -> str:
    """The template with its places filled, all at once, so that a place named in a text stays text.

    Control tokens of chat templates in the texts get a space after their first character, since a server may take
    them for the end of the message.
    """
    texts = {"prompt": prompt, "first": first, "second": second}
    texts = {place: _CONTROL.sub(lambda found: found[0] + " ", text) for place, text in texts.items()}
    nonce = digest(texts)[:16]
    while any(nonce in text for text in texts.values()):
        nonce = digest(nonce)[:16]
    return _PLACE.sub(lambda place: (texts | {"nonce": nonce})[place[1]], template)


def check_orders(orders: Sequence[str]) -> None:
    """Make sure that a judge shows every pair in known orders, each once.

    Raises:
        UserError: it does not.
    """
    if not orders or not set(orders) <= set(ORDERS) or len(set(orders)) < len(orders):
        raise UserError(
            f"judge.orders={list(orders)}: must be [baseline_first], [model_first] or [baseline_first,model_first]."
        )
