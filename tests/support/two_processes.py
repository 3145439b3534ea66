"""Work that two processes do together, with gloo."""

import functools
import os
import socket
import warnings

import torch
import torch.multiprocessing
from torch import distributed

from support import monitored, shared_derivatives, shared_losses, shared_training

JOBS = {"derivatives": shared_derivatives.compare, "losses": shared_losses.compare}
"""What is found out by both processes together; names and differences, or texts of errors."""
TRAINING = {"training": shared_training.compare}
MONITORS = {"monitors": monitored.compare}


def _process(rank, port, queue, jobs):
    """What each process runs; the first puts its findings into the queue."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        found = {name: job() for name, job in jobs.items()}
        if rank == 0:
            queue.put(found)
    finally:
        distributed.destroy_process_group()


@functools.cache
def findings():
    """The findings of all jobs; the processes are started once, which takes most of the time."""
    return _found(JOBS)


@functools.cache
def training():
    """The findings of the trainer's job, in processes of its own."""
    return _found(TRAINING)["training"]


@functools.cache
def monitors():
    """The findings of the monitors' job, likewise."""
    return _found(MONITORS)["monitors"]


def _found(jobs):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(_process, (port, queue, jobs), nprocs=2)
    return queue.get()
