"""A program for torchrun: steps of which one has a loss that is not finite in rank 1 only, for `test_agreement.py`."""

import sys
from pathlib import Path

import torch

from fastglow.errors import FastglowError
from fastglow.train.loop import Trainer
from fastglow.train.ranks import Vote, joined_ranks, leave_process

from ..train.conftest import configs
from ..train.host_waits import no_host_waits

STEPS, BAD = 4, 1


def run(model, amp, data, out, ranks):
    """(results, error, sum of the weights after each step, ids of this rank's bad batch)."""
    config, model_config = configs(model, data, out / "run", batch_size=2, amp=amp, log_interval=STEPS, ema=0.9)
    trainer = Trainer(model, config, model_config, progress=False, ranks=ranks)
    trainer.state.model.train()
    losses = trainer.task.losses

    def faulty(network, batch):
        """Finite gradients: the fault is a constant."""
        found = losses(network, batch)
        bad = trainer.state.iteration == BAD and ranks.rank == 1
        return {**found, "loss": found["loss"] + (float("inf") if bad else 0.0)}

    trainer.task.losses = faulty
    weights, names = [], []
    with no_host_waits(*trainer.state.model.parameters(), *trainer.state.model.buffers()):
        for step in range(STEPS):
            first = 2 * ranks.rank + step % 3
            batch = trainer.task.collate([trainer.trainset[first], trainer.trainset[first + 1]])
            trainer.step([batch], [0.5])
            trainer.state.count_step(4)
            weights.append([p.detach().clone() for p in trainer.state.model.parameters()])
            names.append(batch.ids)
    results, error = [], ""
    try:
        for result in trainer.step.results():
            results.append(result.scalars)
    except FastglowError as found:
        error = str(found)
    return {"results": results, "error": error, "weights": weights, "ids": names[BAD]}


def main(data, out):
    torch.set_num_threads(1)
    with joined_ranks() as ranks:
        found = {
            f"{model} {amp}": run(model, amp, data, out, ranks)
            for model in ("tacotron2", "waveglow")
            for amp in ("off", "fp16")
        }
        vote = Vote(ranks)
        found["votes"] = [vote(ranks.rank == 1 and call == 2) for call in range(5)] + [vote.settle(), vote.settle()]
        torch.save(found, out / f"{ranks.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    leave_process()
