"""Tasks: aligned clean and corrupted prompts with answers."""
