"""Self-contained HTML pages and the pictures on them: what a person looks at after a run, with no network and no other file."""

from hls_foundry.report.elements import columns, commands, facts, folded, note, table, text, tiles
from hls_foundry.report.page import Section, page
from hls_foundry.report.picture import Picture

__all__ = ["Picture", "Section", "columns", "commands", "facts", "folded", "note", "page", "table", "text", "tiles"]
