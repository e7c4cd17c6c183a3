"""A program for torchrun: the gradients of some steps of both models, for `test_gradients.py`."""

import sys
from itertools import islice, product
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from fastglow.train.loop import Trainer
from fastglow.train.ranks import joined_ranks, leave_process

from ..train.conftest import configs

EPOCHS = 2

SAVING = {"tacotron2": "gradient_checkpointing", "waveglow": "memory_saving"}
"""Each model's option that stores fewer activations."""

NO_DROPOUT = {f"p_{part}_dropout": 0.0 for part in ("attention", "decoder", "prenet", "encoder", "postnet")}


def new_trainer(model, data, out, accumulate, ranks=None, saving=False):
    """With gradients that are not clipped and weights that do not change."""
    options = {"batch_size": 2, "accumulate": accumulate, "learning_rate": 1e-30, "grad_clip_thresh": 1e30}
    config, model_config = configs(model, data, out, **options, **({SAVING[model]: True} if saving else {}))
    if model == "tacotron2":
        model_config = type(model_config)(**{**vars(model_config), **NO_DROPOUT})
    return Trainer(model, config, model_config, progress=False, **({"ranks": ranks} if ranks else {}))


def main(data, out):
    torch.set_num_threads(1)
    with joined_ranks() as ranks:
        for model in ("tacotron2", "waveglow"):
            for accumulate, saving in product((1, 2), (False, True)):
                trainer = new_trainer(model, data, out / "run", accumulate, ranks, saving)
                assert getattr(trainer.state.model, SAVING[model]) == saving
                assert isinstance(trainer.step.model, DistributedDataParallel)
                trainer.state.model.train()
                results = [result for epoch in range(EPOCHS) for result in steps(trainer, epoch)]
                torch.save(results, out / f"{model}-{accumulate}-{saving}-{ranks.rank}.pt")


def steps(trainer, epoch):
    """(scalars, gradients) of every step; rank 1 wishes to stop in odd epochs, and all learn it a step later."""
    trainer.sampler.start_epoch(epoch)
    trainer.trainset.set_epoch(epoch)
    accumulate, indices = trainer.config.accumulate, iter(trainer.sampler)
    for step in range(len(trainer.sampler.steps)):
        batches = [trainer.task.collate([trainer.trainset[i] for i in batch]) for batch in islice(indices, accumulate)]
        weights = [trainer.sampler.weight(step, i) for i in range(accumulate)]
        trainer.step(batches, weights)
        ((_, scalars),) = trainer.step.results()
        scalars["stop"] = trainer.vote(trainer.ranks.rank == 1 and epoch % 2 == 1)
        yield scalars, {name: p.grad.clone() for name, p in trainer.state.model.named_parameters()}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    leave_process()
