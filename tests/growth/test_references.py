"""Growth against plain loops in float64, after every step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from growth.reference import INPUTS, OPTIMIZERS, TARGETS, Reference, cosine, network
from helpers.pruners import magnitude_pruner
from helpers.training import train
from prunus import (
    AlternatingGrowth,
    GradientGrowth,
    GradualPruning,
    Growth,
    OneShot,
    RandomGrowth,
    Schedule,
    SoftGrowth,
)

STEPS = 40


class Training:
    """A training by prunus, a step at a time."""

    def __init__(self, optimizer: str, growth: Growth, schedule: Schedule) -> None:
        self.model: nn.Module = network()
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.pruner = magnitude_pruner(self.model, self.optimizer, schedule=schedule, growth=growth)

    def step(self) -> None:
        train(self.model, self.optimizer, (INPUTS, TARGETS), 1)

    def assert_equal(self, reference: Reference, step: int) -> None:
        """Check weights and optimizer state, in which removed weights are exactly zero."""
        masks = list(self.pruner.masks.values())
        for parameter, mask, expected, weight, own in zip(
            self.model.parameters(),
            masks,
            reference.sparse,
            reference.weights,
            reference.masks,
            strict=True,
        ):
            assert torch.equal(mask.double(), own), step
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-9, atol=1e-12)
            assert not parameter.detach()[~mask].count_nonzero()
            states = self.optimizer.state[parameter], reference.update.state[weight]
            for key, value in states[1].items():
                if isinstance(value, torch.Tensor):
                    torch.testing.assert_close(states[0][key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_soft_growth_trains_dense_weights_by_the_gradient_of_the_largest(
    optimizer: str, every: int
) -> None:
    until, begin, end = 30, 4, 24
    schedule = GradualPruning(sparsity=0.75, begin=begin, end=end, every=5)
    ours = Training(optimizer, SoftGrowth(until=until, every=every), schedule)
    reference = Reference(OPTIMIZERS[optimizer])
    returned = 0
    for step in range(1, STEPS + 1):
        ours.step()
        reference.step(dense=step <= until)
        before, kept = reference.masks, reference.kept
        if step in range(begin, end + 1, 5) or step == end:
            # 30 of 120 weights stay in the end.
            kept = round(30 + 90 * ((end - step) / (end - begin)) ** 3)
            reference.masks = reference.largest(kept)
        if (step <= until and step % every == 0) or step == until:
            reference.masks = reference.largest(kept)
        returned += int(
            sum(((b == 0) & (a > 0)).sum() for b, a in zip(before, reference.masks, strict=True))
        )
        if step == until:
            reference.clear(reference.masks)
        ours.assert_equal(reference, step)
    assert ours.pruner.masks.kept == 30
    assert returned > 5  # the test is of some use
    assert ours.pruner.done


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_gradient_growth_exchanges_the_smallest_for_the_largest_gradients(optimizer: str) -> None:
    growth = GradientGrowth(every=4, fraction=0.5, until=30)
    ours = Training(optimizer, growth, OneShot(sparsity=0.75, at=4))
    reference = Reference(OPTIMIZERS[optimizer])
    sizes = []
    for step in range(1, STEPS + 1):
        ours.step()
        reference.step()
        if step == 4:
            reference.remove(30)
        if step % 4 == 0 and step < 30:
            changes = reference.exchange(cosine(0.5, step, 30), reference.largest_gradients)
            sizes.append(sum(len(dropped) for dropped, _ in changes))
        ours.assert_equal(reference, step)
        assert ours.pruner.masks.kept == (120 if step < 4 else 30)
    # The cosine times 30, rounded in each of two tensors: 14.3, 12.6, 9.8, 6.7, 3.8, 1.4, 0.2.
    assert len(sizes) == 7
    assert sizes == sorted(sizes, reverse=True)
    assert all(
        abs(size - 30 * cosine(0.5, 4 * n, 30)) <= 1 for n, size in enumerate(sizes, start=1)
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_random_growth_exchanges_the_smallest_for_removed_ones(optimizer: str) -> None:
    ours = Training(
        optimizer, RandomGrowth(every=4, fraction=0.4, until=30), OneShot(sparsity=0.75, at=4)
    )
    reference = Reference(OPTIMIZERS[optimizer])
    names = list(ours.pruner.masks)
    drawn = []
    for step in range(1, STEPS + 1):
        ours.step()
        reference.step()
        if step == 4:
            reference.remove(30)
        if step % 4 == 0 and step < 30:
            before = [mask.clone() for mask in reference.masks]

            def chosen(index: int, count: int, before: list[torch.Tensor] = before) -> torch.Tensor:
                """Return the positions that prunus has drawn, which must be as many."""
                found = ours.pruner.masks[names[index]] & (before[index] == 0)
                positions = found.flatten().nonzero().flatten()
                assert len(positions) == count
                return positions

            changes = reference.exchange(0.4, chosen)
            drawn.append(tuple(torch.cat([returned for _, returned in changes]).tolist()))
        ours.assert_equal(reference, step)
        assert ours.pruner.masks.kept == (120 if step < 4 else 30)
    assert len(drawn) == 7
    assert all(len(positions) >= 10 for positions in drawn)
    assert len(set(drawn)) == 7  # other positions each time


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_alternating_growth_opens_the_masks_in_dense_phases(optimizer: str) -> None:
    growth = AlternatingGrowth(sparse=6, dense=4, until=33)
    ours = Training(optimizer, growth, OneShot(sparsity=0.75, at=3))
    reference = Reference(OPTIMIZERS[optimizer])
    for step in range(1, STEPS + 1):
        ours.step()
        reference.step()
        if step == 3:
            reference.remove(30)
        if step in (6, 16, 26):
            reference.masks = [torch.ones_like(mask) for mask in reference.masks]
        if step in (10, 20, 30):
            reference.remove(30)
        ours.assert_equal(reference, step)
        dense = step < 3 or step in (*range(6, 10), *range(16, 20), *range(26, 30))
        assert ours.pruner.sparsity == (0 if dense else 0.75)
        assert ours.pruner.done == (step >= 33)


def test_alternating_growth_ends_sparse_if_the_end_is_within_a_dense_phase() -> None:
    growth = AlternatingGrowth(sparse=2, dense=4, until=5)
    ours = Training("SGD", growth, OneShot(sparsity=0.5, at=1))
    sparsities = []
    for _ in range(7):
        ours.step()
        sparsities.append(ours.pruner.sparsity)
    assert sparsities == [0.5, 0, 0, 0, 0.5, 0.5, 0.5]
