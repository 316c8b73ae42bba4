"""The HTTP application of the serving container."""
