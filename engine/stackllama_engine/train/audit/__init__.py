"""The audit of a reward model: held-out pairs, rules that know nothing of it, spoilt responses; see :mod:`.report`."""
