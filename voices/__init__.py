"""Makes voices from recordings by committed recipes: `make voice`. Not installed."""
