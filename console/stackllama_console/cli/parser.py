"""The commands and their arguments. Nothing but argparse is imported here; a command's module is loaded when it runs.

Every leaf names its handler as ``module:function``; the function takes the parsed arguments and returns an exit code.
"""

import argparse
import importlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from stackllama_engine import __version__
from stackllama_engine.contract.errors import UsageError

from .output import PROGRAM

STAGES = ("sft", "reward", "preference", "ppo", "merge", "pipeline")

_DESCRIPTION = """\
The StackLLaMA recipe from a terminal: fine-tuning, reward model and PPO.
Without a command it opens the console.

  open       open the console on one run or another trainer's directory
  demo       run everything on a tiny embedded model, in minutes, without a GPU
  recipe     convert a recipe of TRL, LLaMA-Factory or axolotl
  plan       estimate a recipe's memory, and suggest what would make it fit
  launch     start one stage in the background, detached from this terminal
  pipeline   run all stages in order, each on the result of the one before
  runs       ls, show, logs, watch, verify, stop, resume, rm, repair;
             for a running one: save, sample, pause, continue, set
  merge      merge a run's adapter into its base model
  chat       chat with a run's model and its base model
  export     write a run's adapter or merged model with a model card
  data       prepare a Stack Exchange dump, preview a data source
  gpus       show the GPUs and which runs hold their memory
  doctor     check what this machine has and lacks
  info       print where files are kept"""

_EPILOG = """\
exit codes: 0 done · 1 failed · 2 wrong usage or recipe
            3 refused before launch · 75 stopped after saving, resumable
            128+N ended by signal N"""

