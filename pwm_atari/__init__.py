"""PaMoRL on Atari: what is special about the Arcade Learning Environment."""
