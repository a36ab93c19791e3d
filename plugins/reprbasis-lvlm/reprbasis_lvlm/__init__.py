"""Vision-language models for ReprBasis, and synthetic scenes to try them on."""
