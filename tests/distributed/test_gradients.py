"""Two processes have the gradients of one with the same global batch."""

import pytest
import torch

from fastglow.train.sampler import Sharing, StepSampler

from ..train.conftest import MODELS
from .conftest import run_in_two_processes
from .gradients import EPOCHS, new_trainer

WORLD_SIZE = 2


@pytest.fixture(scope="module")
def of_two_processes(prepared, tmp_path_factory):
    """Folder of the results of `gradients.py` under torchrun."""
    out = tmp_path_factory.mktemp("gradients")
    run_in_two_processes("gradients", prepared, out)
    return out


def flat(gradients):
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)])


@pytest.mark.parametrize("saving", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("model", MODELS)
def test_gradients_equal_those_of_one_process(of_two_processes, prepared, tmp_path, model, accumulate, saving):
    """WaveGlow's of the whole global batch at once; Tacotron 2's pass by pass, as each normalises its own batch. The
    one process stores all activations; with `saving`, the two store fewer."""
    trainer = new_trainer(model, prepared, tmp_path, accumulate)
    network, task = trainer.state.model.train(), trainer.task
    ranks = [
        StepSampler(trainer.trainset.lengths(), Sharing(2, rank, WORLD_SIZE, accumulate), trainer.config.seed)
        for rank in range(WORLD_SIZE)
    ]
    results = [
        torch.load(of_two_processes / f"{model}-{accumulate}-{saving}-{r}.pt", weights_only=True) for r in range(2)
    ]
    planned = []
    for epoch in range(EPOCHS):
        ranks[0].start_epoch(epoch)
        planned += [(epoch, items) for items in ranks[0].steps]
    assert any(len(items) % (WORLD_SIZE * accumulate) for _, items in planned), "some passes are larger than others"
    assert len(planned) == len(results[0]) == len(results[1])
    for step, (epoch, items) in enumerate(planned):
        trainer.trainset.set_epoch(epoch)
        if model == "waveglow":
            shares = [items]
        else:
            shares = [rank.sharing.share(items, i) for i in range(accumulate) for rank in ranks]
        network.zero_grad()
        total = 0.0
        for share in shares:
            loss = task.losses(network, task.collate([trainer.trainset[i] for i in share]))["loss"]
            (loss * len(share) / len(items)).backward()
            total += loss.item() * len(share) / len(items)
        expected = flat({name: p.grad for name, p in network.named_parameters()})
        n_items = task.collate([trainer.trainset[i] for i in items]).n_items
        for rank, result in enumerate(results):
            scalars, gradients = result[step]
            assert (flat(gradients) - expected).norm() <= 1e-6 * expected.norm(), (step, rank)
            assert scalars["loss"] == pytest.approx(total, rel=1e-6)
            assert scalars["grad_norm"] == pytest.approx(expected.double().norm().item(), rel=1e-5)
            assert scalars["items"] == n_items
            assert scalars["stop"] is (step > 0 and planned[step - 1][0] == 1)
        assert all(torch.equal(*(result[step][1][name] for result in results)) for name in results[0][step][1])
