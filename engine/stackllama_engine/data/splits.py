"""Assignment of questions to splits, by a stable hash of the question alone.

A question is therefore in exactly one split, on every machine and in every run, and adding posts moves none. It does
not depend on a run's seed: stages of one recipe may use different seeds and must not see each other's questions.

Shares are those of ``lvwerra/stack-exchange-paired``, whose four parts have 20, 20, 20 and 12 files of equal size:
5/18 each for finetune, reward and rl, and 3/18 for evaluation.
"""

import hashlib
import unicodedata

from ..contract.stages import Split

SHARES: dict[Split, int] = {Split.FINETUNE: 5, Split.REWARD: 5, Split.RL: 5, Split.EVALUATION: 3}

_PARTS = tuple(split for split, share in SHARES.items() for _ in range(share))


def stable_hash(*parts: str | int) -> int:
    """Return 64 bits of BLAKE2b over the parts; the same on every machine and in every process."""
    joined = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(joined.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def same_text(text: str) -> str:
    """Normalise line ends, composed accents and surrounding space, in which copies of a text may differ.

    A question that went through another editor or exporter must not be in another split (DBRD#6).
    """
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n")).strip()


def question_hash(question: str) -> int:
    """Hash a question into 63 bits, whatever its case and its spaces (Arrow's integers have a sign)."""
    return stable_hash(" ".join(same_text(question).casefold().split())) >> 1


def split_of(question: str | int) -> Split:
    """Return the split of a question, from its id (within a site) or, if there is none, its text."""
    return _PARTS[stable_hash("split", question) % len(_PARTS)]