_RECIPE_EPILOG = """\
A recipe is YAML with the key names of TRL and transformers.
`key=value` overrides it: learning_rate=2e-5. For one
stage of a pipeline: ppo.learning_rate=2e-5."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are a :class:`UsageError` with the nearest right word."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.known: list[str] = []
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        """Add an argument as argparse does; remember its option names for suggestions."""
        action = super().add_argument(*args, **kwargs)
        self.known += action.option_strings
        return action

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing usage and exiting."""
        raise UsageError(f"{_in_words(message)} ({self.prog} --help)")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of one command.

    Raises:
        UsageError: unknown command or option, with the nearest right one; an argument that is not UTF-8.
        SystemExit: ``--help`` and ``--version``, after printing.
    """
    for word in argv:
        if not _is_text(word):
            raise UsageError(f"the argument {word!a} is not valid UTF-8.")
    arguments, rest = build_parser().parse_known_args(argv)
    leaf: Parser = arguments.parser
    for word in rest:
        if word.startswith("-"):
            if word.partition("=")[0] in leaf.known:  # it stood before the command
                raise UsageError(f"`{word}` goes after `{leaf.prog.removeprefix(PROGRAM).strip()}`.")
            near = _near(word.partition("=")[0], leaf.known)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise UsageError(f"`{leaf.prog}` has no option `{word}`{hint} ({leaf.prog} --help)")
        if not hasattr(arguments, "words"):
            raise UsageError(f"`{word}`: one argument too many ({leaf.prog} --help)")
        arguments.words.append(word)  # an override after an option
    return arguments


def handler(arguments: argparse.Namespace) -> Callable[[argparse.Namespace], int]:
    """Return the function behind a command, imported now."""
    module, _, function = arguments.handler.partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), function)


def build_parser() -> Parser:
    """Build the whole tree of commands."""
    usage = f"{PROGRAM} [--home DIR] [--ascii] [--mouse] [COMMAND …]"
    parser = Parser(prog=PROGRAM, usage=usage, description=_DESCRIPTION, epilog=_EPILOG)
    parser.set_defaults(parser=parser, handler="console:console")
    _add_drawing(parser, default=False)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    parser.add_argument("--home", type=Path, metavar="DIR", help=_HOME_HELP)
    parser.add_argument("--trust-owner", metavar="USER", help=_TRUST_HELP)
    commands = parser.add_subparsers(prog=PROGRAM, metavar="COMMAND", help=argparse.SUPPRESS, title=argparse.SUPPRESS)
    _add_open(commands)
    _add_demo(commands)
    _add_recipe(commands)
    _add_plan(commands)
    _add_launch(commands)
    _add_runs(commands)
    _add_chat(commands)
    _add_audit(commands)
    _add_export(commands)
    _add_data(commands)
    _add_gpus(commands)
    for name, text in (("doctor", "Check what this machine has and lacks."), ("info", "Print where files are kept.")):
        _leaf(commands, name, text, f"doctor:{name}", json=True)
    return parser


_HOME_HELP = "directory that holds the runs (default: STACKLLAMA_HOME, else $XDG_DATA_HOME/stackllama)"
_TRUST_HELP = "also trust a home that this user owns or lets others write (STACKLLAMA_TRUST_OWNER)"
_FOLLOW_HELP = "follow the run and exit with its exit code; Ctrl-C detaches without stopping it"
_CANARY_HELP = "PPO: dry-run one worst-case step and checkpoint before training (default: on a GPU)"
_AFTER_HELP = "start when this run has ended, however, and the GPUs have room by the budget's estimate"
_ALLOW_HELP = "launch in spite of this finding of the checks, e.g. eval-prompts (repeatable; see docs/linter.md)"
_HOST_GONE_HELP = "confirm that this machine, which the run is on, is gone for good; its processes cannot be checked"
_FORK_EPILOG = (
    "The fork continues from a copy of the checkpoint: optimizer, data order and random numbers as they were. "
    "learning_rate and kl_coef count from its second step on; keys that weights depend on cannot change."
)
_FILTER_HELP = "list only runs that match, e.g. 'state:failed stage:ppo reward>1 -tag:old' (--filter=-tag:old)"
_COLUMNS_HELP = (
    "columns: run, stage, model, state, step, age, duration, eta, reward, kl, loss, lr, trend, tags, note, last"
)
_ON_END_HELP = "shell command to run when it ends or stalls (default: `on_end` of settings.yaml)"
_PLAIN_HELP = "print lines instead of progress bars"
_JSON_HELP = "print one JSON document on stdout"
_OVERRIDE = "key=value"
_Commands = Any  # argparse's _SubParsersAction is private


def _leaf(commands: _Commands, name: str, text: str, target: str, *, json: bool = False, epilog: str = "") -> Parser:
    parser: Parser = commands.add_parser(name, help=text, description=text, epilog=epilog)
    parser.set_defaults(parser=parser, handler=target, json=False)
    parser.add_argument("--home", type=Path, metavar="DIR", default=argparse.SUPPRESS, help=_HOME_HELP)
    parser.add_argument("--trust-owner", metavar="USER", default=argparse.SUPPRESS, help=_TRUST_HELP)
    if json:
        parser.add_argument("--json", action="store_true", help=_JSON_HELP)
    return parser


def _add_open(commands: _Commands) -> None:
    text = "Open the console on a run, or read-only on another trainer's directory."
    target = _leaf(commands, "open", text, "console:open_target")
    target.add_argument(
        "target",
        metavar="RUN|DIR",
        help="run id, or a directory with trainer_state.json, trainer_log.jsonl or TensorBoard events",
    )
    _add_drawing(target)


def _add_drawing(parser: Parser, default: Any = argparse.SUPPRESS) -> None:
    """Add --ascii and --mouse, which may stand before the command or after it.

    A command's own default must not undo what stood before it.
    """
    texts = {
        "--ascii": "draw with ASCII characters only",
        "--mouse": "enable mouse support (disables terminal text selection)",
    }
    for name, text in texts.items():
        parser.add_argument(name, action="store_true", default=default, help=text)


def _add_demo(commands: _Commands) -> None:
    text = "Run SFT, reward model and PPO on the embedded model and data, then print what changed."
    demo = _leaf(commands, "demo", text, "demo:demo", json=True)
    demo.add_argument("--seed", type=_seed, default=0, metavar="N", help="seed of every stage (default: 0)")
    demo.add_argument("--plain", action="store_true", help="print lines instead of opening the console")
    _add_drawing(demo)
    _add_words(demo, "")


def _add_plan(commands: _Commands) -> None:
    text = "Estimate a recipe's memory per phase, before anything is loaded."
    plan = _leaf(commands, "plan", text, "plan:plan", json=True, epilog=_RECIPE_EPILOG)
    plan.add_argument("stage", metavar="STAGE", choices=STAGES, help=", ".join(STAGES))
    _add_words(plan, "STAGE [RECIPE.yaml] ", "recipe file and overrides")
    plan.add_argument("--gpu", metavar="SIZE", help="24GiB, 80GB or a card such as RTX-4090 (default: this machine's)")
    plan.add_argument("--gpus", type=_count, metavar="N", help="number of GPUs (default: all that a run would use)")
    text = "estimate memory if sharded across the GPUs (estimate only; launch does not shard)"
    plan.add_argument("--shard", choices=("zero2", "zero3", "fsdp"), help=text)
    plan.add_argument(
        "--trace", action="store_true", help="also trace two steps without weights (seconds; needs torch)"
    )


def _add_recipe(commands: _Commands) -> None:
    text = "Convert another trainer's recipe."
    group: Parser = commands.add_parser("recipe", help=text, description=text)
    group.set_defaults(parser=group, handler=None)
    recipe = group.add_subparsers(metavar="COMMAND", title="commands")
    text = "Convert a recipe of TRL, LLaMA-Factory or axolotl for this engine; list what is left out."
    convert = _leaf(recipe, "convert", text, "recipe:convert", json=True)
    convert.add_argument("file", type=Path, metavar="FILE", help="another trainer's YAML file")
    convert.add_argument("--out", type=Path, metavar="FILE", help="file to write (default: print the recipe)")
    convert.add_argument("--stage", choices=STAGES[:4], help="stage of the converted recipe (default: the file's own)")
    convert.add_argument("--force", action="store_true", help="overwrite the file of --out")


def _add_launch(commands: _Commands) -> None:
    launch = _leaf(
        commands, "launch", "Start one stage; print its run id.", "launch:launch", json=True, epilog=_RECIPE_EPILOG
    )
    launch.add_argument("stage", metavar="STAGE", choices=STAGES, help=", ".join(STAGES))
    text = "Run all stages in order: SFT, merge, reward, merge, PPO, merge; print the run id."
    pipeline = _leaf(commands, "pipeline", text, "launch:pipeline", json=True, epilog=_RECIPE_EPILOG)
    for parser in (launch, pipeline):
        before = "STAGE [RECIPE.yaml] " if parser is launch else "[RECIPE.yaml] "
        _add_words(parser, before, "recipe file and overrides")
        parser.add_argument("--name", metavar="RUN", help="run id (default: stage, date and time)")
        parser.add_argument("--after", metavar="RUN", help=_AFTER_HELP)
        parser.add_argument("--allow", action="append", default=[], metavar="NAME", help=_ALLOW_HELP)
        parser.add_argument("--follow", "-f", action="store_true", help=_FOLLOW_HELP)
        parser.add_argument("--dry-run", action="store_true", help="print command and recipe without starting anything")
        parser.add_argument("--plain", action="store_true", help=_PLAIN_HELP)
        parser.add_argument("--on-end", metavar="COMMAND", help=_ON_END_HELP)
    launch.add_argument("--slurm", action="store_true", help="submit a Slurm job that requeues itself")
    text = "extra sbatch option, e.g. time=8:00:00 (repeatable)"
    launch.add_argument("--sbatch-option", action="append", default=[], metavar="KEY=VALUE", help=text)
    launch.add_argument("--canary", action=argparse.BooleanOptionalAction, default=None, help=_CANARY_HELP)
    merge = _leaf(commands, "merge", "Merge a finished run's adapter into its base model.", "launch:merge", json=True)
    merge.add_argument(
        "run", metavar="RUN", help="run id of a finished sft, reward, preference or ppo run, or an adapter directory"
    )
    _add_words(merge, "RUN ")
    merge.add_argument("--name", metavar="RUN", help="run id of the merge")
    merge.add_argument("--follow", "-f", action=argparse.BooleanOptionalAction, default=True, help=_FOLLOW_HELP)
    merge.add_argument("--plain", action="store_true", help=_PLAIN_HELP)


def _add_runs(commands: _Commands) -> None:
    text = "List, show, stop and resume runs."
    group: Parser = commands.add_parser("runs", help=text, description=text)
    group.set_defaults(parser=group, handler=None)
    runs = group.add_subparsers(metavar="COMMAND", title="commands")
    ls = _leaf(runs, "ls", "List all runs, oldest first.", "listing:ls", json=True)
    ls.add_argument("--stage", choices=STAGES, help="list only this stage")
    ls.add_argument("--filter", metavar="TEXT", help=_FILTER_HELP)
    ls.add_argument("--sort", metavar="COLUMN", help="sort by a column, numbers from the highest down")
    ls.add_argument("--reverse", action="store_true", help="reverse the order")
    ls.add_argument("--columns", metavar="A,B", help=_COLUMNS_HELP)
    show = _leaf(runs, "show", "Show one run: state, recipe, metrics and next steps.", "runs:show_run", json=True)
    logs = _leaf(runs, "logs", "Print a run's log.", "runs:logs")
    logs.add_argument("--follow", "-f", action="store_true", help="keep printing until the run ends")
    logs.add_argument(
        "--lines", "-n", type=_count, default=100, metavar="N", help="number of lines from the end (default: 100)"
    )
    logs.add_argument("--attempt", type=_count, metavar="N", help="attempt number (default: the newest)")
    watch = _leaf(runs, "watch", "Follow a run until it ends; exit with its exit code.", "runs:watch", json=True)
    stop = _leaf(runs, "stop", "Stop a run after it has saved a checkpoint.", "runs:stop", json=True)
    stop.add_argument("--wait", action=argparse.BooleanOptionalAction, default=True, help="wait until it has ended")
    resume = _leaf(runs, "resume", "Resume a run from its newest checkpoint.", "runs:resume", json=True)
    resume.add_argument("--follow", "-f", action="store_true", help=_FOLLOW_HELP)
    resume.add_argument("--on-end", metavar="COMMAND", help=_ON_END_HELP)
    resume.add_argument("--host-gone", metavar="HOST", help=_HOST_GONE_HELP)
    resume.add_argument(
        "--recipe-changed", action="store_true", help="accept a recipe that was edited since the last attempt"
    )
    resume.add_argument(
        "--reward-fn-changed",
        action="store_true",
        help="execute the code of reward_funcs even if it changed since launch",
    )
    _add_fork(runs)
    for parser in (show, logs, watch):
        parser.add_argument("run", metavar="RUN", nargs="?", help="run id (default: the newest run)")
    text = "Verify every checkpoint by reading it back; exit with 1 if one is damaged or there is none."
    verify = _leaf(runs, "verify", text, "verify:verify", json=True)
    verify.add_argument("run", metavar="RUN", nargs="?", help="run id (default: the newest run)")
    rm = _leaf(runs, "rm", "Delete a run that has ended, a pipeline with its stages.", "runs:rm", json=True)
    rm.add_argument("--yes", "-y", action="store_true", help="do not ask for confirmation")
    rm.add_argument("--host-gone", metavar="HOST", help=_HOST_GONE_HELP)
    rm.add_argument(
        "--leftovers", action="store_true", help="delete what interrupted launches and deletions left behind"
    )
    rm.add_argument("run", metavar="RUN", nargs="?", help="run id")
    text = "Rebuild the records of a damaged run from its other files."
    repair = _leaf(runs, "repair", text, "runs:repair", json=True)
    for parser in (stop, resume, repair):
        parser.add_argument("run", metavar="RUN", help="run id")
    _add_labels(runs)
    for name, text in _ASKS.items():
        asked = _leaf(runs, name, text, "requests:ask", json=True)
        asked.set_defaults(ask=name)
        asked.add_argument("run", metavar="RUN", help="run id; for a pipeline, its active stage")
        if name == "set":
            asked.add_argument("change", metavar="KEY=VALUE", help="learning_rate=1e-5; for ppo also kl_coef=0.1")
    for parser in (watch, resume):
        parser.add_argument("--plain", action="store_true", help=_PLAIN_HELP)


def _add_fork(runs: _Commands) -> None:
    text = "Start a new run from a checkpoint of another one, with changed keys."
    fork = _leaf(runs, "fork", text, "fork:fork", json=True, epilog=_FORK_EPILOG)
    fork.add_argument("run", metavar="RUN", help="run id; it may be running")
    _add_words(fork, "RUN ")
    fork.add_argument("--at", type=_count, metavar="STEP", help="step of the checkpoint (default: the newest)")
    fork.add_argument("--name", metavar="RUN", help="run id of the fork (default: the run's, and the step)")
    fork.add_argument("--allow", action="append", default=[], metavar="NAME", help=_ALLOW_HELP)
    fork.add_argument("--follow", "-f", action="store_true", help=_FOLLOW_HELP)
    fork.add_argument("--plain", action="store_true", help=_PLAIN_HELP)
    fork.add_argument("--on-end", metavar="COMMAND", help=_ON_END_HELP)


def _add_labels(runs: _Commands) -> None:
    tag = _leaf(runs, "tag", "Tag a run; without a tag, print its tags.", "labels:tag", json=True)
    tag.add_argument("run", metavar="RUN", help="run id")
    tag.add_argument("tags", metavar="TAG", nargs="*", help="tag to add")
    tag.add_argument("--remove", action="append", default=[], metavar="TAG", help="tag to remove (repeatable)")
    note = _leaf(runs, "note", "Write a note on a run.", "labels:note", json=True)
    note.add_argument("run", metavar="RUN", help="run id")
    note.add_argument("text", metavar="TEXT", help="one line; empty removes the note")
    rename = _leaf(runs, "rename", "Give a run a title, which lists show; its id stays.", "labels:rename", json=True)
    rename.add_argument("run", metavar="RUN", help="run id")
    rename.add_argument("title", metavar="TITLE", help="one line; empty removes the title")


_ASKS = {
    "save": "Save a checkpoint at the next step.",
    "sample": "Sample responses to a few held-out prompts after the current step.",
    "pause": "Pause a run after the current step; GPU memory stays allocated.",
    "continue": "Continue a paused run.",
    "set": "Change the learning rate or KL coefficient from the next step on.",
}


def _add_chat(commands: _Commands) -> None:
    text = "Chat with a run's model and its base. Without --prompt, each line of stdin is a question."
    chat = _leaf(commands, "chat", text, "chat:chat", json=True)
    chat.add_argument("run", metavar="RUN", help="run id of an sft, ppo or merge run")
    chat.add_argument("--checkpoint", metavar="N", help="checkpoint step (default: the result, else the newest)")
    chat.add_argument("--prompt", metavar="TEXT", help="one question, put into the model's prompt template")
    chat.add_argument(
        "--system-prompt", metavar="TEXT", help="system prompt in place of the run's own; in the format `chat` only"
    )
    chat.add_argument(
        "--max-new-tokens", type=_count, default=128, metavar="N", help="maximum new tokens per answer (default: 128)"
    )
    chat.add_argument(
        "--temperature",
        type=_temperature,
        default=1.0,
        metavar="T",
        help="sampling temperature; 0 = greedy (default: 1)",
    )
    chat.add_argument("--seed", type=_seed, default=0, metavar="N", help="sampling seed for both models (default: 0)")
    chat.add_argument("--cpu", action="store_true", help="run on the CPU")


def _add_audit(commands: _Commands) -> None:
    text = "Say whether a reward model's scores mean anything: against simple rules, by length, on spoilt responses."
    audit = _leaf(commands, "audit", text, "audit:audit", json=True)
    audit.add_argument(
        "run", metavar="RUN", help="run id of a finished reward run; a pipeline stands for its reward stage"
    )
    audit.add_argument("--again", action="store_true", help="make it anew, also where the run has one")
    audit.add_argument("--svg", type=Path, metavar="FILE", help="also write a page of plots")
    audit.add_argument("--cpu", action="store_true", help="score on the CPU")


def _add_export(commands: _Commands) -> None:
    text = "Write a run's adapter, or its merged model, with a model card, as transformers and PEFT load it."
    export = _leaf(commands, "export", text, "export:export", json=True)
    export.add_argument("run", metavar="RUN", help="run id; a pipeline stands for its PPO stage")
    export.add_argument("--to", type=Path, metavar="DIR", help="folder to create (default: the run's id)")
    export.add_argument("--merged", action="store_true", help="export the merged model instead of the adapter")
    export.add_argument("--push", metavar="REPO", help="then upload it to this repository of the hub, created private")


def _add_data(commands: _Commands) -> None:
    text = "Prepare a Stack Exchange dump, preview a data source."
    group: Parser = commands.add_parser("data", help=text, description=text)
    group.set_defaults(parser=group, handler=None)
    data = group.add_subparsers(metavar="COMMAND", title="commands")
    prepare = _leaf(
        data, "prepare", "Convert a dump's Posts.xml to scored pairs, split by question.", "data:prepare", json=True
    )
    prepare.add_argument(
        "posts", type=Path, metavar="POSTS.xml", help="Posts.xml from https://archive.org/details/stackexchange"
    )
    prepare.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to create")
    prepare.add_argument(
        "--seed", type=_seed, default=0, metavar="N", help="seed for order and choice of pairs (default: 0)"
    )
    preview = _leaf(data, "preview", "Print a source's first rows as the model reads them.", "data:preview", json=True)
    preview.add_argument(
        "source", metavar="SOURCE", help="`demo`, a prepared directory, a file, folder or pattern, or a hub id"
    )
    preview.add_argument("--split", help="finetune, reward, rl, evaluation or all; for other hub data sets, their own")
    preview.add_argument("--config", metavar="NAME", help="configuration of a hub data set")
    preview.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub data set")
    preview.add_argument("--rows", "-n", type=_count, default=3, metavar="N", help="number of rows (default: 3)")
    text = "show the tokens of a stage, by this model's tokenizer"
    preview.add_argument("--model", metavar="NAME", help=text)
    text = "show the tokens of a stage, by this recipe; a pipeline's is one as well"
    preview.add_argument("--recipe", type=Path, metavar="FILE", help=text)
    preview.add_argument(
        "--stage", choices=STAGES[:4], help="stage of the tokens (default: by the recipe's keys, or sft)"
    )
    _add_words(preview, "SOURCE ")


def _add_gpus(commands: _Commands) -> None:
    text = "Show this machine's GPUs: utilization, memory by run, temperature, power, reduced clocks, errors."
    gpus = _leaf(commands, "gpus", text, "gpus:gpus", json=True)
    text = "print again every 2 seconds until Ctrl-C; with --json, one document per line"
    gpus.add_argument("--watch", action="store_true", help=text)
    gpus.add_argument("--ascii", action="store_true", default=argparse.SUPPRESS, help="draw with ASCII characters only")


def _add_words(parser: Parser, before: str, text: str = "recipe override") -> None:
    parser.usage = f"{parser.prog} {before}[key=value …] [options]".replace("  ", " ")
    parser.add_argument("words", nargs="*", metavar=_OVERRIDE, help=text)


def _near(word: str, known: Sequence[str], least: float = 0.6) -> list[str]:
    """Return the known word that is most like this one, if one is at least so much like it (0 to 1)."""
    import difflib

    return difflib.get_close_matches(word, known, n=1, cutoff=least)


def _in_words(message: str) -> str:
    """Put argparse's message into the form that errors of a recipe have: value, colon, expectation."""
    if match := re.search(r"^argument (\S+): invalid choice: '(.*?)' \(choose from (.*)\)$", message, re.DOTALL):
        what, word, choices = match.groups()
        known = re.findall(r"[\w-]+", choices)
        swapped = [name for name in known if sorted(name) == sorted(word)]  # `sl`: the commonest typing error
        near = swapped or _near(word, known, 0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"expected one of {', '.join(known)}"
        return f"`{_option(what)} {word}`: {hint}" if what.startswith("-") else f"no {what.lower()} `{word}`: {hint}"
    if match := re.search(r"^argument (\S+): `(.*)`: (.*)$", message, re.DOTALL):
        return f"`{_option(match[1])} {match[2]}`: {match[3]}"
    if match := re.search(r"^argument (-\S+): expected one argument$", message):
        return f"`{_option(match[1])}`: expected a value"
    if match := re.search(r"^the following arguments are required: (.*)$", message):
        names = [_option(name) for name in match[1].split(", ") if name != _OVERRIDE]
        return f"missing {' and '.join(names)}"
    return message


def _option(names: str) -> str:
    """Return the long one of an option's names, as in ``--rows/-n``."""
    return next((name for name in names.split("/") if name.startswith("--")), names)


def _is_text(word: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in word)


def _seed(text: str) -> int:
    return _whole(text, 0, 2**32 - 1)


def _count(text: str) -> int:
    return _whole(text, 1, 2**31)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:  # NaN is refused as well
        raise argparse.ArgumentTypeError(f"`{text}`: expected a number from 0 to 100")
    return value


def _whole(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit()) or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"`{text}`: expected a whole number from {least} to {most}")
    return int(text)
