"""Real programs on the other side; each test names the program that it misses."""
