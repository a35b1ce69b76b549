"""A package, so that no other of this name, as wandb 0.16 brings one, is imported in spawned processes."""
