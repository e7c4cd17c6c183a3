"""How training scales to many GPUs, computed from the results of a run on one.

`steps` takes a step's time from a report, `gradients` knows when in the backward pass each gradient is ready, `links`
how long an all-reduce takes. `timeline` lays them on a step as DistributedDataParallel does, `stragglers` adds the wait
for the longest batch, `tables` writes the page; `check` holds it against a run. `python -m bench.scaling --help`.
"""
