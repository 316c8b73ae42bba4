"""A module that a test edits while a run is pending."""

VERSION = "as submitted"
