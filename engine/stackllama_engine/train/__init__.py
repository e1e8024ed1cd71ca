"""What trains: the only rooms that import torch."""
