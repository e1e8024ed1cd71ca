"""For every test: Hypothesis has no deadline, because a busy machine is no fault of the code."""

from hypothesis import settings

settings.register_profile("no-clock", deadline=None)
settings.load_profile("no-clock")
