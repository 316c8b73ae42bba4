"""Chips: read, inventory, split, fetch and synthesise labelled HLS chips."""
