"""Settings of every test: Hypothesis has no deadline, because a loaded machine is slow."""

from hypothesis import settings

settings.register_profile("no-clock", deadline=None)
settings.load_profile("no-clock")
