"""The generator's process, spoken to: questions in, pieces of answers out. No torch here, and no Textual.

Three daemon threads move lines (stdin, stdout, stderr), so that neither a busy generator nor a stalled one ever holds
up who asks. All buffers are bounded: a generator that nobody polls waits. Its text is sanitised where it enters.
"""

import contextlib
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import msgspec
from msgspec import Struct

from stackllama_engine.contract.chat_messages import (
    MAX_LINE,
    SIDES,
    Ask,
    Cancel,
    Delta,
    Done,
    Failure,
    Ready,
    Reply,
    Side,
    decode_reply,
)
from stackllama_engine.contract.chat_target import find_target
from stackllama_engine.contract.errors import ExitCode, RefusedError, UsageError
from stackllama_engine.contract.run_dir import RunDir
from stackllama_engine.launch.chat_process import chat_command

from ..sanitise import log_line, one_line, sanitise

_PATIENCE = 2.0  # seconds for each way of ending it, the gentle one first
_EVENTS = 2048
_QUESTIONS = 64  # that wait for an answer
_LOG_LINES = 20
_NOT_REPLY = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Ended(Struct, frozen=True, kw_only=True):
    """The process is gone; nothing comes after this."""

    message: str
    """The cause, in a sentence."""
    exit_code: int
    """The process's exit code; 128 + N for signal N."""


ChatEvent = Reply | Ended


