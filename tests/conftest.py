import multiprocessing
import os
import socket

import pytest
import torch
from accelerate.state import PartialState

from course.train.processes import surroundings


def as_process(rank, port, work, folder):
    """What each process does; torchrun and accelerate launch set the same variables."""
    torch.set_num_threads(1)  # a forked process has lost its parent's pool of threads
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in numbers.items()}, MASTER_ADDR="127.0.0.1")
    PartialState._reset_state()  # forget that the parent was alone
    world = surroundings()
    work(rank, world, folder)
    world.destroy_process_group()


@pytest.fixture
def two_processes(tmp_path, monkeypatch):
    """Run ``work(rank, world, folder)`` in two processes that know each other; gives the folder."""

    def run(work):
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        fork = multiprocessing.get_context("fork")
        workers = [fork.Process(target=as_process, args=(rank, port, work, tmp_path)) for rank in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
            worker.kill()
            assert worker.exitcode == 0
        PartialState._reset_state()
        return tmp_path

    return run
