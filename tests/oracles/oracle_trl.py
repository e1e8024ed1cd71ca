"""TRL 1.12.0's results: cases as JSON on standard input, results on standard output; in an environment of its own.

Whitening is a function there. Rewards, advantages and losses stand in the middle of ``PPOTrainer.train``: their
statements are cut out of its source and run on the case, so that the results are TRL's and not those of a copy.
"""
# pyright: reportMissingImports=false

import ast
import inspect
import json
import sys
import textwrap
from types import CodeType, SimpleNamespace
from typing import Any

import torch
from trl.experimental.ppo import ppo_trainer


def statements(first: str, last: str) -> CodeType:
    """Compile the statements from one assignment to another in the block of ``train`` that has both."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(ppo_trainer.PPOTrainer.train)))
    found: list[list[ast.stmt]] = []
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            assigned = [_assigned(statement) for statement in body]
            if first in assigned and last in assigned:
                found.append(body[assigned.index(first) : len(body) - assigned[::-1].index(last)])
    (block,) = found
    return compile(ast.Module(block, []), "PPOTrainer.train", "exec")


def _assigned(statement: ast.stmt) -> str | None:
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name
    return None


def tensors(case: dict[str, Any]) -> dict[str, Any]:
    """Make a namespace: lists as tensors, the recipe's keys under ``args``, and the functions that statements call."""
    names = {name: torch.tensor(value) for name, value in case.items() if isinstance(value, list)}
    helpers = {name: getattr(ppo_trainer, name) for name in ("masked_mean", "masked_whiten")}
    return {"torch": torch, "args": SimpleNamespace(**case["args"]), "logits": torch.zeros(1, 1), **helpers, **names}


def whiten(case: dict[str, Any]) -> list[Any]:
    """Whiten; values under padding are not 0, and to be ignored."""
    return ppo_trainer.masked_whiten(
        torch.tensor(case["values"]), torch.tensor(case["mask"]), shift_mean=case["shift_mean"]
    ).tolist()


def targets(case: dict[str, Any]) -> dict[str, Any]:
    """Compute KL, rewards, advantages and returns.

    Where a response is shorter than its batch, TRL pays the score one token after its last, and bootstraps from the
    value there. The case says that responses end at their last token (``sequence_lengths_p1`` equal to
    ``sequence_lengths``), and the statements follow.
    """
    names = tensors(case)
    exec(statements("logr", "advantages"), names)
    return {name: names[name].tolist() for name in ("kl", "advantages", "returns")}


def losses(case: dict[str, Any]) -> dict[str, Any]:
    """Compute losses, clip fractions, and the gradient of the whole loss."""
    names = tensors(case)
    for name in ("new_logprobs", "vpred"):
        names[name].requires_grad_()
    exec(statements("vpredclipped", "loss"), names)
    exec(statements("pg_clipfrac", "approxkl"), names)  # their entropy, in between, is of no logits
    gradient = torch.autograd.grad(names["loss"], [names["new_logprobs"], names["vpred"]])
    numbers = ("pg_loss", "vf_loss", "loss", "pg_clipfrac", "vf_clipfrac", "approxkl")
    return {name: float(names[name]) for name in numbers} | {"gradient": [part.tolist() for part in gradient]}


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    cases = json.load(sys.stdin)
    answers = {"whiten": whiten, "targets": targets, "losses": losses}
    print(json.dumps({kind: [answer(one) for one in cases[kind]] for kind, answer in answers.items()}))
