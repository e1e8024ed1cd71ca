"""Moments as they stand in files."""

from typing import Annotated

from msgspec import Meta

UnixTime = Annotated[float, Meta(ge=0, le=1e11)]
"""Seconds since 1970, up to the year 5138: what a calendar can show and a difference of two can be rounded."""
