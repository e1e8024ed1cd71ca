"""Tab in an input that takes a path: completes it, and shows the candidates where there are several."""

import asyncio
from collections.abc import Callable

from textual.widgets import Input

from ...readers.path_completion import complete_path
from ...sanitise import one_line


async def complete(line: Input, show: Callable[[str], None]) -> None:
    """Complete the path in an input, unless it was changed meanwhile.

    Args:
        line: the input.
        show: takes the candidates, in one line; empty where the path is complete.
    """
    text = line.value
    completion = await asyncio.to_thread(complete_path, text)
    if line.value != text or not line.is_attached:
        return
    if completion.text != text:
        line.value = completion.text
        line.cursor_position = len(completion.text)
    if not completion.names:
        show("no such path" if completion.text == text else "")
    else:
        show(one_line(" · ".join(completion.names)) if len(completion.names) > 1 else "")
