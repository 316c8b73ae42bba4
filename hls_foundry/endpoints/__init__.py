"""Create, test and delete endpoints."""
