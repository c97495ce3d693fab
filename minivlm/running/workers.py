"""Make the batches of a run, in this process or ahead of time in worker processes."""

import signal
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")


class _Steps(torch.utils.data.Dataset):
    """A data set as torch's DataLoader wants it: the batch of a step is its item."""

    def __init__(self, make_batch: Callable[[int], T], stop: int):
        self.make_batch = make_batch
        self.stop = stop

    def __len__(self) -> int:
        return self.stop

    def __getitem__(self, step: int) -> T:
        return self.make_batch(step)


def batches(
    make_batch: Callable[[int], T], start: int, stop: int, workers: int = 0
) -> Iterator[T]:
    """Yield the batches of the steps start .. stop - 1, in order.

    Args:
        make_batch: a pure function of the step.
        workers: number of processes that make batches ahead of time; with 0 this process
            makes each batch when it is asked for.

    Raises:
        ValueError: if workers are wanted and the system cannot fork. `make_batch` is a
            closure over the data, and only a forked process inherits them.
    """
    if workers and "fork" not in torch.multiprocessing.get_all_start_methods():
        raise ValueError("this system cannot fork; use workers 0")
    loader = torch.utils.data.DataLoader(
        _Steps(make_batch, stop),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_ignore_sigterm if workers else None,
        # DataLoader draws a seed here; if it drew from the global generator, a resumed run
        # would see other random numbers
        generator=torch.Generator(),
    )
    return iter(loader)


def _ignore_sigterm(_: int) -> None:
    """Ignore SIGTERM in a worker.

    The signal goes to all processes of a job. The run itself ends its workers.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
