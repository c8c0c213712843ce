"""Secrets and control characters do not reach logs, tracebacks and files, in whatever form they are quoted."""

import json
import logging
import subprocess
import sys
from urllib.parse import quote, quote_plus

import pytest

from lpsel import redact as redaction
from lpsel.redact import printable, redact, redacted, register_secret

KEY = "sk-0123456789-secret"


@pytest.fixture(autouse=True)
def no_registered_secrets(monkeypatch):
    monkeypatch.setattr(redaction, "_registered", set())


@pytest.mark.parametrize(
    "name",
    [
        "OPENAI_API_KEY",
        "HF_TOKEN",
        "DB_PASSWORD",
        "PGPASSWD",
        "CLIENT_SECRET",
        "MY_KEY_2",
        "AWS_ACCESS_KEY_ID",
        "tokens",
    ],
)
def test_variables_with_names_of_secrets_are_secret(monkeypatch, name):
    monkeypatch.setenv(name, KEY)
    assert redact(f"<{KEY}>") == "<***>"


@pytest.mark.parametrize(
    "name", ["TOKENIZER_NAME", "TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "KEYBOARD", "SSH_KEY_FILE"]
)
def test_other_variables_are_not(monkeypatch, name):
    monkeypatch.setenv(name, "a-model-name")
    assert redact("a-model-name") == "a-model-name"


AWKWARD = 'pass "word"/ü\t+%\\end'


@pytest.mark.parametrize(
    "quoted",
    [
        AWKWARD,
        f"{AWKWARD}\n",
        " ".join(AWKWARD.split()),
        json.dumps(AWKWARD),
        json.dumps(AWKWARD, ensure_ascii=False),
        quote(AWKWARD, safe=""),
        quote_plus(AWKWARD),
        AWKWARD.encode("unicode_escape").decode(),
    ],
)
def test_a_secret_is_recognized_in_every_form(monkeypatch, quoted):
    monkeypatch.setenv("MY_PASSWORD", AWKWARD + "\n")  # as a mounted file of a secret ends
    shown = redact(f"got {quoted}.")
    assert "***" in shown
    assert "word" not in shown


def test_values_keep_their_types(monkeypatch):
    monkeypatch.setenv("LIMIT_TOKENS", "12345678")
    value = {"seed": 12345678, "share": 0.5, "names": ["a", "12345678"], "none": None, "12345678": True}
    assert redacted(value) == {"seed": 12345678, "share": 0.5, "names": ["a", "***"], "none": None, "***": True}


def test_registered_values_are_secret_and_short_ones_are_not():
    register_secret(KEY)
    register_secret("short")
    assert redact(f"{KEY} short") == "*** short"


LOGGED = """
import logging
from lpsel.redact import protect_output
protect_output()
logging.basicConfig()
log = logging.getLogger("httpx")
log.warning("sent %s to %s", "sk-0123456789-secret", "\\x1b]0;title\\x07server\\nline 2")
log.warning("%d items", "no number")
try:
    raise ValueError("sk-0123456789-secret")
except ValueError:
    log.exception("failed")
raise RuntimeError("sk-0123456789-secret")
"""


def test_logs_and_tracebacks_of_any_library_are_redacted():
    done = subprocess.run(
        [sys.executable, "-c", LOGGED], env={"MY_KEY": KEY}, capture_output=True, text=True, check=False
    )
    assert KEY not in done.stderr
    assert r"sent *** to \x1b]0;title\x07server" in done.stderr
    assert "\nline 2\n" in done.stderr
    assert "ValueError: ***\n" in done.stderr
    assert done.stderr.endswith("RuntimeError: ***\n")
    assert "Logging error" in done.stderr  # of the handler, about the message that is not a number


def test_log_records_keep_their_level_and_place(caplog, monkeypatch):
    monkeypatch.setattr(logging, "_logRecordFactory", redaction._log_record)
    logging.getLogger("x").warning("%s rows", 5)
    (record,) = caplog.records
    assert (record.levelname, record.getMessage(), record.funcName) == (
        "WARNING", "5 rows", "test_log_records_keep_their_level_and_place",
    )  # fmt: skip


def test_printable_text_is_unchanged():
    assert printable("é 漢字 [bold]") == "é 漢字 [bold]"
