"""The samples browser: PPO's rollouts sorted, filtered, one prompt followed, before beside after."""

import asyncio
from functools import partial
from threading import Lock
from typing import Any, ClassVar

import msgspec
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal, Vertical, VerticalScroll
from textual.widgets import Input, Static

from stackllama_engine.contract.run_dir import RunDir

from ...readers.samples import Pair, Sample
from ...readers.samples_browser import SORTS, Listing, SamplesBrowser, Wanted
from ...sanitise import one_line
from ..screen import ConsoleScreen
from ..widgets import sample_rows
from ..widgets.row_list import Pieces, RowList

_WIDE = 120
_AHEAD = 40  # rows read beyond those in sight, so that a held key finds them
_KEPT = 2_000  # texts held
_NAMES = {"step": "step", "reward": "reward", "kl": "KL", "length": "length"}


class SamplesScreen(ConsoleScreen):
    """The samples of one run."""

    HEADING = "samples"
    WIDGETS_WITH_KEYS = ("RowList",)
    AUTO_FOCUS = "#rows"
    DEFAULT_CSS = """
    SamplesScreen {
        #note { height: auto; max-height: 3; padding: 0 1; color: $text-muted; display: none; }
        #samples { layout: vertical; height: 1fr; }
        #rows { height: 3fr; }
        #detail { height: 2fr; padding: 0 1; border-top: solid $panel; scrollbar-size: 0 1; }
        #detail Static { height: auto; width: 1fr; }
        #detail Vertical { height: auto; }
        #sides { height: auto; }
        #right { margin-left: 2; }
        #filter { dock: bottom; height: 1; margin-bottom: 1; display: none; }
        &.-wide #samples { layout: horizontal; }
        &.-wide #rows { width: 3fr; height: 1fr; }
        &.-wide #detail { width: 2fr; height: 1fr; border-top: none; border-left: solid $panel; }
        &.-wide.-pairs #rows { width: 1fr; }
        &.-wide.-pairs #detail { width: 1fr; }
        &.-low #detail { display: none; }
        &.-none #samples { display: none; }
        &.-none #note { display: block; padding: 1 2; max-height: 100%; }
        &.-note #note { display: block; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("o", "sort", "sort", id="samples.sort", tooltip="Sort by step, reward, KL, length in turn"),
        Binding("r", "reverse", "reverse", id="samples.reverse"),
        Binding("slash", "filter", "filter", id="samples.filter", key_display="/"),
        Binding("f", "follow", "follow prompt", id="samples.follow", tooltip="All responses to this prompt, by step"),
        Binding("b", "pairs", "before/after", id="samples.pairs", tooltip="Held-out prompts before and after PPO"),
        Binding("d", "scroll_detail(4)", "scroll text down", id="samples.text_down", show=False),
        Binding("u", "scroll_detail(-4)", "scroll text up", id="samples.text_up", show=False),
        Binding("Y", "copy", "copy sample", id="samples.copy", show=False),
    ]

    def __init__(self, run: RunDir) -> None:
        super().__init__()
        self.run_id = one_line(run.id)
        self.browser = SamplesBrowser(run)
        self.wanted = Wanted()
        self.listing = Listing(wanted=self.wanted)
        self._one_at_a_time = Lock()
        self._texts: dict[int, Sample] = {}
        self._selected = -1

    def body(self) -> ComposeResult:
        """Compose list, text, and a line for the filter."""
        yield Static("", id="note", markup=False)
        with Container(id="samples"):
            yield RowList(self._draw, id="rows")
            with VerticalScroll(id="detail", can_focus=False), Vertical():
                yield Static("", id="prompt", markup=False)
                with Horizontal(id="sides"):
                    yield Static("", id="left", markup=False)
                    yield Static("", id="right", markup=False)
        line = Input(placeholder="text in prompt or response; enter filters, escape cancels", compact=True, id="filter")
        line.cursor_blink = False
        yield line

    def on_mount(self) -> None:
        """Name the run in the heading."""
        self.call_next(self.set_heading, self.run_id)  # after the heading that every screen begins with

    def on_resize(self, event: events.Resize) -> None:
        """Put the text beside the list from 120 columns, below it else."""
        self.update_classes({"-wide": event.size.width >= _WIDE, "-low": event.size.height < 12})

    # reading, in threads

    def poll(self) -> Listing | None:
        """Return new rows or another order."""
        with self._one_at_a_time:
            return self.browser.poll(self.wanted, self._selected)

    async def _poll_now(self) -> None:
        listing = await asyncio.to_thread(self.poll)
        if listing is not None and self.is_attached:
            self.render_update(listing)

    async def _read(self, rows: list[int], generation: int) -> None:
        samples = await asyncio.to_thread(self._read_locked, rows)
        if not self.is_attached or generation != self.listing.generation:
            return
        if len(self._texts) > _KEPT:
            self._texts.clear()
        self._texts.update({sample.row: sample for sample in samples})
        if samples:
            self.query_one(RowList).repaint()
            self._show_detail()

    def _read_locked(self, rows: list[int]) -> list[Sample]:
        with self._one_at_a_time:
            return self.browser.read(rows)

    # showing

    def render_update(self, update: Any) -> None:
        """Render the new listing; the selected row stays selected."""
        listing: Listing = update
        if listing.wanted != self.wanted:
            return  # another key was pressed meanwhile; its own answer is under way
        before, self.listing = self.listing, listing
        if listing.generation != before.generation:
            self._texts.clear()
            self._selected = -1
        rows = self.query_one(RowList)
        cursor, keep = self._cursor(before)
        pairs = listing.wanted.mode == "pairs"
        self.update_classes({"-pairs": pairs, "-none": not len(listing), "-note": bool(listing.note)})
        self.query_one("#note", Static).update(Text(listing.note))
        rows.show_rows(len(listing), cursor, partial(sample_rows.heading, listing), keep=keep)
        self._head()

    def _cursor(self, before: Listing) -> tuple[int, bool]:
        """Return where the cursor goes, and whether it is on the same row as before."""
        listing = self.listing
        if listing.wanted.mode == "pairs":
            same = before.wanted.mode == "pairs"
            return (self.query_one(RowList).cursor if same else 0), same
        same = before.wanted == listing.wanted
        if not len(listing) or (before.wanted.mode == "rows" == listing.wanted.mode and not same):
            return 0, False  # another order or filter: its first row is what was asked for
        if listing.rows[listing.cursor] == self._selected:
            return listing.cursor, same
        if self._selected in listing.rows:  # moved while the thread was polling
            return listing.rows.index(self._selected), same
        return 0, False

    def on_row_list_moved(self) -> None:
        """Read missing texts when other rows are in sight or another one is selected."""
        rows, listing = self.query_one(RowList), self.listing
        if listing.wanted.mode == "pairs" or not len(listing):
            self._show_detail()
            return
        self._selected = listing.rows[min(rows.cursor, len(listing) - 1)]
        sight = rows.in_sight
        rows_to_hold = [self._selected, *listing.rows[max(0, sight.start - _AHEAD) : sight.stop + _AHEAD]]
        missing = [row for row in rows_to_hold if row not in self._texts]
        if self._selected in missing or any(listing.rows[index] not in self._texts for index in sight):
            self.begin(self._read(missing, listing.generation), group="texts", exclusive=True)
        self._show_detail()

    def _draw(self, index: int, width: int) -> Pieces:
        listing = self.listing
        if index >= len(listing):
            return []
        if listing.wanted.mode == "pairs":
            return sample_rows.pair_row(listing.pairs[index], width)
        sample = self._texts.get(listing.rows[index])
        if listing.wanted.mode == "prompt":
            before = self._texts.get(listing.rows[index - 1]) if index else None
            return sample_rows.prompt_row(sample, before, width)
        return sample_rows.sample_row(sample, width)

    @property
    def selected(self) -> Sample | Pair | None:
        """The sample or pair under the cursor; None until it has been read."""
        listing, index = self.listing, self.query_one(RowList).cursor
        if index >= len(listing):
            return None
        return listing.pairs[index] if listing.wanted.mode == "pairs" else self._texts.get(listing.rows[index])

    def _show_detail(self) -> None:
        chosen = self.selected
        texts = (Text(""), Text(""), Text(""))
        if isinstance(chosen, Pair):
            left, right = (
                sample_rows.side_text("before PPO", chosen.before),
                sample_rows.side_text("after PPO", chosen.after),
            )
            texts = (sample_rows.prompt_text(chosen), left, right)
        elif chosen is not None:
            texts = (sample_rows.sample_text(chosen), Text(""), Text(""))
        elif len(self.listing):
            return  # it is being read; the previous text stays that long
        changed = False
        for name, text in zip(("prompt", "left", "right"), texts, strict=True):
            place = self.query_one(f"#{name}", Static)
            if place.content != text:
                place.update(text)
                changed = True
        if changed:
            self.query_one("#detail").scroll_to(y=0, animate=False)

    def _head(self) -> None:
        listing, wanted = self.listing, self.wanted
        parts: list[str] = [self.run_id]
        if wanted.mode == "pairs":
            parts += [f"{len(listing)} prompt{'s' * (len(listing) != 1)} before and after PPO", listing.evaluation]
        elif wanted.mode == "prompt":
            parts.append(f"one prompt, {len(listing):,} response{'s' * (len(listing) != 1)} by step")
        else:
            shown = f"{listing.total:,} samples"
            if wanted.text:
                shown = f"{len(listing):,} of {listing.total:,} with “{one_line(wanted.text)}”"
            parts.append(f"{shown} by {_NAMES[wanted.sort]} {'↓' if wanted.descending else '↑'}")
            if listing.searching:
                parts.append("searching …")
        if listing.live:
            parts.append("● live")
        self.set_heading(*parts)

    # keys

    def action_sort(self) -> None:
        """Sort by the next key, the highest first, as one looks for extremes."""
        key = SORTS[(SORTS.index(self.wanted.sort) + 1) % len(SORTS)]
        self._want(mode="rows", sort=key, descending=True)

    def action_reverse(self) -> None:
        """Reverse the order."""
        self._want(mode="rows", descending=not self.wanted.descending)

    def action_filter(self) -> None:
        """Open the filter."""
        line = self.query_one("#filter", Input)
        line.value = self.wanted.text
        line.display = True
        line.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Filter by the text; an empty line shows all."""
        self._leave_filter()
        self._want(mode="rows", text=event.value.strip())

    def action_follow(self) -> None:
        """Show all responses to the selected row's prompt, or go back."""
        if self.wanted.mode == "prompt":
            self._want(mode="rows")
        elif self._selected >= 0 and self.wanted.mode == "rows" and len(self.listing):
            self._want(mode="prompt", prompt=self._selected)
        elif self.wanted.mode == "pairs":
            self.say("Held-out prompts are sampled only before and after PPO; b: rollouts, where f follows a prompt.")
        else:
            self.say("Select a sample first: follow shows all responses to its prompt.")

    def action_pairs(self) -> None:
        """Show before beside after, or go back."""
        self._want(mode="rows" if self.wanted.mode == "pairs" else "pairs")

    def action_scroll_detail(self, lines: int) -> None:
        """Scroll the text."""
        self.query_one("#detail").scroll_relative(y=lines, animate=False)

    def action_copy(self) -> None:
        """Copy the selected prompt and responses."""
        names = ("prompt", "left", "right")
        parts = [str(self.query_one(f"#{name}", Static).content).strip() for name in names]
        if text := "\n\n".join(part for part in parts if part):
            self.console_app.copy_to_clipboard(text)

    def action_back(self) -> None:
        """Leave the filter line, one prompt, the pairs, the filter; then go to the previous screen."""
        if self.query_one("#filter", Input).has_focus:
            self._leave_filter()
        elif self.wanted.mode != "rows":
            self._want(mode="rows")
        elif self.wanted.text:
            self._want(text="")
        else:
            super().action_back()

    def _leave_filter(self) -> None:
        self.query_one("#filter", Input).display = False
        self.query_one(RowList).focus()

    def _want(self, **changes: Any) -> None:
        self.wanted = msgspec.structs.replace(self.wanted, **changes)
        self.begin(self._poll_now(), group="poll", exclusive=True)
