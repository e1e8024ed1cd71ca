"""``python -m stackllama_engine.train.audit RUN_DIR``: audit a finished reward run; prints the audit as JSON."""

import argparse
import sys
from pathlib import Path

import msgspec
import torch

from ...contract.errors import DataError, StackllamaError
from ...contract.recipe import RewardRecipe
from ...contract.recipe_io import load_recipe
from ...contract.run_dir import RunDir
from ...contract.stages import Stage
from ...contract.streams import open_standard_streams
from ...contract.threads import threads_per_process
from .. import models
from ..prompt_formats import recorded_encoder


def main(argv: list[str]) -> int:
    """Audit one run; return the exit code."""
    parser = argparse.ArgumentParser(prog="audit", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args(argv)
    models.quiet_libraries()
    try:
        document = msgspec.json.encode(_audit(RunDir(arguments.run.absolute()), cpu=arguments.cpu))
    except StackllamaError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the command repeats it
        return error.exit_code
    sys.stdout.buffer.write(document + b"\n")
    return 0


def _audit(run: RunDir, *, cpu: bool) -> object:
    from .scoring import audit_model

    recipe = load_recipe(Stage.REWARD, run.recipe_file)
    assert isinstance(recipe, RewardRecipe)
    device = torch.device("cpu" if cpu or recipe.use_cpu or not torch.cuda.is_available() else "cuda")
    torch.set_num_threads(threads_per_process(recipe.model_name_or_path, on_cpu=device.type == "cpu"))
    name, revision = recipe.model_name_or_path, recipe.model_revision
    encoder = recorded_encoder(run.path, models.load_tokenizer(name, revision), name, revision)
    if run.adapter.is_dir():
        recipe = msgspec.structs.replace(recipe, gradient_checkpointing=False, use_liger_kernel=False)
        base = models.load_reward_base(recipe, models.pad_id(encoder.tokenizer), device)
        model = models.add_lora(base, recipe, "SEQ_CLS")
        models.set_adapter_state(model, models.adapter_weights(run.adapter, device), "default")
    elif run.merged.is_dir():
        model = models.load_plain(str(run.merged), None, "auto", device, reward=True)
    else:
        raise DataError(f"`{run.id}` has no result to audit: neither an adapter nor a model.")
    return audit_model(recipe, encoder, model)


if __name__ == "__main__":
    open_standard_streams()
    sys.exit(main(sys.argv[1:]))
