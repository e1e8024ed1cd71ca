r"""Schemas of public data sets whose rows are more than columns of text; each becomes rows of our columns.

A row is recognised by its columns and by what they hold; the first match of :data:`SCHEMAS` decides::

    stack-exchange-preferences   question, answers [{text, pm_score, selected}]          question_answer
    SHP                          history, human_ref_A, human_ref_B, labels               question_answer
    summarize-from-feedback      info {title, post, subreddit}, summaries [{text}], choice          none
    pairs of messages            chosen and rejected of messages; prompt or not                     chat
    prompt and completion        prompt and completion of messages                                  chat
    messages                     messages or (ShareGPT) conversations                               chat
    prompt of messages           prompt alone                                                       chat
    pairs without a prompt       chosen and rejected of text that begin alike (HH-RLHF)             none

In a conversation the prompt is everything before the last assistant turn. One message may stand without its list, and
text without its message. ``from`` and ``value`` are read like ``role`` and ``content``. A row with calls of tools or
thoughts in keys of their own is skipped and counted.
"""

import re
from collections.abc import Callable, Collection, Mapping
from os.path import commonprefix
from typing import Any, cast

from msgspec import Struct

from ..contract.prompt_format import Kind, Message
from .pairs import Answer, make_pairs

Row = Mapping[str, Any]
Made = dict[str, Any]
"""A row of ours: ``question``, ``messages`` of a conversation, and the responses that are needed."""

QUESTION, BETTER, WORSE = "question", "response_j", "response_k"
BEFORE_QUESTION = ("system", "system_prompt")
"""Columns of text before the question; in conversations they are the system message."""
MESSAGES = "messages"

_CHAT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
"""Other names of the roles that every template knows, in lower case."""
_SHAREGPT_ROLES = _CHAT_ROLES | {"tool": "tool", "function": "tool", "observation": "tool"}
"""Roles of ShareGPT, in lower case; rows with others, such as ``function_call``, are skipped and counted."""
_PLAIN_ROLE = re.compile(r"[\w-]+")
"""Templates write a role as it is, so one with special tokens or line breaks would write turns of its own."""
_UNREAD = ("tool_calls", "function_call", "thinking", "reasoning_content", "reasoning")
"""Keys of a message that carry part of it; without them it would be another message."""
_ANSWER_BEGINS = (
    "\n\nAssistant:",
    "<|im_start|>assistant\n",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "<start_of_turn>model\n",
    "<|assistant|>\n",
    "[/INST]",
    "### Response:",
    "### Assistant:",
)
"""Ends of a prompt in texts that carry their own template; the first is that of HH-RLHF."""


class UnusableRowError(Exception):
    """A row that is skipped and counted; the text is the reason."""


class Schema(Struct, frozen=True):
    """One way of writing rows.

    Attributes:
        name: for people.
        style: prompt format that `auto` resolves to.
        gives: each of our columns → the source's columns of which one must be there.
        reads: further columns of the source that are read.
        matches: whether a row is of this schema.
        read: returns the rows that a row stands for, with at least the needed columns; raises
            :class:`UnusableRowError`, or ValueError for a row that cannot be meant so.
        named: whether the schema is that of one data set, whose other columns are known to be no text of the prompt.
    """

    name: str
    style: Kind
    gives: dict[str, tuple[str, ...]]
    reads: tuple[str, ...]
    matches: Callable[[Row], bool]
    read: Callable[[Row, Collection[str]], list[Made]]
    named: bool = False

    @property
    def columns(self) -> set[str]:
        """All columns of the source that are read."""
        return {column for columns in self.gives.values() for column in columns} | set(self.reads)


def schema_of(row: Row) -> Schema | None:
    """Return the schema of a row; None for columns of text."""
    return next((schema for schema in SCHEMAS if schema.matches(row)), None)


def conversation_text(messages: list[Message]) -> str:
    """Return a conversation as one text: of one user turn its text, else paragraphs with their roles."""
    if [message["role"] for message in messages] == ["user"]:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


# -- conversations ------------------------------------------------------------------------------------------------


def _is_conversation(value: Any) -> bool:
    messages = _listed(value)
    return bool(messages) and all(isinstance(one, dict) and ("role" in one or "from" in one) for one in messages)


