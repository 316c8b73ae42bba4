"""ZenML pipelines: which step feeds which."""
