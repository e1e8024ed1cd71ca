"""``python -m stackllama_engine.train.chat RUN_DIR``: load, report ready, answer until stdin ends."""

import argparse
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from ...contract.chat_messages import Ask, Delta, Done, Failure, Ready
from ...contract.chat_reward import has_reward_functions
from ...contract.chat_target import find_target
from ...contract.errors import ExitCode, StackllamaError
from ...contract.run_dir import RunDir
from ...contract.streams import open_standard_streams
from .pipes import Inbox, Outbox

if TYPE_CHECKING:
    from .rewards import Score
    from .sides import Sides


def main(argv: list[str]) -> int:
    """Serve one run; return the exit code when that fails, or when nobody reads any more."""
    parser = argparse.ArgumentParser(prog="chat", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--checkpoint")
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args(argv)
    # before torch is imported: whoever started this may be gone before the model is there
    inbox, outbox = Inbox(0), Outbox(1)
    try:
        sides, score, ready = _load(RunDir(arguments.run.absolute()), arguments.checkpoint, cpu=arguments.cpu)
        outbox.write(ready)
        while True:
            match inbox.next():
                case Failure() as failure:
                    outbox.write(failure)
                case ask:
                    _answer(sides, score, ask, inbox, outbox)
                    inbox.finished(ask.id)
    except BrokenPipeError:
        return ExitCode.DONE
    except StackllamaError as error:
        outbox.write(Failure(error=str(error)))
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the last line of defence: a sentence, and the trace on stderr
        traceback.print_exc()
        outbox.write(Failure(error=_sentence(error)))
        return ExitCode.FAILED


def _load(run: RunDir, checkpoint: str | None, *, cpu: bool) -> "tuple[Sides, Score | None, Ready]":
    target = find_target(run, checkpoint)
    from .. import models
    from .rewards import load_rewards
    from .sides import load_sides

    models.quiet_libraries()
    sides = load_sides(run, target, cpu=cpu)
    score, why_not = load_rewards(run, sides)
    ready = Ready(
        sides=sides.names,
        model=sides.name,
        checkpoint=target.checkpoint,
        device=str(sides.device),
        note="; ".join(filter(None, (sides.note, why_not))) or None,
        prompt_format=sides.encoder.format.kind,
        system=sides.encoder.format.system_prompt,
        rewards=score is not None,
        functions=score is not None and has_reward_functions(run),
    )
    return sides, score, ready


def _answer(sides: "Sides", score: "Score | None", ask: Ask, inbox: Inbox, outbox: Outbox) -> None:
    """Answer with every requested side; an error ends this prompt alone."""
    try:
        for side in ask.which:
            _one_side(sides, score, side, ask, inbox, outbox)
    except BrokenPipeError:
        raise
    except StackllamaError as error:
        outbox.write(Failure(id=ask.id, error=str(error)))
    except Exception as error:  # noqa: BLE001 - the next prompt may fit into memory
        traceback.print_exc()
        outbox.write(Failure(id=ask.id, error=_sentence(error)))


def _one_side(sides: "Sides", score: "Score | None", side: str, ask: Ask, inbox: Inbox, outbox: Outbox) -> None:
    from ..ppo.response_text import ResponseText
    from .answer import Text, messages_of, tokens

    assert side in ("base", "tuned")
    text, count, token, pieces = Text(sides.encoder.tokenizer), 0, None, list[str]()
    messages = messages_of(ask)
    started = time.monotonic()
    with sides.use(side) as model:
        stops = sides.encoder.stop_ids
        answer = tokens(model, sides.encoder.prompt(ask.prompt, messages), stops, ask, sides.graphs)
        while not (cancelled := inbox.cancelled(ask.id)) and (token := next(answer, None)) is not None:
            count += 1
            ended = token in stops
            if piece := text.push(token):
                pieces.append(piece)
                outbox.write(Delta(id=ask.id, which=side, text=piece))
            if ended:
                break
    if piece := text.flush():
        pieces.append(piece)
        outbox.write(Delta(id=ask.id, which=side, text=piece))
    seconds, ended = round(time.monotonic() - started, 3), token in stops
    answered = ResponseText(ask.prompt, "".join(pieces), ended, messages)
    reward = score(answered) if score is not None and not cancelled else None
    outbox.write(
        Done(id=ask.id, which=side, tokens=count, seconds=seconds, ended=ended, cancelled=cancelled, reward=reward)
    )


def _sentence(error: Exception) -> str:
    """Describe a failure in one line."""
    from ..loading import one_line

    reason = one_line(error)
    if type(error).__name__ == "OutOfMemoryError":
        import torch

        torch.cuda.empty_cache()
        return f"Out of GPU memory; lower the number of new tokens, or run the chat on the CPU. ({reason})"
    return f"{type(error).__name__}: {reason}"


if __name__ == "__main__":
    open_standard_streams()
    os.umask(0o077)
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # a thread still reads stdin, and tearing torch down serves nobody
