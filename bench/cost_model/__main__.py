"""Rewrites predicted.json and the tables of bench/README.md: `python -m bench.cost_model`."""

from .prediction import compare, predict_all, write

if __name__ == "__main__":
    calls = predict_all()
    for line in compare(calls):
        print(line)
    write(calls)
