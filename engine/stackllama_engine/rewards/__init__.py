"""Ready reward functions: exact numbers, patterns, JSON, length. Pure Python.

A recipe names them as ``stackllama_engine.rewards:exact_number``. What a function needs besides the responses comes
from the column of that name, one value per response, or from ``reward_kwargs``, one for all. Where a row has none
(None) the function abstains.
"""

from .exact_number import exact_number as exact_number
from .exact_number import exact_number_strict as exact_number_strict
from .text_form import matches as matches
from .text_form import target_length as target_length
from .text_form import valid_json as valid_json
