"""The Accelerate loop, its launcher and its checkpoints."""
