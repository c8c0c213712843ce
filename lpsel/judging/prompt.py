"""Judge prompts: files with placeholders for the prompt and the answers, which are inserted as data.

Inserted texts are delimited by lines that end in a nonce, derived from the SHA-256 of the texts. Since no text can
contain its own nonce, it cannot close its section early.
"""

import re
from pathlib import Path

from lpsel.errors import UserError
from lpsel.storage import digest

PROMPTS = Path(__file__).parent / "prompts"
PLACEHOLDERS = ("nonce", "prompt", "first", "second")
_PLACEHOLDER = re.compile("{(" + "|".join(PLACEHOLDERS) + ")}")
# Tokens that chat templates write between turns, and that a server may parse inside a text: <|im_end|>, </s>, [INST].
_CONTROL = re.compile(
    r"<(?=[|｜][^<>\s]{1,60}[|｜]>|/?s>|(?:bos|eos|pad|unk)>|(?:start|end)_of_turn>|<SYS>|</SYS>)|\[(?=/?INST\])"
)


def load_prompt(prompt: str) -> str:
    """Load a prompt file: the name of a file in lpsel/judging/prompts, or a path with a suffix such as .txt.

    Raises:
        UserError: the file cannot be read, or lacks one of {nonce}, {prompt}, {first} and {second}.
    """
    path = Path(prompt).expanduser() if Path(prompt).suffix else PROMPTS / f"{prompt}.txt"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        names = ", ".join(sorted(file.stem for file in PROMPTS.glob("*.txt")))
        problem = f"cannot be read ({type(error).__name__})"
        raise UserError("judge.prompt", prompt, problem, f"set {names} or the path of a UTF-8 file") from error
    missing = [f"{{{name}}}" for name in PLACEHOLDERS if f"{{{name}}}" not in text]
    if missing:
        hint = "add {prompt}, {first} and {second}, each between lines that end in {nonce}"
        raise UserError("judge.prompt", prompt, f"has no {', '.join(missing)}", hint)
    return text.strip()


def fill(template: str, prompt: str, first: str, second: str) -> str:
    """Fill in all placeholders at once, so that a placeholder name inside a text stays text.

    Control tokens of chat templates in the texts get a space after their first character, since a server might
    interpret them as the end of the message.
    """
    texts = {"prompt": prompt, "first": first, "second": second}
    texts = {name: _CONTROL.sub(lambda match: match[0] + " ", text) for name, text in texts.items()}
    nonce = digest(texts)[:16]
    while any(nonce in text for text in texts.values()):
        nonce = digest(nonce)[:16]
    values = {**texts, "nonce": nonce}
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)
