"""Predicts times on a GPU without one: counts the work of every launch, and reads the compiled kernels' resources.

`python -m bench.cost_model` rewrites predicted.json and the tables of bench/README.md.
"""
