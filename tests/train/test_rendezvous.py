"""Two ranks that meet without an accelerate: what they exchange, and what they do not take from anybody."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stackllama_engine.contract.child_environment import RENDEZVOUS_DIR
from stackllama_engine.contract.errors import StageError
from stackllama_engine.train.exchange import gather_rows
from stackllama_engine.train.rendezvous import meet

pytestmark = pytest.mark.slow  # processes that import torch

EXCHANGE = """
import pickle, sys
import torch
from torch import distributed
from stackllama_engine.train.exchange import gather_rows
from stackllama_engine.train.rendezvous import meet

class Bomb:
    def __reduce__(self):
        return print, ("executed",)

meet(0, use_cpu=True)
rank = distributed.get_rank()
odd = {"nan": float("nan"), "inf": [float("inf"), -float("inf")], "zero": -0.0, "sum": 0.1 + 0.2, "least": 5e-324,
       "whole": 2**70, "one": 1.0, "yes": True, "none": None, "half": "\\ud800 \\u00fc", "empty": [], "rank": rank}
rows = [None, odd] if rank == 0 else ["a", None, 3]
print(repr(gather_rows(rows, torch.device("cpu"))))
for exchange in (
    lambda: distributed.all_gather_object([None, None], Bomb()),
    lambda: distributed.broadcast_object_list([Bomb()], src=0),
):
    try:
        exchange()
    except Exception as error:
        print(type(error).__name__)
    else:
        print("came through")
plain = ["/psm_1", 2, None, {"a": [1.5, True]}] if rank == 0 else [None] * 4
distributed.broadcast_object_list(plain, src=0)
print(plain, flush=True)
distributed.destroy_process_group()  # Gloo's threads must not outlive what they belong to
"""

WRONG_SECRET = """
import os, sys
from stackllama_engine.train import rendezvous

if os.environ["RANK"] == "1":
    real = rendezvous.distributed.all_to_all_single
    rendezvous.distributed.all_to_all_single = lambda arrived, sent, **named: real(arrived, sent * 0, **named)
try:
    rendezvous.meet(0, use_cpu=True)
except rendezvous.StageError as error:
    print(error)
else:
    print("met")
"""


def two_ranks(program: str, place: Path) -> list[str]:
    """Return what rank 0 and rank 1 print."""
    environment = os.environ | {
        "WORLD_SIZE": "2",
        RENDEZVOUS_DIR: str(place),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    done = [rank.communicate(timeout=300) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], done
    return [output for output, _ in done]


def test_rows_arrive_as_they_were_and_no_pickle_executes_anything(tmp_path: Path) -> None:
    odd = (
        "{'nan': nan, 'inf': [inf, -inf], 'zero': -0.0, 'sum': 0.30000000000000004, 'least': 5e-324, "
        "'whole': 1180591620717411303424, 'one': 1.0, 'yes': True, 'none': None, 'half': '\\ud800 ü', 'empty': [], "
        "'rank': 0}"
    )
    rows = f"[None, 'a', {odd}, None, 3]"
    plain = "['/psm_1', 2, None, {'a': [1.5, True]}]"
    first, second = two_ranks(EXCHANGE, tmp_path)
    assert first.splitlines() == [rows, "StageError", "came through", plain], "rank 0 has what it sends"
    assert second.splitlines() == [rows, "StageError", "StageError", plain]


def test_a_peer_that_does_not_know_the_secret_is_no_peer(tmp_path: Path) -> None:
    first, _ = two_ranks(WRONG_SECRET, tmp_path)
    assert first.startswith("Another program on this machine connected in the place of a process of this run.")


def test_ranks_without_a_place_to_meet_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv(RENDEZVOUS_DIR, raising=False)
    with pytest.raises(StageError, match="no rendezvous directory"):
        meet(0, use_cpu=True)


@pytest.mark.parametrize("row", [("a", 1), {"a": {"b": (1,)}}, {1: 2}, [{1, 2}], torch.tensor(1), b"a"])
def test_what_json_would_change_is_not_sent(row: object) -> None:
    with pytest.raises(TypeError, match="cannot be sent to other ranks"):
        gather_rows([row], torch.device("cpu"))
