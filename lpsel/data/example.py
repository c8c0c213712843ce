"""A row as a conversation, independent of the form of its columns, and its content id."""

import hashlib
import json
from collections.abc import Mapping
from json.encoder import encode_basestring as quoted
from types import MappingProxyType
from typing import Any, NamedTuple

from lpsel.errors import UnusableRow

ID_BYTES = 16  # leading bytes of a SHA-256: an id has 32 hexadecimal digits
ANSWERED, EMPTY_ANSWERS, NO_ANSWER = range(3)  # whether a row has answers to train on


class Turn(NamedTuple):
    """A turn of a conversation."""

    role: str  # system, user, assistant or tool
    content: str  # empty if an assistant turn only calls tools
    supervised: bool = True  # whether an assistant turn is trained on
    # Other fields that chat templates use, as in the row: tool_calls, tool_call_id, name, reasoning_content.
    fields: Mapping[str, Any] = MappingProxyType({})


class Example(NamedTuple):
    """A row as a conversation."""

    turns: tuple[Turn, ...]
    input: str = ""  # Alpaca's extra input, which belongs to the first user turn
    tools: tuple[Mapping[str, Any], ...] = ()  # tools that the assistant can call, as in the row

    def content_id(self) -> str:
        """Return 32 hexadecimal digits of the SHA-256 of the content, the same on every machine and in every form."""
        return self.content_digest().hex()

    def content_digest(self) -> bytes:
        """Return the first 16 bytes of the SHA-256 of {"input":...,"turns":[[role,content],...]} as compact JSON.

        Turns with fields, or that are not trained on, have a third item. Tools are added as a third key, "tools".
        """
        turns, extra, tools = self  # faster than accessing three attributes, as below
        written = [
            f'["{role}",{quoted(content)}]'
            if supervised and not fields
            else f'["{role}",{quoted(content)},{_json({**fields, "supervised": supervised})}]'
            for role, content, supervised, fields in turns
        ]
        end = f',"tools":{_json(tools)}}}' if tools else "}"
        text = f'{{"input":{quoted(extra)},"turns":[{",".join(written)}]{end}'
        return hashlib.sha256(text.encode()).digest()[:ID_BYTES]

    def prompt(self) -> "Example":
        """Return the conversation up to its last answer, or all of it if it has no answer."""
        answers = [i for i, turn in enumerate(self.turns) if turn.role == "assistant"]
        return self._replace(turns=self.turns[: answers[-1]]) if answers else self

    def instruction(self) -> str:
        """Return the content of the first user turn."""
        return next((turn.content for turn in self.turns if turn.role == "user"), "")

    def last_answer(self) -> str:
        """Return the content of the last assistant turn; empty if there is none."""
        return next((turn.content for turn in reversed(self.turns) if turn.role == "assistant"), "")

    def answers(self) -> int:
        """Return NO_ANSWER without supervised answers, EMPTY_ANSWERS if all are blank without calls, else ANSWERED."""
        state = NO_ANSWER
        for role, content, supervised, fields in self.turns:
            if role == "assistant" and supervised:
                if (content and not content.isspace()) or fields.get("tool_calls"):
                    return ANSWERED
                state = EMPTY_ANSWERS
        return state

    def characters(self) -> tuple[int, int]:
        """Count the characters of the prompt (everything except assistant turns) and of the response."""
        prompt, response = len(self.input), 0
        for turn in self.turns:
            if turn.role == "assistant":
                response += len(turn.content)
            else:
                prompt += len(turn.content)
        return prompt, response

    def embedding_text(self) -> str:
        """Return the text to embed: `Instruction: {instruction} {input} Response: {output}` with stripped fields.

        As in the code released with the paper. In longer conversations, the turns of a role are joined by a space.
        """
        instruction = " ".join(turn.content.strip() for turn in self.turns if turn.role == "user")
        output = " ".join(turn.content.strip() for turn in self.turns if turn.role == "assistant")
        return f"Instruction: {instruction} {self.input.strip()} Response: {output}"


def merge_system(example: Example) -> Example:
    """Merge each system turn into the user turn after it, separated by an empty line.

    Raises:
        UnusableRow: no user turn follows a system turn.
    """
    turns, system = list[Turn](), list[str]()
    for turn in example.turns:
        if turn.role == "system":
            system.append(turn.content)
        elif turn.role == "user" and system:
            turns.append(turn._replace(content="\n\n".join([*system, turn.content])))
            system = []
        else:
            turns.append(turn)
    if system:
        problem, hint = "no user turn follows the system turn", "fix or remove the row"
        raise UnusableRow("dataset.system", "merge", problem, hint, kind="a system turn without a user turn")
    return example._replace(turns=tuple(turns))


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
