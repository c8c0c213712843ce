"""Distributed processes of one command: ranks, decisions shared by all ranks, and signal handling.

Every rank runs the whole command. Only the main process writes results; other ranks compute what they need from the
shared cache.
"""

import itertools
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from tempfile import TemporaryDirectory
from typing import Any, NoReturn, TypeVar, cast

T = TypeVar("T")

at_end = ExitStack()  # closed when the command ends for any reason
_decisions = itertools.count()  # number of decisions that ranks have agreed on

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # SLURM can send SIGUSR1 before a job's end
HEARTBEAT_SECONDS = 10.0  # between heartbeats of rank 0
HEARTBEAT_TIMEOUT = 300.0  # seconds without a heartbeat after which rank 0 is lost
BROADCAST_TIMEOUT = 1800.0  # seconds that rank 0 waits for the others
POLL_SECONDS = 0.2
GRACE_SECONDS = 10.0  # for a rank to end by itself after the main process that started it
# Matches errors of gloo, NCCL and the torch.distributed store.
LOST_CONNECTION = re.compile(
    r"Connection (?:closed|reset|refused|was (?:closed|likely closed))|Broken pipe|timed out|wait timeout|"
    r"NCCL (?:error|communicator was aborted)|Socket Timeout|failed to recv|connection was closed",
    re.IGNORECASE,
)
SECONDS_TO_INSIST = 3.0  # after this time, a second Ctrl+C ends immediately; torchrun forwards the first one twice


def rank() -> int:
    """Rank of this process according to torchrun, SLURM or Lightning; 0 for a single process.

    If Lightning starts the processes of a node, ranks on other nodes than the first are only known to be nonzero.
    """
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name])
    return int(os.environ.get("NODE_RANK", "0")) + int(os.environ.get("LOCAL_RANK", "0"))


def is_main_process() -> bool:
    """Whether this process prints, tracks and writes results."""
    return rank() == 0


def temporary_folder(prefix: str) -> str:
    """Create a temporary folder that is deleted at the end of the command."""
    return at_end.enter_context(TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True))


