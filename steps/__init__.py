"""Typed ZenML steps. Each calls one function of hls_foundry and returns artifacts."""
