"""A worker that speaks the protocol without training: ``python scripted_worker.py RUN_DIR STEPS SECONDS_A_STEP``."""

import os
import sys
import time
from pathlib import Path

from stackllama_engine.contract.events import EventWriter
from stackllama_engine.contract.run_dir import RunDir


def main(run: RunDir, steps: int, pause: float) -> int:
    events = EventWriter(run.attempt_dir(int(os.environ["STACKLLAMA_ATTEMPT"])) / "events.jsonl")
    events.write("phase", phase="train")
    saved = [int(path.name[5:]) for path in run.checkpoints.iterdir()]
    for step in range(max(saved, default=0) + 1, steps + 1):
        print(f"step {step}", flush=True)
        events.write("progress", step=step, total_steps=steps)
        events.write("metrics", step=step, metrics={"loss": 4.0 / step, "learning_rate": 1e-5})
        time.sleep(pause)
        if "stop" in run.requests():
            (run.checkpoints / f"step-{step:06d}").mkdir()
            events.write("checkpoint", step=step, data={"path": f"checkpoints/step-{step:06d}"})
            events.write("end", data={"exit_code": 75, "cause": None})
            return 75
    run.write_json("result.json", {"stage": "sft", "loss_first": 4.0, "loss_last": 4.0 / steps})
    events.write("end", data={"exit_code": 0, "cause": None})
    return 0


if __name__ == "__main__":
    sys.exit(main(RunDir(Path(sys.argv[1])), int(sys.argv[2]), float(sys.argv[3])))
