"""The Prithvi encoder, decode heads, and the model bundle on disk."""
