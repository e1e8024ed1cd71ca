"""Ranks that do nothing but meet: ``accelerate launch … toy_ranks.py RUN_DIR``. They save and stop on request."""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import distributed

from stackllama_engine.contract.events import EventWriter
from stackllama_engine.contract.run_dir import RunDir
from stackllama_engine.contract.stacks import offer_stacks
from stackllama_engine.train.rendezvous import meet


def main(run: RunDir) -> int:
    folder = run.attempt_dir(int(os.environ["STACKLLAMA_ATTEMPT"]))
    offer_stacks(folder)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: asked.append(number))
    meet(0, use_cpu=True)
    rank = distributed.get_rank()
    (run.path / f"rank-{rank}.pid").write_text(str(os.getpid()))
    events = EventWriter(folder / "events.jsonl") if rank == 0 else None
    if events:
        events.write("phase", phase="train")
    step = 0
    while True:
        step += 1
        wanted = torch.tensor([bool(asked) or "stop" in run.requests()], dtype=torch.int32)
        distributed.all_reduce(wanted, op=distributed.ReduceOp.MAX)
        if wanted.item():
            break
        if events:
            events.write("progress", step=step, total_steps=1_000_000)
        time.sleep(0.05)
    time.sleep(0.5)  # a save takes its time
    (run.path / f"saved-by-{rank}").touch()
    distributed.barrier()
    if events:
        events.write("checkpoint", step=step)
        events.write("end", data={"exit_code": 75, "cause": None})
    return 75


if __name__ == "__main__":
    sys.exit(main(RunDir(Path(sys.argv[1]))))
