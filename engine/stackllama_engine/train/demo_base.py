"""The demo's base model: a tiny Llama that knows the demo's language and facts, but not how to answer.

It is trained from nothing, in full precision, on raw forum-like text: questions with answers of *mixed* quality, most
of them with a reaction of whoever asked, one post after another, in no template and with an end token only after
several posts. The reactions follow the answers' quality as votes do, which is how a base model comes to know what a
good answer is without writing such answers. So supervised fine-tuning has the template and the ending left to learn,
the reward model what people prefer, and PPO how to write it.
The committed model in ``stackllama_engine/demo_base/`` is the output of::

    python -m stackllama_engine.train.demo_base --out engine/stackllama_engine/demo_base --seed 0

Tokenizer: byte-level BPE (every byte is a token, so any text encodes and decodes back), trained on the same text. A
space belongs to the token *before* it, so that a prompt that ends in "Answer: " is tokenised exactly as it is inside
the whole text; with the usual leading space the policy would continue from a token that it never saw in training.

Shapes: B sequences per batch, T tokens per sequence, V vocabulary.
"""

import argparse
import itertools
import json
import math
import random
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..contract.prompt_format import PromptFormat
from ..data import demo_data

PAD, BOS, EOS = "<pad>", "<s>", "</s>"  # ids 0, 1, 2: a trainer's special tokens come first
_PIECES = r"[\p{L}\p{M}'-]+ ?|\p{N} ?|[^\s\p{L}\p{M}\p{N}]+ ?|\s+"
_REACTIONS = ("No, that is wrong.", "That helps a bit.", "Thanks, that works.", "Perfect, many thanks.")
_BOUNDS = (0.15, 0.4, 0.7)
"""Appeals from which the next reaction is given."""
_HEAVY = 10.0
_T = 256
_B = 16


def posts(seed: int) -> Iterator[str]:
    """Yield endless raw posts: a question of fine-tuning, one answer and perhaps a reaction."""
    draw = random.Random(f"base {seed}")  # noqa: S311
    known = demo_data.questions("finetune", seed)
    while True:
        question = draw.choice(known)
        answer = demo_data.write_answer(demo_data.fact_of(question), draw)
        reply = reaction(demo_data.utility(question, answer) + draw.gauss(0, demo_data.NOISE))
        ending = f"\n{reply}\n" if draw.random() < 0.8 else "\n"
        yield f"{question}{draw.choice((' ', chr(10)))}{answer}{ending}"


def reaction(appeal: float) -> str:
    """Return the asker's reply to an answer of this appeal (utility with noise)."""
    return _REACTIONS[sum(appeal >= bound for bound in _BOUNDS)]


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of ``vocab_size`` tokens on texts and the template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_PIECES), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in (PAD, BOS, EOS)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.chain(texts, [PromptFormat().render("")] * 400), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, hidden_size: int, layers: int) -> LlamaForCausalLM:
    """Build a Llama with grouped-query attention and tied embeddings."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def batches(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[torch.Tensor]:
    """Yield endless ``(B, T)`` int64 batches of packed posts, with an end token after every eight posts."""
    stream, tokens = posts(seed), []
    while True:
        while len(tokens) < _B * _T:
            text = "".join(itertools.islice(stream, 8))
            tokens += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        yield torch.tensor(tokens[: _B * _T]).view(_B, _T)
        tokens = tokens[_B * _T :]


def train(
    model: LlamaForCausalLM, data: Iterator[torch.Tensor], heavy: list[int], steps: int, peak: float = 3e-3
) -> float:
    """Train with AdamW, warm-up and cosine decay; return the mean loss of the last tenth.

    ``heavy`` tokens weigh more: a reaction is one decision among forty tokens, and worth more than they are.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.01)
    weight = torch.ones(model.config.vocab_size)
    weight[heavy] = _HEAVY
    model.train()
    losses: list[float] = []
    for step in range(steps):
        rate = min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = peak * rate
        ids = next(data)
        logits = model(input_ids=ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), weight=weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 50 == 0:
            sys.stderr.write(f"step {step}/{steps}: loss {losses[-1]:.3f}\n")
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)


def main(argv: Sequence[str] | None = None) -> None:
    """Build, train and save the model; print the facts as JSON."""
    parser = argparse.ArgumentParser(description="Make the demo's tiny base model.")
    parser.add_argument("--out", type=Path, required=True, help="directory for model and tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--hidden-size", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3)
    options = parser.parse_args(argv)
    torch.manual_seed(options.seed)
    started = time.monotonic()
    tokenizer = build_tokenizer(itertools.islice(posts(options.seed), 4000), options.vocab_size)
    model = build_model(tokenizer, options.hidden_size, options.layers)
    heavy = [tokenizer(text)["input_ids"][0] for text in _REACTIONS]
    loss = train(model, batches(tokenizer, options.seed), heavy, options.steps)
    model.bfloat16().save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    facts = {"parameters": model.num_parameters(), "loss": loss, "seconds": time.monotonic() - started}
    sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