class ChatProcess:
    """One generator. Started at once; `poll` says when it is ready.

    Args:
        argv: the command, program first.
        environment: all of it.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self.ready: Ready | None = None
        """The loaded model; None while it loads."""
        self._events: deque[ChatEvent] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._failure: str | None = None
        self._last_id = 0
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._open: dict[int, int] = {}  # question → sides that are not done
        self._process = subprocess.Popen(
            argv,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in this terminal is for whoever asks
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        pipes = self._process.stdin, self._process.stdout, self._process.stderr
        readers = (self._write_requests, self._read_replies, self._read_log)
        self._threads = [
            threading.Thread(target=work, args=(pipe,), name=f"chat-{work.__name__}", daemon=True)
            for work, pipe in zip(readers, pipes, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "ChatProcess":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process id of the generator."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def ask(
        self,
        prompt: str,
        which: Sequence[Side] = SIDES,
        *,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        seed: int = 0,
        system: str | None = None,
    ) -> int:
        """Ask a question; answers come through `poll`, one side after the other. May be called before it is ready.

        Returns:
            the question's id.

        Raises:
            UsageError: a value out of its bounds.
            RefusedError: too many questions wait, or the process has gone.
        """
        fields = {
            "id": self._last_id + 1,
            "prompt": prompt,
            "which": [*which],
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "seed": seed,
            "system": system,
        }
        try:
            request = msgspec.convert(fields, Ask)
            line = msgspec.json.encode(request)
        except msgspec.ValidationError as error:
            raise UsageError(f"invalid question: {error}.") from None
        except UnicodeEncodeError:
            raise UsageError("the question contains an invalid character.") from None
        if len(line) >= MAX_LINE:
            raise UsageError("the question is too long.")
        if not self.alive:
            raise RefusedError("the generator has ended; restart it.")
        with self._changed:
            if len(self._open) >= _QUESTIONS:
                raise RefusedError(f"{_QUESTIONS} questions are already waiting; cancel some, or wait for the answers.")
            self._last_id += 1
            self._open[self._last_id] = len(request.which)
        self._requests.put(line + b"\n")
        return self._last_id

    def cancel(self, question: int) -> None:
        """Cancel an answer; its sides still come as done, marked ``cancelled``."""
        if question in self._open:  # else it was done meanwhile
            self._requests.put(msgspec.json.encode(Cancel(question)) + b"\n")

    def poll(self) -> list[ChatEvent]:
        """Return what came since the last call, oldest first; never waits."""
        with self._changed:
            events = list(self._events)
            self._events.clear()
            self._changed.notify_all()  # there is room again
        return events

    def wait(self, seconds: float) -> list[ChatEvent]:
        """Return as `poll` does, after waiting until there is something, at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._events), seconds)
        return self.poll()

    def close(self) -> None:
        """End the process, whatever it does. Takes a moment, a few seconds at most. May be called again."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not self.alive:
                break
            self._process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE)
        self._requests.put(None)
        deadline = time.monotonic() + _PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    # threads

    def _write_requests(self, pipe: BinaryIO) -> None:
        with contextlib.suppress(BrokenPipeError), pipe:
            while (line := self._requests.get()) is not None:
                pipe.write(line)
                pipe.flush()

    def _read_replies(self, pipe: BinaryIO) -> None:
        with pipe:
            while (line := pipe.readline(MAX_LINE)).endswith(b"\n"):
                self._take(line)
        if len(line) == MAX_LINE:  # what is not to be understood any more is ended
            self._failure = "the generator sent a line that never ends."
            self._process.kill()
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:  # it has closed its end and still runs
            self._process.kill()
            code = self._process.wait()
        self._threads[2].join(_PATIENCE)
        self._requests.put(None)
        self._put(Ended(message=self._reason(code), exit_code=code if code >= 0 else 128 - code))

    def _read_log(self, pipe: BinaryIO) -> None:
        with pipe:
            while line := pipe.readline(1 << 14):
                if text := log_line(line.decode("utf-8", "replace")):
                    self._log.append(text)

    def _take(self, line: bytes) -> None:
        try:
            reply = _clean(decode_reply(line))
        except _NOT_REPLY:
            self._log.append(f"not a reply: {one_line(line[:200].decode('utf-8', 'replace'))}")
            return
        if isinstance(reply, Failure) and self.ready is None:
            self._failure = reply.error
            return
        match reply:
            case Ready():
                self.ready = reply
            case Done(id=question):
                self._side_done(question, 1)
            case Failure(id=question) if question is not None:
                self._side_done(question, len(SIDES))
            case _:
                pass
        self._put(reply)

    def _side_done(self, question: int, sides: int) -> None:
        with self._changed:
            left = self._open.pop(question, 0) - sides
            if left > 0:
                self._open[question] = left

    def _put(self, event: ChatEvent) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._events) < _EVENTS or self._closing)
            if len(self._events) < _EVENTS or isinstance(event, Ended):
                self._events.append(event)
            self._changed.notify_all()

    def _reason(self, code: int) -> str:
        if self._failure:
            return self._failure
        if self._closing or code == ExitCode.DONE:
            return "the generator was closed."
        how = f"exit code {code}" if code > 0 else f"ended by {_signal_name(-code)}"
        last = f": {self._log[-1]}" if self._log else ""
        return f"the generator ended unexpectedly ({how}){last}"


def start_chat(run: RunDir, checkpoint: str | None = None, *, cpu: bool = False) -> ChatProcess:
    """Start the generator of a run's result, or of a checkpoint (``step-000100`` or ``100``).

    Raises:
        RefusedError: a run of this stage does not write text, or nothing is trained yet.
        UsageError: no such checkpoint.
        OSError: the process cannot be started.
    """
    target = find_target(run, checkpoint)
    return ChatProcess(*chat_command(run, target.checkpoint, cpu=cpu))


def _clean(reply: Reply) -> Reply:
    match reply:
        case Delta():
            return msgspec.structs.replace(reply, text=sanitise(reply.text))
        case Failure():
            return msgspec.structs.replace(reply, error=one_line(reply.error))
        case Ready(note=note):
            return msgspec.structs.replace(
                reply,
                model=one_line(reply.model),
                device=one_line(reply.device),
                checkpoint=one_line(reply.checkpoint) if reply.checkpoint else None,
                note=one_line(note) if note else None,
                prompt_format=one_line(reply.prompt_format),
                system=one_line(reply.system) if reply.system else None,
            )
        case Done():
            return reply


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
