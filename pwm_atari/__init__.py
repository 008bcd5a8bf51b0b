"""PaMoRL on Atari: the parts that are special to the Arcade Learning Environment."""
