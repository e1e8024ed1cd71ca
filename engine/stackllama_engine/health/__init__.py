"""Rules that say during a run what its metrics mean, without torch: numbers in, findings out."""
