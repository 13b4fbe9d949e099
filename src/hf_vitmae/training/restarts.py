"""Processes that a launcher starts again, as with `torchrun --max-restarts`.

They meet in the launcher's store of names and addresses, in which torch 2.13 leaves those of the
processes that died: whoever is first then waits for one of them, and the restart fails or hangs.
"""

import os

import torch
from torch.distributed import get_default_backend_for_device, init_process_group, is_initialized
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous


def join_after_restart() -> None:
    """Make the process group of a restarted launch, under names that no earlier start used.

    Called before there is an `Accelerator`, which takes over the group that it finds. Does nothing
    in a first start. On several machines too, whose launchers count restarts each on its own: there
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 and a c10d rendezvous do as much.
    """
    found = os.environ
    restart = int(found.get("TORCHELASTIC_RESTART_COUNT", 0))
    is_shared = found.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_one_machine = found.get("GROUP_WORLD_SIZE") == "1"
    is_alone = found.get("WORLD_SIZE", "1") == "1"
    if restart == 0 or not (is_shared and is_one_machine) or is_alone or is_initialized():
        return
    store, rank, world_size = next(rendezvous("env://"))
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    init_process_group(
        get_default_backend_for_device(device or "cpu"),
        store=PrefixStore(f"restart-{restart}", store),
        rank=rank,
        world_size=world_size,
    )
