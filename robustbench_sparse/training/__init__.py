"""The one training loop, and what stands around it: its checks before, its checkpoints, its validation."""
