"""Stacks: their definitions (*.yaml) and the code that registers them with ZenML."""
