"""Builds, describes and pushes the container images."""
