"""The real coordinator, whose children are fake workers: ``python fake_pipeline.py RUN_DIR``.

``FAKE_MODES`` (JSON) maps a child's suffix to its mode; the others finish.
"""

import json
import os
import sys
from pathlib import Path

from stackllama_engine.contract.child_environment import source_path
from stackllama_engine.launch import launcher, pipeline
from stackllama_engine.launch.argv import RUN_MARK, Command

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")


def fake_child(_recipe: object, run_dir: Path, _gpus: list[str]) -> Command:
    modes = json.loads(os.environ.get("FAKE_MODES", "{}"))
    mode = modes.get(run_dir.name.removeprefix("p-"), "finish")
    environment = {RUN_MARK: str(run_dir), "STACKLLAMA_WORLD_SIZE": "1"} | source_path("")
    return Command(argv=[sys.executable, str(FAKE_WORKER), str(run_dir), mode], environment=environment)


if __name__ == "__main__":
    launcher.build_command = fake_child
    sys.exit(pipeline.main(sys.argv[1:]))
