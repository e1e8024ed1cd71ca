"""Rendezvous of a stage's ranks, before any library makes them meet: through a file, and never with a pickle.

The file lies in a directory of mode 0700 that the supervisor made for the attempt (:mod:`..launch.rendezvous_dir`): no
other user of the machine can read or write what the ranks tell each other there. What follows goes through sockets:

- NCCL connects with a number from that file.
- Gloo listens on the loopback interface and takes whoever comes first for the peer. Every pair of ranks therefore
  exchanges secrets from the file before anything else; a stranger does not know them.
- Objects that a library sends would be unpickled where they arrive, which executes what the sender wants. Ours are
  tensors, and rows as JSON (:mod:`.exchange`); of a library's, only texts, numbers, lists and dictionaries are read, as
  vLLM sends one to see which ranks share a machine.
"""

import os
import pickle  # to restrict what torch does with it
import secrets
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import distributed
from torch._C._distributed_c10d import FileStore, Store
from torch.distributed import distributed_c10d

from ..contract.child_environment import RENDEZVOUS_DIR
from ..contract.errors import StageError

TIMEOUT = timedelta(hours=3)
"""Timeout of every collective: other ranks wait while rank 0 prepares the data, longer than torch's ten minutes."""

_SECRET_BYTES = 32
_SECRET_TIMEOUT = timedelta(minutes=10)


def meet(count: int, use_cpu: bool) -> None:
    """Join the other ranks, where there are any.

    Args:
        count: how often this attempt has begun again; each time the ranks meet at a file of its own.
        use_cpu: stay on the CPU.

    Raises:
        StageError: there is no rendezvous directory, or another program connected in a rank's place.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world == 1:
        return
    place = Path(os.environ.get(RENDEZVOUS_DIR, ""))
    if not (place.is_absolute() and place.is_dir()):
        raise StageError(
            f"{world} processes have no rendezvous directory: `{RENDEZVOUS_DIR}` names none. Start the run with "
            "`stackllama-console`, whose supervisor makes one."
        )
    read_plain_objects_alone()
    store = FileStore(str(place / f"ranks-{count}"), world)
    on_gpu = torch.cuda.is_available() and not use_cpu
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=world, timeout=TIMEOUT
    )
    if not on_gpu:
        check_peers(store, rank, world)


def check_peers(store: Store, rank: int, world: int) -> None:
    """Exchange a secret with every rank over the group's sockets and compare it with what the store holds.

    Raises:
        StageError: another secret arrived, or none.
    """
    row = _SECRET_BYTES * world  # one for each rank
    store.set(f"secrets/{rank}", secrets.token_hex(row // 2))
    sent = torch.frombuffer(bytearray(store.get(f"secrets/{rank}")), dtype=torch.uint8)  # [world * 32]
    arrived = torch.empty_like(sent)
    try:
        work: Any = distributed.all_to_all_single(arrived, sent, async_op=True)
        work.wait(_SECRET_TIMEOUT)
    except RuntimeError as error:
        raise StageError(f"The processes could not verify each other: {error}") from error
    mine = slice(rank * _SECRET_BYTES, (rank + 1) * _SECRET_BYTES)
    expected = b"".join(bytes(store.get(f"secrets/{other}"))[mine] for other in range(world))
    if not secrets.compare_digest(arrived.numpy().tobytes(), expected):
        raise StageError(
            "Another program on this machine connected in the place of a process of this run. Nothing was exchanged; "
            "find out who it was before the run is resumed."
        )


class PlainObjects(pickle.Unpickler):
    """Reads texts, numbers, lists and dictionaries. Whatever would look a class or function up is refused."""

    def find_class(self, module: str, name: str, /) -> NoReturn:
        """Refuse: with one of these a pickle can execute anything."""
        raise StageError(
            f"A library sent a Python object ({module}.{name}) to another process, where it would be unpickled and "
            "could execute anything. That is switched off."
        )


def read_plain_objects_alone() -> None:
    """Let torch's collectives of objects, which libraries use, read nothing but plain ones from now on."""
    if not hasattr(distributed_c10d, "_unpickler"):
        raise StageError(
            "This version of torch is not supported: it unpickles objects from other processes in an unknown place."
        )
    distributed_c10d._unpickler = PlainObjects  # the one place where all of them unpickle
