"""The training loop: iterations, hooks, logs."""
