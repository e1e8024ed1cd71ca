"""Settings of every test: Hypothesis has no deadline, because a loaded machine is slow; nobody asks the hub."""

import os

from hypothesis import settings

os.environ.setdefault("STACKLLAMA_HUB_DEADLINE", "0")  # tests are offline; those of the hub's answers bring their own

settings.register_profile("no-clock", deadline=None)
settings.load_profile("no-clock")
