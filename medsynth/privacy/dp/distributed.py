"""One private training in several processes: each adds up the clipped gradients of a part of the patients of a step.

The first process (rank 0) trains as it would alone. It samples patients, adds noise, takes the step, and keeps the run and what
is spent. The others have the same network and patients; they are told weights and patients, and give sums. So sampling and noise
happen once, "secure" or "seeded", no process can disagree about the budget, and epsilon is that of one process: the noise is
added to the same sum, whoever computed its parts. Messages are not encrypted and are as private as the patients.

Not PyTorch's DistributedDataParallel, which averages gradients: they would be those of a batch, and not clipped by patient.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch import distributed, nn

from medsynth.store.runs import Tensors

_PATIENCE = datetime.timedelta(days=1)  # the first process may wait for another run, or have much to read


class DismissedError(Exception):
    """The first process has ended, and needs no help any more."""


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Inside, the processes that `torchrun` started are one group, on GPUs by NCCL, else by gloo; a process alone stays so.

    The block ends on the others when it has ended on the first. Raises ValueError for more processes on a machine than GPUs.
    """
    if not distributed.is_torchelastic_launched():
        yield
        return
    if torch.cuda.is_available():
        _take_gpu(int(os.environ["LOCAL_RANK"]), torch.cuda.device_count())
    distributed.init_process_group(timeout=_PATIENCE)
    try:
        distributed.barrier()  # none may leave before all are there
        with contextlib.suppress(DismissedError):
            yield
            if assists():
                raise RuntimeError("this process has come to an end before the first one")
            _tell(None)
    finally:
        distributed.destroy_process_group()


def assists() -> bool:
    """Whether this process helps another one, which keeps run and ledger."""
    return distributed.is_initialized() and distributed.get_rank() > 0


def together() -> bool:
    """Whether this process is one of several."""
    return distributed.is_initialized() and distributed.get_world_size() > 1


def begin(model: nn.Module, plan: object) -> None:
    """On the first process, before its steps: the others get its weights, and must have the same plan."""
    if distributed.is_initialized():
        _tell(plan)
        _share(model.state_dict())


def shared_sum(trained: dict[str, nn.Parameter], patients: torch.Tensor, step: int, own: Callable[..., Tensors]) -> Tensors:
    """On the first process: the sum of own(some patients, step) over all patients, of which each process takes a part.

    trained: parameters that may have changed since `begin`.
    """
    if not distributed.is_initialized():
        return own(patients, step)
    _tell((patients, step))
    _share(trained)
    return _summed(own(_part(patients), step))


def assist(model: nn.Module, trained: dict[str, nn.Parameter], plan: object, own: Callable[..., Tensors]) -> NoReturn:
    """On the other processes: give own(some patients, step) until the first one has ended, and then raise DismissedError.

    Raises ValueError where it trains to another plan, which would mix sums of different patients.
    """
    if (theirs := _told()) != plan:
        raise ValueError(f"the first process trains to {theirs}, this one to {plan}; start all on the same images and options")
    _share(model.state_dict())
    while True:
        patients, step = _told()
        _share(trained)
        _summed(own(_part(patients), step))


def _take_gpu(number: int, gpus: int) -> None:
    if number >= gpus:
        raise ValueError(f"process {number + 1} of this machine found {gpus} GPU(s); start at most one process for each")
    torch.cuda.set_device(number)


def _part(patients: torch.Tensor) -> torch.Tensor:
    """Each patient is in the part of one process."""
    return patients[distributed.get_rank() :: distributed.get_world_size()]


def _tell(message: object) -> None:
    distributed.broadcast_object_list([message], src=0)


def _told() -> Any:
    """The message of the first process. Raises DismissedError where it has ended, well or not: then it says why itself."""
    received: list[Any] = [None]
    try:
        distributed.broadcast_object_list(received, src=0)
    except RuntimeError as error:
        raise DismissedError from error
    if received[0] is None:
        raise DismissedError
    return received[0]


@torch.no_grad()
def _share(tensors: Tensors) -> None:
    """Make them those of the first process, in place."""
    flat = _flat(tensors)
    distributed.broadcast(flat, src=0)
    for tensor, part in zip(tensors.values(), flat.split([t.numel() for t in tensors.values()]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def _summed(sums: Tensors) -> Tensors:
    """Over processes, in the type of the sums; on the first one alone."""
    flat = _flat(sums)
    distributed.reduce(flat, dst=0)
    parts = flat.split([v.numel() for v in sums.values()])
    return {name: part.view(v.shape) for (name, v), part in zip(sums.items(), parts, strict=True)}


def _flat(tensors: Tensors) -> torch.Tensor:
    """One message instead of hundreds."""
    return torch.cat([t.detach().flatten() for t in tensors.values()])
