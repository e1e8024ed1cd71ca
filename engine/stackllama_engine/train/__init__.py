"""Training stages and the chat generator: the only modules that import torch, besides `budget.trace`."""
