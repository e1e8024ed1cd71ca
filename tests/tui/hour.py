"""The console whose runs and chats take a second: ``python hour.py PART [RUN_DIR]``, each part a process of its own.

``console`` is the real application; what it launches are the other parts. A stage fails where its recipe has a
``learning_rate`` of 0.5 or more.
"""

import os
import sys
from pathlib import Path
from typing import Any

from stackllama_engine.contract.child_environment import source_path
from stackllama_engine.contract.events import EventWriter
from stackllama_engine.contract.recipe import PipelineRecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher, pipeline
from stackllama_engine.launch.argv import RUN_MARK, Command

_STEPS = 12
_GENERATOR = Path(__file__).parents[1] / "readers" / "fake_generator.py"


def build_command(recipe: Any, run_dir: Path, _gpus: list[str]) -> Command:
    """Return the command of a part instead of a stage's."""
    part = "pipeline" if isinstance(recipe, PipelineRecipe) else "stage"
    environment = {RUN_MARK: str(run_dir), "STACKLLAMA_WORLD_SIZE": "1"} | source_path(os.environ["PYTHONPATH"])
    return Command(argv=[sys.executable, __file__, part, str(run_dir)], environment=environment)


def stage(run: RunDir) -> int:
    """Write a curve and a result, or fail."""
    state = run.read_state()
    recipe = load_recipe(state.stage, run.recipe_file)
    events = EventWriter(run.attempt_dir(int(os.environ["STACKLLAMA_ATTEMPT"])) / "events.jsonl")
    events.write("phase", phase="merge" if state.stage is Stage.MERGE else "train")
    rate = getattr(recipe, "learning_rate", 0.0)
    for step in range(1, _STEPS + 1):
        print(f"INFO step {step}", flush=True)
        events.write("progress", step=step, total_steps=_STEPS)
        events.write("metrics", step=step, metrics={"loss": 4.0 / step, "learning_rate": rate})
        if rate >= 0.5 and step == _STEPS // 2:
            cause = f"The loss is not finite at step {step}; lower `learning_rate` ({rate})."
            events.write("end", data={"exit_code": 1, "cause": cause})
            return 1
    run.write_json("result.json", {"loss_first": 4.0, "loss_last": 4.0 / _STEPS})
    (run.merged if state.stage is Stage.MERGE else run.adapter).mkdir()
    events.write("end", data={"exit_code": 0, "cause": None})
    return 0


def main(part: str, *run_dir: str) -> int:
    """Run one part."""
    if part == "stage":
        return stage(RunDir(Path(*run_dir)))
    launcher.build_command = build_command
    if part == "pipeline":
        return pipeline.main(list(run_dir))
    from stackllama_console.__main__ import main as console
    from stackllama_console.readers import generator

    def chat_command(*_: Any, **__: Any) -> tuple[list[str], dict[str, str]]:
        return [sys.executable, str(_GENERATOR), "echo"], dict(os.environ)

    generator.chat_command = chat_command
    return console([])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
