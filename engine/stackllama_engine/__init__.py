"""The training engine of stackllama-console: SFT, reward model and PPO on one frozen base."""

__version__ = "0.2.0"
