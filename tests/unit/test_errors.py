"""The wording of user errors, and the validators that raise them."""

import copy
import errno
import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor

import pytest

from lpsel.errors import UserError, check_choice, check_flag, check_int, check_number, resource_errors


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            UserError("pct", 0, "must be in (0, 100]", "use selection=full to train on everything"),
            "pct=0: must be in (0, 100]. Use selection=full to train on everything.",
        ),
        (UserError("rows.jsonl", problem="no such file"), "rows.jsonl: no such file."),
        (
            UserError("selection", "lpp", "unknown choice", "did you mean lp? Use one of lp, random"),
            "selection=lpp: unknown choice. Did you mean lp? Use one of lp, random.",
        ),
        (
            UserError("column output", problem="must be text", hint="fix it").at("rows.jsonl, line 3"),
            "rows.jsonl, line 3: column output: must be text. Fix it.",
        ),
        (
            UserError("scores", "a.csv", "no such file", "check it").renamed("SCORES"),
            "SCORES=a.csv: no such file. Check it.",
        ),
    ],
)
def test_an_error_is_one_line_with_the_value_the_problem_and_the_fix(error, text):
    assert str(error) == text
    assert str(copy.copy(error)) == str(pickle.loads(pickle.dumps(error))) == text


@pytest.mark.parametrize(
    ("check", "valid", "invalid", "problem"),
    [
        (lambda v: check_choice("x", v, ("a", "b")), ["a"], ["c", None], "must be one of a, b"),
        (lambda v: check_flag("x", v), [True, False], [1, "true", None], "must be true or false"),
        (lambda v: check_int("x", v, 1), [1, 5], [0, True, 1.5, "1"], "must be an integer, at least 1"),
        (
            lambda v: check_number("x", v, above=0),
            [1, 0.5],
            [0, True, float("nan"), "1"],
            "must be a number greater than 0",
        ),
        (lambda v: check_number("x", v, minimum=0), [0, 0.5], [-1, float("inf")], "must be a number, at least 0"),
        (lambda v: check_number("x", v), [-1, 0.5], ["a"], "must be a number"),
    ],
)
def test_validators_accept_valid_values_and_name_invalid_ones(check, valid, invalid, problem):
    for value in valid:
        check(value)
    for value in invalid:
        with pytest.raises(UserError) as caught:
            check(value)
        assert (caught.value.name, caught.value.problem) == ("x", problem)


def test_a_file_without_permission_is_a_user_error_and_other_errors_pass():
    with pytest.raises(UserError) as caught, resource_errors():
        raise PermissionError(errno.EACCES, "Permission denied", "rows.jsonl")
    assert (caught.value.name, caught.value.problem) == ("rows.jsonl", "Permission denied")
    with pytest.raises(OSError, match="Input/output error"), resource_errors():
        raise OSError(errno.EIO, "Input/output error", "rows.jsonl")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_recognized_in_any_librarys_error(error):
    with pytest.raises(UserError) as caught, resource_errors():
        raise error
    assert caught.value.problem == "the disk is full"
    assert "No space left on device" in caught.value.name


def test_a_worker_that_is_killed_ends_the_command_with_one_line():
    forked = multiprocessing.get_context("fork")
    with pytest.raises(UserError) as caught, resource_errors(), ProcessPoolExecutor(2, forked) as pool:
        list(pool.map(os._exit, [9, 9, 9]))
    assert str(caught.value).startswith("a worker process: has ended, often because the system has no memory left. ")


def test_out_of_gpu_memory_names_the_options_that_save_memory():
    torch = pytest.importorskip("torch")
    with pytest.raises(UserError) as caught, resource_errors():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines")
    assert str(caught.value) == (
        "GPU: out of memory (CUDA out of memory. Tried to allocate 2.00 GiB). "
        "Set smaller train_tokens= and score_tokens=, or see docs/guides/memory.md for more options."
    )
