"""Rewrites predicted.json and the tables of bench/README.md: `python -m bench.cost_model`."""

import argparse

from .prediction import compare, predict_all, write

if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m bench.cost_model", description=__doc__).parse_args()
    calls = predict_all()
    for line in compare(calls):
        print(line)
    write(calls)
