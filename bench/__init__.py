"""The benchmark suite and its regression gate. Not installed."""
