"""The one training loop, in plain PyTorch: no Ray, no MLflow. The same worker runs under Ray Train and torchrun."""

LOOP_VERSION = 1
"""Raised when the loop gives other weights for the same settings; golden losses stand beside it in tests/training."""
