"""The Great Expectations suite over the inventory."""
