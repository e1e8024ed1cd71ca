"""Device memory as given by the user: an amount, or the name of a card.

A card's memory is the total shown by ``nvidia-smi``, in MiB, which is less than its nominal size.
"""

import difflib
import re

from ..contract.errors import UsageError

_AMOUNT = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([kmgt])(i?)b", re.IGNORECASE | re.ASCII)
_POWERS = "kmgt"
_MOST = 1 << 50

CARDS_MIB = {
    "T4": 15360,
    "P100": 16384,
    "V100-16GB": 16160,
    "V100-32GB": 32510,
    "A10": 23028,
    "A10G": 23028,
    "L4": 23034,
    "A40": 46068,
    "L40": 46068,
    "L40S": 46068,
    "A6000": 49140,
    "RTX-6000-Ada": 49140,
    "A100-40GB": 40960,
    "A100-80GB": 81920,
    "H100": 81559,
    "H200": 143771,
    "B200": 183359,
    "RTX-2080-Ti": 11264,
    "RTX-3060": 12288,
    "RTX-3080": 10240,
    "RTX-3090": 24576,
    "RTX-4060-Ti-16GB": 16380,
    "RTX-4070": 12282,
    "RTX-4080": 16376,
    "RTX-4090": 24564,
    "RTX-5080": 16303,
    "RTX-5090": 32607,
}


def device_memory(text: str) -> int:
    """Return the bytes of an amount such as ``24GiB`` or ``80GB``, or of a card.

    Raises:
        UsageError: it is neither; the nearest card is suggested.
    """
    if match := _AMOUNT.fullmatch(text.strip()):
        base = 1024 if match[3] else 1000
        amount = round(float(match[1]) * base ** (1 + _POWERS.index(match[2].lower())))
        if 0 < amount <= _MOST:
            return amount
        raise UsageError(f"`{text[:40]}` is out of range; give the memory of one device, such as 24GiB.")
    plain = {_plain(name): name for name in CARDS_MIB}
    if name := plain.get(_plain(text)):
        return CARDS_MIB[name] << 20
    near = difflib.get_close_matches(_plain(text[:40]), plain, n=1)
    hint = f"did you mean `{plain[near[0]]}`?" if near else "such as RTX-4090."
    raise UsageError(f"`{text[:40]}` is neither an amount such as 24GiB or 80GB nor a known card: {hint}")


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]|nvidia|geforce", "", name.lower())