def _listed(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [value]
    return cast("list[Any]", value) if isinstance(value, list) else []


def _turns(row: Row, column: str, role: str = "user") -> list[Message]:
    """Return the messages of a column; text without a message is one of ``role``. A blank system message is left out.

    Raises:
        UnusableRowError: there is none, or one has no text.
        ValueError: something else than messages.
    """
    value = row.get(column)
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if value is not None and not isinstance(value, list | dict):
        raise ValueError(f"column {column} holds {type(value).__name__}, not messages")
    turns = [_message(one, column, number) for number, one in enumerate(_listed(value), 1)]
    if not turns:
        raise UnusableRowError(f"{column} has no messages")
    return [turn for turn in turns if turn["role"] != "system" or turn["content"].strip()]


def _message(value: Any, column: str, number: int) -> Message:
    what = f"column {column}, message {number}"
    if not isinstance(value, dict):
        raise ValueError(f"{what}: expected an object with role and content, got {type(value).__name__}")
    message = cast("dict[str, Any]", value)
    sharegpt = "role" not in message
    role, content = (message.get(name) for name in (("from", "value") if sharegpt else ("role", "content")))
    if not isinstance(role, str) or not role:
        raise ValueError(f"{what}: it has no role")
    if sharegpt:
        if role.casefold() not in _SHAREGPT_ROLES:
            raise UnusableRowError(f"{column} has a message from {role!r}, which is not read")
        role = _SHAREGPT_ROLES[role.casefold()]
    elif not _PLAIN_ROLE.fullmatch(role):
        raise ValueError(f"{what}: the role {role!r} is not one word")
    else:
        role = _CHAT_ROLES.get(role.casefold(), role)
    if unread := next((key for key in _UNREAD if message.get(key)), None):
        raise UnusableRowError(f"{column} has a message with {unread}, which is not read")
    if content is None:
        raise UnusableRowError(f"{column} has a message without text")
    return {"role": role, "content": content if isinstance(content, str) else _parts(content, what)}


def _parts(content: Any, what: str) -> str:
    """Join the text of a content that is a list of parts."""
    texts: list[str] = []
    for part in _listed(content):
        text = cast("dict[str, Any]", part).get("text") if isinstance(part, dict) else None
        if not isinstance(text, str):
            kind = cast("dict[str, Any]", part).get("type") if isinstance(part, dict) else type(part).__name__
            raise ValueError(f"{what}: content holds {kind}; only text is read")
        texts.append(text)
    if not texts:
        raise ValueError(f"{what}: content holds {type(content).__name__}, not text")
    return "".join(texts)


def _answered(turns: list[Message], column: str) -> tuple[list[Message], str]:
    """Split a conversation into the prompt and the last assistant turn."""
    if not turns:
        raise UnusableRowError(f"{column} has no turn")
    if (last := turns[-1]["role"]) != "assistant":
        raise UnusableRowError(f"{column} ends with a turn of {last}, not of assistant")
    return turns[:-1], turns[-1]["content"]


def _row(row: Row, prompt: list[Message], column: str) -> Made:
    """Make the prompt's columns; text in the row's system columns opens a conversation that has no system message."""
    if not prompt:
        raise UnusableRowError(f"{column} has nothing before the assistant turn")
    texts = [text for name in BEFORE_QUESTION if isinstance(text := row.get(name), str) and text.strip()]
    if texts and prompt[0]["role"] != "system":
        prompt = [{"role": "system", "content": "\n\n".join(dict.fromkeys(texts))}, *prompt]
    return {QUESTION: conversation_text(prompt), MESSAGES: prompt}


def _read_messages(row: Row, needs: Collection[str]) -> list[Made]:
    column = _first_conversation(row)
    turns = _turns(row, column)
    if BETTER not in needs and turns and turns[-1]["role"] != "assistant":
        return [_row(row, turns, column)]
    prompt, answer = _answered(turns, column)
    return [_row(row, prompt, column) | {BETTER: answer}]


def _first_conversation(row: Row) -> str:
    return MESSAGES if MESSAGES in row else "conversations"


def _read_prompt(row: Row, needs: Collection[str]) -> list[Made]:
    return [_row(row, _turns(row, "prompt"), "prompt")]


def _read_completion(row: Row, needs: Collection[str]) -> list[Made]:
    if BETTER not in needs:
        return _read_prompt(row, needs)
    prompt, answer = _answered(_whole(row, "completion"), "completion")
    return [_row(row, prompt, "completion") | {BETTER: answer}]


def _read_pairs(row: Row, needs: Collection[str]) -> list[Made]:
    prompt, better = _answered(_whole(row, "chosen"), "chosen")
    made = _row(row, prompt, "chosen") | {BETTER: better}
    if WORSE in needs:
        other, made[WORSE] = _answered(_whole(row, "rejected"), "rejected")
        if other != prompt:
            raise ValueError(
                "the prompts of chosen and rejected differ; both are all messages before the last assistant turn"
            )
    return [made]


def _whole(row: Row, column: str) -> list[Message]:
    """Return the conversation that ends with a column's messages, which may repeat the prompt."""
    turns = _turns(row, column, "assistant")
    opening = next((name for name in ("prompt", "conversations") if row.get(name)), None)
    if opening is None or not turns or turns[0]["role"] in ("system", "user"):
        return turns
    return [*_turns(row, opening), *turns]


# -- single data sets ---------------------------------------------------------------------------------------------


def _read_stack_exchange(row: Row, needs: Collection[str]) -> list[Made]:
    """Make the pairs of a question by their scores (:mod:`.pairs`), or one row with its best answer."""
    made: Made = {QUESTION: _plain(row.get("question"))}
    if BETTER not in needs:
        return [made]
    answers = [_scored(one, number) for number, one in enumerate(_listed(row.get("answers")), 1)]
    answers = [(answer, selected) for answer, selected in answers if answer.text.strip()]
    if not answers:
        raise UnusableRowError("answers has none with text")
    if WORSE not in needs:
        best, _ = max(answers, key=lambda one: (one[0].score, one[1], -one[0].id))
        return [made | {BETTER: best.text}]
    pairs = make_pairs(made[QUESTION] or "", [answer for answer, _ in answers]).kept
    if not pairs:
        raise UnusableRowError("answers has no two with different scores")
    return [made | {BETTER: better.text, WORSE: worse.text} for better, worse in pairs]


def _scored(value: Any, number: int) -> tuple[Answer, bool]:
    answer = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    score, text = answer.get("pm_score"), answer.get("text")
    if not isinstance(score, int) or not isinstance(text, str | None):
        raise ValueError(f"column answers, answer {number}: expected text and pm_score, a whole number")
    return Answer(number, score, _plain(text) or ""), answer.get("selected") is True


def _plain(text: Any) -> Any:
    """Convert a post's HTML, which begins and ends with a tag, to Markdown; return anything else as it is."""
    if not isinstance(text, str) or not (text.strip().startswith("<") and text.strip().endswith(">")):
        return text
    from .markdown import to_markdown

    return to_markdown(text)


def _read_shp(row: Row, needs: Collection[str]) -> list[Made]:
    made: Made = {QUESTION: row.get("history")}
    if BETTER not in needs:
        return [made]
    first_is_better = _one_of_two(row, "labels") == 1
    a, b = row.get("human_ref_A"), row.get("human_ref_B")
    return [made | ({BETTER: a, WORSE: b} if first_is_better else {BETTER: b, WORSE: a})]


def _read_summaries(row: Row, needs: Collection[str]) -> list[Made]:
    """Make the prompt of https://github.com/openai/summarize-from-feedback: the post, then ``TL;DR:``."""
    info: dict[str, Any] = row.get("info") or {}
    if post := info.get("post"):
        head = [("SUBREDDIT", f"r/{name}" if (name := info.get("subreddit")) else None), ("TITLE", info.get("title"))]
        parts = [f"{label}: {text}" for label, text in (*head, ("POST", post)) if text]
    else:
        parts = [article] if (article := info.get("article")) else []
    if not parts:
        raise UnusableRowError("info has neither post nor article")
    made: Made = {QUESTION: "\n\n".join((*parts, "TL;DR:"))}
    if BETTER not in needs:
        return [made]
    texts = [one.get("text") if isinstance(one, dict) else None for one in _listed(row.get("summaries"))]
    if len(texts) != 2:
        raise ValueError(f"column summaries holds {len(texts)} summaries, not two")
    choice = _one_of_two(row, "choice")
    return [made | {BETTER: texts[choice], WORSE: texts[1 - choice]}]


def _one_of_two(row: Row, column: str) -> int:
    value = row.get(column)
    if value not in (0, 1):
        raise ValueError(f"column {column} is {value!r}, not 0 or 1")
    return int(value)


def _read_implicit(row: Row, needs: Collection[str]) -> list[Made]:
    r"""Cut the prompt off two texts that begin alike.

    It ends with the last marker of an answer in what both have in common, such as ``\n\nAssistant:``; without one, at
    the last space there, as in TRL's ``extract_prompt``, if no other column has text, which may be the prompt.
    """
    chosen, rejected = row.get("chosen"), row.get("rejected")
    for column, text in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(text, str):
            raise (
                UnusableRowError(f"{column} is null")
                if text is None
                else ValueError(f"column {column} holds {type(text).__name__}, not text")
            )
    chosen, rejected = cast("str", chosen), cast("str", rejected)
    common = commonprefix((chosen, rejected))  # noqa: RUF071 - of texts, not of paths
    end = max(common.rfind(marker) + len(marker) if marker in common else 0 for marker in _ANSWER_BEGINS)
    if not end and (beside := longest_text(row, {"chosen", "rejected"})):
        raise ValueError(
            f"chosen and rejected hold no prompt that ends with a marker such as `Assistant:`, and there is text in "
            f"{beside}. If that is the prompt, set `dataset_columns.prompt={beside}`; if the prompt is what chosen and "
            "rejected begin with, remove the other columns"
        )
    end = end or max(common.rfind(" "), common.rfind("\n"), 0)
    if not common[:end].strip():
        raise UnusableRowError("chosen and rejected have no prompt in common")
    return [{QUESTION: common[:end], BETTER: chosen[end:], WORSE: rejected[end:]}]


def longest_text(row: Row, besides: Collection[str]) -> str | None:
    """Return the column with the longest text, at any depth, which is the likeliest prompt; None if there is none."""
    lengths = {column: text_length(value) for column, value in row.items() if column not in besides}
    return max(lengths, key=lambda column: lengths[column]) if any(lengths.values()) else None


def text_length(value: Any) -> int:
    """Return how many characters of text a value has, at any depth."""
    if isinstance(value, str):
        return len(value.strip())
    inner: Collection[Any] = cast("dict[str, Any]", value).values() if isinstance(value, dict) else _listed(value)
    return sum(map(text_length, inner))


def _has(*columns: str) -> Callable[[Row], bool]:
    return lambda row: all(column in row for column in columns)


def _holds_messages(*columns: str, with_prompt: bool = False) -> Callable[[Row], bool]:
    """Return a check that a column holds messages; ``with_prompt``: that it is there, and it or the prompt does."""
    more = ("prompt",) if with_prompt else ()
    return lambda row: (
        any(name in row for name in columns) and any(_is_conversation(row.get(name)) for name in (*columns, *more))
    )


def _is_stack_exchange(row: Row) -> bool:
    answers = _listed(row.get("answers"))
    return "question" in row and all(isinstance(one, dict) and "pm_score" in one for one in answers) and bool(answers)


def _is_implicit(row: Row) -> bool:
    named = {"question", "prompt", "instruction"} & set(row)
    return not named and all(isinstance(row.get(column), str) for column in ("chosen", "rejected"))


_PAIR = {BETTER: ("chosen",), WORSE: ("rejected",)}
SCHEMAS: tuple[Schema, ...] = (
    Schema(
        "stack-exchange-preferences",
        "question_answer",
        {QUESTION: ("question",), BETTER: ("answers",), WORSE: ("answers",)},
        (),
        _is_stack_exchange,
        _read_stack_exchange,
        named=True,
    ),
    Schema(
        "SHP",
        "question_answer",
        {QUESTION: ("history",), BETTER: ("human_ref_A",), WORSE: ("human_ref_B",)},
        ("labels",),
        _has("history", "human_ref_A", "human_ref_B", "labels"),
        _read_shp,
        named=True,
    ),
    Schema(
        "summarize-from-feedback",
        "none",
        {QUESTION: ("info",), BETTER: ("summaries",), WORSE: ("summaries",)},
        ("choice",),
        _has("info", "summaries", "choice"),
        _read_summaries,
        named=True,
    ),
    Schema(
        "pairs of messages",
        "chat",
        {QUESTION: ("chosen",)} | _PAIR,
        ("prompt", "conversations", MESSAGES, *BEFORE_QUESTION),
        _holds_messages("chosen", with_prompt=True),
        _read_pairs,
    ),
    Schema(
        "prompt and completion of messages",
        "chat",
        {QUESTION: ("prompt",), BETTER: ("completion",)},
        BEFORE_QUESTION,
        _holds_messages("completion", with_prompt=True),
        _read_completion,
    ),
    Schema(
        "messages",
        "chat",
        {QUESTION: (MESSAGES, "conversations"), BETTER: (MESSAGES, "conversations")},
        BEFORE_QUESTION,
        _holds_messages(MESSAGES, "conversations"),
        _read_messages,
    ),
    Schema(
        "prompt of messages", "chat", {QUESTION: ("prompt",)}, BEFORE_QUESTION, _holds_messages("prompt"), _read_prompt
    ),
    Schema(
        "pairs without a prompt",
        "none",
        {QUESTION: ("chosen",)} | _PAIR,
        (),
        _is_implicit,
        _read_implicit,
    ),
)
