"""The commands, whose flags and lines on the terminal are the same for every domain."""
