"""The regression suite: how fast the operations are, and whether they became slower. Not installed."""
