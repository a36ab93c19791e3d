"""Corpora: `chat` (dialogues as JSON lines) and `text` (plain text files)."""