def started_by_torchrun() -> bool:
    """Whether torchrun started several ranks."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def started_together() -> bool:
    """Whether torchrun or srun started all ranks together; Lightning starts ranks after the main process."""
    return started_by_torchrun() or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def agree(decide: Callable[[], T]) -> T:
    """Call `decide` in the main process and return its value on every rank. It may wait for hours for a lock.

    Ranks that start together could otherwise read a changing cache differently. Ranks started by Lightning call
    `decide` themselves, since they start after the main process has decided to train.

    Raises:
        RankLost: the main process has not sent a heartbeat for HEARTBEAT_TIMEOUT seconds.
    """
    if not started_together():
        return decide()
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        _init_process_group()
    store, number = dist.distributed_c10d._get_default_store(), next(_decisions)
    heartbeats, decided = f"lpsel/beat/{number}", f"lpsel/decided/{number}"  # keys in the store of all ranks
    values: list[Any] = [None]
    if is_main_process():
        with _send_heartbeats(store, heartbeats):
            values = [decide()]
        store.set(decided, "")
    else:
        _wait_for_main_process(store, heartbeats, decided)
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=BROADCAST_TIMEOUT))
    dist.broadcast_object_list(values, src=0, group=group, device=torch.device("cpu"))
    dist.destroy_process_group(group)
    return cast(T, values[0])


@contextmanager
def _send_heartbeats(store: Any, key: str) -> Iterator[None]:
    """Context manager in which a thread increments a counter in the store of all ranks."""
    ended = threading.Event()

    def beat() -> None:
        with suppress(RuntimeError):  # the store has ended, and with it all ranks
            while not ended.wait(HEARTBEAT_SECONDS):
                store.add(key, 1)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _wait_for_main_process(store: Any, heartbeats: str, decided: str) -> None:
    """Wait until the key `decided` is set; raises RankLost if the counter `heartbeats` stops."""
    last_count, last_change = -1, time.monotonic()
    while not store.check([decided]):
        count = store.add(heartbeats, 0)
        if count != last_count:
            last_count, last_change = count, time.monotonic()
        elif time.monotonic() - last_change > HEARTBEAT_TIMEOUT:
            raise RankLost(f"rank 0 has not responded for {HEARTBEAT_TIMEOUT:.0f} s")
        time.sleep(POLL_SECONDS)


class RankLost(RuntimeError):
    """Another rank has ended or does not respond."""


def lost_rank(error: BaseException) -> str | None:
    """Return why this rank cannot continue if an error was caused by the loss of another rank, else None."""
    if isinstance(error, RankLost):
        return str(error)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not started_together():
        return None
    match = LOST_CONNECTION.search(str(error)) if isinstance(error, RuntimeError) else None
    return f"another rank has ended or does not respond ({match[0]})" if match else None


def connected() -> bool:
    """Whether this process is one of several ranks that can communicate."""
    dist = sys.modules.get("torch.distributed")
    return dist is not None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def exit_rank(status: int) -> NoReturn:
    """Exit; a rank does so without Python's exit handlers, since NCCL's would wait for ranks that still run."""
    if connected():
        at_end.close()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def end_with_main_process() -> None:
    """End this rank soon after the main process if Lightning started it. With NCCL, it would wait until a timeout.

    torchrun and srun end all ranks of a node together.
    """
    if int(os.environ.get("LOCAL_RANK", "0")) == 0 or started_together():
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        time.sleep(GRACE_SECONDS)
        at_end.close()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _init_process_group() -> None:
    """Create the process group that Lightning will use."""
    import torch
    import torch.distributed as dist

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if started_by_torchrun():
        dist.init_process_group(backend)
        return
    from lightning.fabric.plugins.environments import SLURMEnvironment

    slurm = SLURMEnvironment()
    dist.init_process_group(
        backend,
        init_method=f"tcp://{slurm.main_address}:{slurm.main_port}",
        rank=slurm.global_rank(),
        world_size=slurm.world_size(),
    )


class Interrupted(BaseException):
    """Raised when a signal ends the command. Not an Exception, so that no `except Exception` continues after it."""

    def __init__(self, number: int, saved: str = "finished work is saved", all_ranks: bool = False) -> None:
        name = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
        super().__init__(f"{name}; {saved}; run the same command again to resume")
        self.status = 128 + number  # exit status
        self.all_ranks = all_ranks  # whether all ranks received the signal


class _Received:
    """The received signal, its time, and whether running code raises `Interrupted` itself after saving its work."""

    number: int | None = None
    time = 0.0
    deferred = False


def pending_signal() -> int | None:
    """Signal received within `deferred_signals`, or None."""
    return _Received.number


def end_if_signaled() -> None:
    """Raise `Interrupted` if a signal was received; call it within `deferred_signals` when everything is saved."""
    if _Received.number is not None:
        raise Interrupted(_Received.number)


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Context manager in which a signal raises `Interrupted`. Existing handlers (submitit, tests) are kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    default_handlers = (signal.SIG_DFL, signal.default_int_handler)
    unhandled = [number for number in SIGNALS if signal.getsignal(number) in default_handlers]
    previous_handlers = {number: signal.signal(number, _handle) for number in unhandled}
    try:
        yield
    finally:
        _Received.number = None
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Context manager that defers signals: `Interrupted` is raised at the end, or by `end_if_signaled` after saving."""
    _Received.deferred = True
    try:
        yield
    finally:
        _Received.deferred = False
    end_if_signaled()


def _handle(number: int, _frame: Any) -> None:
    now = time.monotonic()
    if _Received.number is None:
        _Received.number, _Received.time = number, now
        if not _Received.deferred:
            raise Interrupted(number)
    elif number == signal.SIGINT and now - _Received.time > SECONDS_TO_INSIST:
        _Received.time = now
        raise Interrupted(number)
