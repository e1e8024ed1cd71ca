"""Type of the times in files."""

from typing import Annotated

from msgspec import Meta

UnixTime = Annotated[float, Meta(ge=0, le=1e11)]
"""Seconds since 1970, up to the year 5138, so that a calendar can show them and differences can be rounded."""
