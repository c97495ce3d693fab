"""Batches made ahead of the step that reads them, in this process or in worker processes."""

import signal
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")


class _Steps(torch.utils.data.Dataset):
    """Maps a step to its batch, which is all that torch's DataLoader asks of a data set."""

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
    """Make the batches of steps start .. stop-1, in order.

    Args:
        make_batch: a pure function of the step.
        workers: processes that work ahead; 0 makes each batch here, when it is asked for.

    Raises:
        ValueError: if there are workers and the system cannot fork: `make_batch` closes over the
            data, which only a forked process inherits.
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
        generator=torch.Generator(),  # its own: a resumed run finds the global one untouched
    )
    return iter(loader)


def _ignore_sigterm(_: int) -> None:
    """SIGTERM goes to the whole process group of a job; the run itself ends its workers."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
