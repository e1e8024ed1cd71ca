"""A generator without a model: ``python fake_generator.py MODE [ARGUMENT]``, by hand, so that no encoder helps it."""

import json
import os
import signal
import sys
import time
from typing import Any


def say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def ready(model: str = "fake", **more: Any) -> None:
    say(ready=True, sides=["base", "tuned"], model=model, **more)


def questions() -> Any:
    for line in sys.stdin:
        yield json.loads(line)


def echo() -> None:
    ready(checkpoint="step-000003")
    for ask in questions():
        if ask["prompt"] == "fail":
            say(id=ask["id"], error="no such\nanswer")
            continue
        for which in ask["which"]:
            for word in ask["prompt"].split():
                say(id=ask["id"], which=which, text=f"{which}:{word} ")
            say(id=ask["id"], which=which, done=True, tokens=2, seconds=0.5, ended=True)


def scored() -> None:
    """Score every answer, and say the settings that came with its question."""
    ready(prompt_format="chat", system="Be kind.", rewards=True, functions=len(sys.argv) > 2)
    for number, ask in enumerate(questions()):
        for which in ask["which"]:
            say(id=ask["id"], which=which, text=f"seed {ask['seed']}, {ask['system']}")
            say(id=ask["id"], which=which, done=True, tokens=2, seconds=0.5, ended=True, reward=number + 0.25)


def facts() -> None:
    """Say what was asked, and where this process stands."""
    ready()
    for ask in questions():
        ask |= {"session": os.getsid(0), "pid": os.getpid(), "path": os.environ.get("PYTHONPATH", "")}
        say(id=ask["id"], which="tuned", text=json.dumps(ask))


def hostile() -> None:
    payloads = json.loads(sys.argv[2])
    ready(model=payloads[0], note="\n".join(payloads), device=payloads[0])
    for ask in questions():
        for payload in payloads:
            say(id=ask["id"], which="base", text=payload)
        os.write(1, b"no json\n\xff\xfe\n[]\n{}\n" + b"[" * 100_000 + b"\n")
        say(id=ask["id"], which="base", text="half \ud800")
        say(id="x", which="base", text="y")
        say(id=ask["id"], error=payloads[0])


def refuse() -> None:
    say(error="nothing is trained\x1b[2J yet")
    sys.exit(3)


def die() -> None:
    ready()
    for ask in questions():
        print("Traceback: \x1b[31mboom", file=sys.stderr, flush=True)
        if ask["prompt"] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        sys.exit(9)


def endless() -> None:
    ready()
    while True:
        os.write(1, b"x" * 65536)


def flood() -> None:
    ready()
    next(questions())
    for count in range(100_000):
        say(id=1, which="base", text=f"{count} ")
        print(f"piece {count}", file=sys.stderr)


def waiting() -> None:
    ready()
    current: dict[str, Any] = {}
    for ask in questions():
        if "cancel" in ask:
            for which in current["which"]:
                say(id=ask["cancel"], which=which, done=True, tokens=1, seconds=0.1, ended=False, cancelled=True)
        else:
            current = ask
            say(id=ask["id"], which=ask["which"][0], text="a beginning ")


def silent() -> None:
    """Load for ever."""
    for _ in questions():
        pass


def deaf() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready()
    time.sleep(600)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
