"""Several processes train one model together; `torchrun` starts them.

    torchrun --nproc_per_node 8 train_sft.py                    eight GPUs of one machine
    torchrun --nnodes 2 --rdzv_endpoint host:29400 ...          see torchrun --help

All hold the same weights. Every process makes the same batch, of which it computes a share:
the rows rank, rank + size, rank + 2 size, ... Gradients are added up over all processes
before each optimizer step, so all take the same step as one process would take that
computes the whole batch. The first process alone writes files and to the screen.

With a single process, the functions here do nothing. On CPUs the processes speak over gloo,
on GPUs over NCCL, both part of torch.distributed.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
BUCKET = 25_000_000  # numbers that are added up at once


def start(device: torch.device) -> torch.device:
    """Connect this process with the others, if torchrun has started several.

    Args:
        device: as the options name it. If it is a GPU, each process of a machine gets
            another one.

    Returns:
        the device of this process.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if not is_first():
            sys.stdout = open(os.devnull, "w")
    return device


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, 0 .. size - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def own_rows() -> slice:
    """This process's rows of a batch: every size-th, from its rank on."""
    return slice(rank(), None, size())


def mine(items: Sequence[T]) -> Sequence[T]:
    """This process's share of a list or of a tensor's rows."""
    return items[own_rows()]


@contextmanager
def _together() -> Iterator[None]:
    """Turn the errors of a lost process into one line; the run cannot go on without it.

    Raises:
        ConnectionError: if another process has ended.
    """
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL have no class of their own
        raise ConnectionError(
            f"process {rank()} of {size()} ends, because another one has ended"
        ) from error


def total(*values: float | Tensor) -> list[float]:
    """Add each value up over all processes, in float64.

    Args:
        values: numbers, or tensors of shape ().
    """
    numbers = [float(value) for value in values]
    if size() == 1:
        return numbers
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"  # NCCL adds on GPUs alone
    sums = torch.tensor(numbers, dtype=torch.float64, device=device)
    with _together():
        dist.all_reduce(sums)
    return sums.tolist()


def largest(value: float) -> float:
    """The largest of all processes' values."""
    return max(gather_items([value], size()))


def add_gradients(params: Sequence[Tensor]) -> None:
    """Add the gradients of the parameters up over all processes, in place.

    A process whose share does not reach a parameter has no gradient of it, which counts as
    0. If no process has one, there is none afterwards.
    """
    if size() == 1:
        return
    present = [float(p.grad is not None) for p in params]
    counts = torch.tensor(present, device=params[0].device)
    with _together():
        dist.all_reduce(counts)
        reached = [p for p, n in zip(params, counts.tolist()) if n]
        for p in reached:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        bucket: list[Tensor] = []
        for i, p in enumerate(reached):
            bucket.append(p.grad)
            if i + 1 == len(reached) or sum(g.numel() for g in bucket) > BUCKET:
                flat = torch.cat([g.flatten() for g in bucket])
                dist.all_reduce(flat)
                for g, x in zip(bucket, flat.split([g.numel() for g in bucket])):
                    g.copy_(x.view_as(g))
                bucket = []


def gather(x: Tensor, n: int, fill: float = 0) -> Tensor:
    """Collect the rows of all processes, in the order of the whole batch.

    Args:
        x: (b, ...) this process's rows, those of `mine`. A second dimension may be shorter
            than in other processes; it is filled up.
        n: B, rows of the whole batch.

    Returns:
        (B, ...), without gradients.
    """
    P = size()
    if P == 1:
        return x.detach()
    shape = torch.tensor(x.shape, device=x.device)
    with _together():
        dist.all_reduce(shape, dist.ReduceOp.MAX)
        full = x.new_full(shape.tolist(), fill)
        full[tuple(slice(k) for k in x.shape)] = x.detach()
        parts = [torch.empty_like(full) for _ in range(P)]
        dist.all_gather(parts, full)
    out = full.new_empty(n, *full.shape[1:])
    for r, part in enumerate(parts):
        rows = len(range(r, n, P))
        out[r::P] = part[:rows]
    return out


def gather_items(items: Sequence[T], n: int) -> list[T]:
    """The same for lists of plain objects."""
    P = size()
    if P == 1:
        return list(items)
    shares: list[Any] = [None] * P
    with _together():
        dist.all_gather_object(shares, list(items))
    out: list[Any] = [None] * n
    for r, share in enumerate(shares):
        out[r::P] = share
    return out


def copy_first(tensors: Sequence[Tensor]) -> None:
    """Copy tensors of the first process into those of all others: all begin alike."""
    if size() > 1:
        with _together():
            for x in tensors:
                dist.broadcast(x.detach(), 0)


@contextmanager
def first_then_others() -> Iterator[None]:
    """Let the first process go through the block before all others do."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def wait() -> None:
    """Wait until all processes are here."""
    if size() > 1:
        with _together():
            dist.barrier()
