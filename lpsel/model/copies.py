"""Split the batches of an evaluation across copies of a model on several GPUs, one process each."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from threading import Thread
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lpsel.distributed import started_together
from lpsel.model.device import free_memory

if TYPE_CHECKING:
    import torch

Model = TypeVar("Model")
Batch = TypeVar("Batch")
Result = TypeVar("Result")
MapBatches = Callable[[Callable[[Any, Batch], Result], Iterable[Batch]], Iterator[Result]]  # signature of `Copies.map`

AHEAD = 2  # batches queued per process
PROCESSES = multiprocessing.get_context("forkserver")  # its processes can use CUDA, unlike forked ones


def devices_for(device: "torch.device", rows: int, rows_each: int) -> "list[torch.device]":
    """Choose devices for a number of rows: `device`, or one visible GPU for every `rows_each` rows.

    Under a launcher such as torchrun, the ranks already share the GPUs.
    """
    import torch

    if device.type != "cuda" or started_together():
        return [device]
    count = min(torch.cuda.device_count(), max(1, rows // rows_each))
    return [torch.device("cuda", i) for i in range(count)]


class Copies(Generic[Model]):
    """Context manager for a copy of a model on each of several devices; with one device, it is in this process.

    The copies are freed when the `with` block ends. Results do not depend on the number of devices, because the caller
    forms the batches.

    Args:
        load: loads the model on a device. With several devices, each process calls it when it gets its first batch;
            `load` and everything passed to and returned from `map` are pickled.
    """

    def __init__(self, load: "Callable[[torch.device], Model]", devices: "Sequence[torch.device]") -> None:
        self.load, self.devices = load, devices
        self.model: Model | None = None
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Copies[Model]":
        if len(self.devices) > 1:
            unused = PROCESSES.SimpleQueue()
            for device in self.devices:
                unused.put(device)
            self.pool = ProcessPoolExecutor(len(self.devices), PROCESSES, _start, (unused,))
        else:
            self.model = self.load(self.devices[0])
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.pool is not None:
            if kind is not None:
                for process in list(self.pool._processes.values()):
                    process.terminate()  # it may be processing a long batch
            self.pool.shutdown(cancel_futures=True)
        self.model = None
        free_memory()

    def map(self, function: Callable[[Model, Batch], Result], batches: Iterable[Batch]) -> Iterator[Result]:
        """Yield `function(model, batch)` for every batch, in order."""
        if self.pool is None:
            assert self.model is not None, "outside the with statement"
            for batch in batches:
                yield function(self.model, batch)
            return
        waiting: deque[Future[Result]] = deque()
        for batch in batches:
            waiting.append(self.pool.submit(_call, self.load, function, batch))
            if len(waiting) > AHEAD * len(self.devices):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


# --- runs in the worker processes


class _Worker:
    """State of a worker process: a queue of devices that no process uses yet, and its model once it is loaded."""

    unused_devices: Any
    model: Any = None


def _start(unused_devices: Any) -> None:
    _Worker.unused_devices = unused_devices
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches every process; the main one ends the others
    Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """End this process when its parent ends, even if that is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(load: Callable[[Any], Any], function: Callable[[Any, Any], Any], batch: Any) -> Any:
    if _Worker.model is None:
        device = _Worker.unused_devices.get()
        if str(device).startswith("cuda"):  # otherwise, every process would also use some memory of the first GPU
            import torch

            torch.cuda.set_device(device)
        _Worker.model = load(device)
    return function(_Worker.model, batch)
