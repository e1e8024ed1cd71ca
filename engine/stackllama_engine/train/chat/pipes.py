"""The generator's two ends: requests from stdin by a thread, replies to stdout, and nothing else on either.

The thread is what ends the process with its owner: when stdin ends, so does everything, at once. (The kernel's
parent-death signal would do it as well, but follows the *thread* that started the process, and a console starts it
from a worker thread.)
"""

import os
import queue
import threading

import msgspec

from ...contract.chat_messages import MAX_LINE, Ask, Cancel, Failure, Reply, decode_request

_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Inbox:
    """Requests in their order; cancellations take effect at once.

    Args:
        descriptor: where lines are read from; its end is the end of this process.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting: queue.SimpleQueue[Ask | Failure] = queue.SimpleQueue()
        self._open: dict[int, bool] = {}  # requests in progress → whether they were cancelled
        self._lock = threading.Lock()
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    def next(self) -> Ask | Failure:
        """Wait for the next request, or for the failure to report about an invalid line."""
        return self._waiting.get()

    def cancelled(self, request_id: int) -> bool:
        """Return whether this request was cancelled."""
        with self._lock:
            return self._open.get(request_id, False)

    def finished(self, request_id: int) -> None:
        """Forget a request: no more replies to it follow."""
        with self._lock:
            self._open.pop(request_id, None)

    def _read(self) -> None:
        rest, skipping = b"", False
        while block := os.read(self._descriptor, 1 << 16):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                if not skipping and line.strip():
                    self._take(line)
                skipping = False
            if len(rest) > MAX_LINE:
                if not skipping:
                    self._waiting.put(Failure(error=f"a request of more than {MAX_LINE} bytes was ignored"))
                rest, skipping = b"", True
        os._exit(0)  # whoever asked is gone; a generation in progress is for nobody

    def _take(self, line: bytes) -> None:
        try:
            request = decode_request(line)
        except _NOT_JSON as error:
            self._waiting.put(Failure(id=_id_of(line), error=f"not a request: {error}"))
            return
        with self._lock:
            match request:
                case Cancel(cancel=request_id):
                    if request_id in self._open:
                        self._open[request_id] = True
                case Ask(id=request_id) if request_id in self._open:
                    self._waiting.put(Failure(error=f"request {request_id} is still in progress; use another id"))
                case Ask(id=request_id):
                    self._open[request_id] = False
                    self._waiting.put(request)


class Outbox:
    """Replies on a descriptor of their own; whatever else is printed goes to stderr.

    Args:
        descriptor: stdout's number; afterwards it leads to stderr.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = os.dup(descriptor)
        os.dup2(2, descriptor)  # a library that prints must not break the lines
        self._encode = msgspec.json.Encoder().encode

    def write(self, reply: Reply) -> None:
        """Write a reply as one line.

        Raises:
            BrokenPipeError: nobody reads.
        """
        line = self._encode(reply) + b"\n"
        while line:
            line = line[os.write(self._descriptor, line) :]


def _id_of(line: bytes) -> int | None:
    """Read the id of an otherwise invalid request, so that the failure can be matched to it."""

    class Id(msgspec.Struct):
        id: int | None = None

    try:
        return msgspec.json.decode(line, type=Id).id
    except _NOT_JSON:
        return None
