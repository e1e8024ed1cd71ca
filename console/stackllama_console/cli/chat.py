"""``chat``: questions to a run's model and to its base model."""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from stackllama_engine.contract.chat_messages import Delta, Done, Failure, Ready, Side
from stackllama_engine.contract.errors import ExitCode, StackllamaError
from stackllama_engine.contract.run_dir import Home

from ..readers.generator import ChatProcess, Ended, start_chat
from ..units import number
from .output import paint, say, show_json
from .runs import find

_POLL = 0.5  # seconds; a signal is served at least so often

Facts = dict[str, Any]


def chat(arguments: argparse.Namespace) -> int:
    """Run ``chat``: ask the ``--prompt`` or each line of stdin; return 1 when any was not answered."""
    run = find(Home(arguments.home), arguments.run)
    with start_chat(run, arguments.checkpoint, cpu=arguments.cpu) as process:
        ready = _until_ready(process, f"{run.id}: loading …")
        if ready.note:
            say(f"{run.id}: {ready.note}")
        interactive = arguments.prompt is None and sys.stdin.isatty()
        answers: list[Facts] = []
        failed = False
        for prompt in _prompts(arguments.prompt, interactive=interactive):
            answer = _ask(process, ready, prompt, arguments, stoppable=interactive)
            failed = failed or "error" in answer
            answers += [answer] if arguments.json else []
        if arguments.json:
            facts = {"run": run.id, "checkpoint": ready.checkpoint, "model": ready.model, "answers": answers}
            show_json(facts)
    return ExitCode.FAILED if failed else ExitCode.DONE


def _until_ready(process: ChatProcess, text: str) -> Ready:
    say(text)
    while True:
        for event in process.wait(_POLL):
            match event:
                case Ready():
                    where = f", {event.checkpoint}" if event.checkpoint else ""
                    say(f"{' and '.join(event.sides)} of {event.model}{where}, on {event.device}")
                    return event
                case Ended():
                    raise _ended(event)
                case _:
                    pass


def _prompts(prompt: str | None, *, interactive: bool) -> Iterator[str]:
    if prompt is not None:
        yield prompt
        return
    if interactive:
        say("One question per line. Ctrl-C cancels the answer, Ctrl-D quits.")
    while True:
        if interactive:
            sys.stderr.write("? ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _ask(process: ChatProcess, ready: Ready, prompt: str, arguments: argparse.Namespace, *, stoppable: bool) -> Facts:
    """Ask all sides one question; print the answer as it comes unless it is for JSON."""
    question = process.ask(
        prompt,
        ready.sides,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
        system=arguments.system_prompt,
    )
    writer = _Writer(quiet=arguments.json, titled=len(ready.sides) > 1)
    facts: Facts = {"prompt": prompt}
    while True:
        try:
            for event in process.wait(_POLL):
                match event:
                    case Delta(id=number) | Done(id=number) if number == question:
                        if _take(event, facts, writer, alone=ready.functions) and event.which == ready.sides[-1]:
                            return facts
                    case Failure(error=error):
                        writer.end()
                        say(f"not answered: {error}")
                        return facts | {"error": error}
                    case Ended():
                        writer.end()
                        raise _ended(event)
                    case _:
                        pass  # of a question that was cancelled
        except KeyboardInterrupt:
            if not stoppable:
                raise
            process.cancel(question)


def _take(event: Delta | Done, facts: Facts, writer: "_Writer", *, alone: bool) -> bool:
    """Write an event to the answer; return whether that side is done."""
    writer.begin(event.which)
    side = facts.setdefault(event.which, {"text": ""})
    if isinstance(event, Delta):
        side["text"] += event.text
        writer.write(event.text)
        return False
    side |= {"tokens": event.tokens, "seconds": event.seconds, "ended": event.ended, "cancelled": event.cancelled}
    writer.end()
    if event.reward is not None:
        side["reward"] = event.reward
        writer.note(f"reward of {event.which}: {number(event.reward)}{' (reward model alone)' if alone else ''}")
    return True


class _Writer:
    """Answers on stdout as they come, each under its side's name. Text arrives sanitised."""

    def __init__(self, *, quiet: bool, titled: bool) -> None:
        self._quiet = quiet
        self._titled = titled
        self._side: Side | None = None

    def begin(self, side: Side) -> None:
        """Print the side's name, once per answer."""
        if side != self._side:
            self._side = side
            self.write(paint(side, "bold", sys.stdout) + "\n" if self._titled else "")

    def write(self, text: str) -> None:
        """Print a piece of the answer."""
        if not self._quiet:
            sys.stdout.write(text)
            sys.stdout.flush()

    def note(self, text: str) -> None:
        """Print what is not part of the answer, on stderr."""
        if not self._quiet:
            say(text)

    def end(self) -> None:
        """End the line."""
        if self._side is not None:
            self._side = None
            self.write("\n")


def _ended(event: Ended) -> StackllamaError:
    error = StackllamaError(event.message)
    error.exit_code = event.exit_code if event.exit_code in (ExitCode.USAGE, ExitCode.REFUSED) else ExitCode.FAILED
    return error
