"""A run with checkpoints that a fork can start from; nothing of it was trained."""

import msgspec

from stackllama_engine.contract import resuming
from stackllama_engine.contract.base import DEMO_BASE
from stackllama_engine.contract.checkpoints import FileSeal, Manifest, digest
from stackllama_engine.contract.recipe import TrainedRecipe
from stackllama_engine.contract.recipe_io import build_recipe, dump_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage


def make_forkable(home: Home) -> RunDir:
    """Make a run of 40 steps with checkpoints of steps 10 and 20."""
    keys = {"model_name_or_path": str(DEMO_BASE), "dataset_name": "demo", "use_cpu": True, "max_steps": 40}
    recipe = build_recipe(Stage.SFT, keys | {"base_precision": "dtype", "gradient_checkpointing": False})
    assert isinstance(recipe, TrainedRecipe)
    run = home.create(Stage.SFT, dump_recipe(recipe), "source")
    for step in (10, 20):
        folder = run.checkpoints / f"step-{step:06d}"
        folder.mkdir(parents=True)
        (folder / "weights").write_text(f"of step {step}")
        resuming.remember(folder, recipe)
        seals = {file.name: FileSeal(size=file.stat().st_size, sha256=digest(file)) for file in folder.iterdir()}
        (folder / "manifest.json").write_bytes(msgspec.json.encode(Manifest(step=step, files=seals)))
    return run
