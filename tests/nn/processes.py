"""Two processes of one gloo group, for the tests of what they share."""

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# a server imports once what each process would; where there is none, each imports it
METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
if METHOD == "forkserver":
    multiprocessing.set_forkserver_preload(["torch", "fastvq", "vector_quantize_pytorch"])


def run_two(work, folder, *arguments):
    """What ``work(rank, meet, *arguments)`` returns on each; ``meet()`` joins the processes.

    Until then a module is built that does not know of the other process, which must not matter.
    """
    if not dist.is_available():
        pytest.skip("this torch has no torch.distributed")
    torch.save(arguments, Path(folder) / "arguments.pt")
    mp.start_processes(_process, (str(folder), work), nprocs=2, start_method=METHOD)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


def _process(rank, folder, work):
    torch.set_num_threads(1)

    def meet():
        rendezvous = f"file://{folder}/rendezvous"
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)

    found = work(rank, meet, *torch.load(f"{folder}/arguments.pt"))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
