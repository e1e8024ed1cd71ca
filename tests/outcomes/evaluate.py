"""Evaluation of a policy on the demo's held-out prompts with transformers alone.

None of the engine's own sampling, scoring or log-probabilities is used. TRL's policies and the engine's go through the
same function.

Shapes: ``B`` questions, ``P`` longest prompt, ``R`` longest response.
"""

from typing import Any

import torch
from torch import Tensor

from stackllama_engine.contract.prompt_format import PromptFormat
from stackllama_engine.data import demo_data
from stackllama_engine.train.encoding import Encoder

METRICS = ("score", "kl", "utility")
"""Per question: the reward model's score minus the penalty of a missing end; KL per response against the base at
T = 1, k1; the demo's true utility."""
_CHUNK = 331


def questions() -> list[str]:
    """Return all of the demo's held-out questions."""
    return demo_data.questions("evaluation", 0)


@torch.no_grad()
def evaluate(
    policy: Any,
    base: Any,
    reward_model: Any,
    tokenizer: Any,
    *,
    temperature: float,
    length: int,
    penalty: float,
    seed: int,
) -> Tensor:
    """Sample and score one response per held-out question: float32 ``[3, 661]``, rows as :data:`METRICS`.

    Args:
        policy: the model that is evaluated.
        base: the reference of KL, at temperature 1.
        reward_model: a sequence classifier.
        tokenizer: of all three.
        temperature: 0 is greedy.
        length: maximum new tokens per response.
        penalty: subtracted from the score of a response that never ended.
        seed: of the sampling.
    """
    torch.manual_seed(seed)
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    columns: list[Tensor] = []
    prompts_text = questions()
    encoder = Encoder(tokenizer, PromptFormat())
    for start in range(0, len(prompts_text), _CHUNK):
        chunk = prompts_text[start : start + _CHUNK]
        prompts = [encoder.prompt(question) for question in chunk]
        responses = _generate(policy, prompts, pad, eos, temperature, length)
        ids, mask, response = _padded(prompts, responses, pad)  # [B, P + R] each
        ended = torch.tensor([answer[-1] == eos for answer in responses])
        reward_model.config.pad_token_id = pad
        score = reward_model(input_ids=ids, attention_mask=mask).logits.squeeze(-1).float() - penalty * ~ended
        own = _logprobs(policy, ids, mask, temperature) if temperature else torch.zeros(len(ids), ids.shape[1] - 1)
        kl = ((own - _logprobs(base, ids, mask, 1.0)) * response).sum(1)
        texts = [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in responses]
        utility = torch.tensor([demo_data.utility(q, text) for q, text in zip(chunk, texts, strict=True)])
        columns.append(torch.stack([score, kl, utility]))
    return torch.cat(columns, dim=1)


def _generate(
    policy: Any, prompts: list[list[int]], pad: int, eos: int, temperature: float, length: int
) -> list[list[int]]:
    """Sample responses, each with its end token if it ended."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    how: dict[str, Any] = {"do_sample": False}
    if temperature:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    found = policy.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=length, pad_token_id=pad, eos_token_id=eos, **how
    )
    return [row[: row.index(eos) + 1] if eos in row else row for row in found[:, width:].tolist()]


def _padded(prompts: list[list[int]], responses: list[list[int]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pad on the right.

    Returns:
        token ids and attention mask ``[B, P + R]``, and where next tokens are the response's ``[B, P + R − 1]``.
    """
    texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, texts))
    ids = torch.tensor([text + [pad] * (width - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    marks = [
        [0] * (len(prompt) - 1) + [1] * len(response) + [0] * (width - len(prompt) - len(response))
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    return ids, mask, torch.tensor(marks)


def _logprobs(model: Any, ids: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Return the log-probability of each next token, ``[B, P + R − 1]``."""
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float() / temperature
    return logits.log_softmax(-1).gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
