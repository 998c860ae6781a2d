"""The gradient observer, which passes gradients to the score and stores its memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from prunus._distributed.shards import local
from prunus._utils.batches import batches
from prunus._utils.devices import on_device
from prunus._utils.finiteness import finite_mask, finiteness
from prunus.scores import Score
from prunus.selection import PrunableTensor, Selection

__all__ = ["GradientObserver"]

_ENOUGH = 100
"""The number of gradients of other tensors after which a tensor without any is not waited for.

A heuristic: the layers that a batch uses may depend on its data, as in a mixture of experts.
"""


class GradientObserver:
    """Passes the gradients of each step to the score, before anything else changes them.

    A gradient with NaN or infinity would stay in an average for ever, so it is left out. On the CPU
    the tensor then counts as one without a gradient in this step. On an accelerator, whose host
    does not wait for the answer, and in a shard, whose other shards may be finite, the memory keeps
    its values and the gradient is counted.

    Args:
        score: The score.
        selection: The prunable tensors.

    Attributes:
        score: The score.
        memory: What the score remembers, by tensor and by the score's name for it.
        counts: How many gradients each tensor has had, without those left out. The score observes
            the first of them, and each ``every``-th one after it.
    """

    def __init__(self, score: Score, selection: Selection) -> None:
        self.score = score
        self.memory: dict[str, dict[str, torch.Tensor]] = {}
        self.counts: dict[str, int] = {}
        self._all = tuple(selection.values())
        self._sharded = selection.process_group.sharded
        self._every: int = getattr(score, "every", 1)
        # Those whose gradients were all left out.
        self._left_out: set[str] = set()

    @property
    def active(self) -> bool:
        """Whether the score uses gradients."""
        return bool(self.score.memory_names)

    def due(
        self, tensors: Iterable[PrunableTensor]
    ) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
        """Return name, weight and gradient of each tensor to observe, and count the others.

        Args:
            tensors: The tensors that the step moves.
        """
        due = []
        counts, every = self.counts, self._every
        for tensor in tensors:
            name, gradient = tensor.name, tensor.parameter.grad
            if gradient is None or gradient.layout is not torch.strided:
                continue
            # Counted for each tensor, because one may have a gradient in every second step only.
            earlier = counts.get(name, 0)
            if earlier % every:
                counts[name] = earlier + 1
            else:
                due.append((name, tensor.weight, local(gradient)))
        return due

    def observe(
        self,
        due: Sequence[tuple[str, torch.Tensor, torch.Tensor]],
        loss_scale: torch.Tensor | float | None,
        measurable: torch.Tensor | bool | None = None,
    ) -> None:
        """Pass the gradients that are finite, divided by the loss scale, to the score.

        Args:
            due: The result of :meth:`due`.
            loss_scale: The factor that the gradients have been multiplied by, or None.
            measurable: Whether the gradients may be used, which implies that they are finite; if
                not, they count as if they were not. A scalar on a device if the host does not
                know. Default None: not known.
        """
        finite = finiteness(
            [gradient for _, _, gradient in due], sharded=self._sharded, measurable=measurable
        )
        usable = []
        for entry, flag in zip(due, finite, strict=True):
            if flag is False:
                self._left_out.add(entry[0])
            else:
                usable.append((*entry, flag))
        if usable:
            self._observe(usable, loss_scale)

    def _observe(
        self,
        due: Sequence[tuple[str, torch.Tensor, torch.Tensor, bool | torch.Tensor]],
        loss_scale: torch.Tensor | float | None,
    ) -> None:
        """Pass gradients to the score.

        Args:
            due: Name, weight, gradient, and whether the gradient is finite: True, or a scalar of
                :func:`finiteness`.
            loss_scale: The factor that the gradients have been multiplied by, or None.
        """
        keys, memories = [], []
        for name, weight, _, flag in due:
            # In 16 bits a small gradient or a small change of an average would be lost.
            wide = torch.promote_types(weight.dtype, torch.float32)
            memories.append(list(self._memory(name, weight, wide).values()))
            earlier = self.counts.get(name, 0)
            self.counts[name] = earlier + 1
            keys.append((earlier // self._every + 1, flag is True))
        _, weights, gradients, finite = zip(*due, strict=True)
        names = self.score.memory_names
        remembered = range(2, 2 + len(names))
        for batch in batches(weights, gradients, *zip(*memories, strict=True), together=keys):
            count, known = keys[batch.indices[0]]
            wide = batch.operands[2][0].dtype
            new, old = [], []
            if known or not batch.packed:
                w, g, *parts = batch.load(0, 1, *remembered, dtype=wide)
                if not known:
                    new, old = parts, [part.clone() for part in parts]
            else:
                # The memory twice, to keep what it was where a gradient is not finite.
                blocks = batch.stack(0, 1, *remembered, *remembered, dtype=wide)
                operands, *both = torch.split(blocks, [2, len(names), len(names)])
                new, old = both[:1], both[1:]
                w, g = operands.unbind()
                parts = list(new[0].unbind())
            if loss_scale is not None:
                g = g / on_device(loss_scale, g.device)
            self.score.observe(w, g, dict(zip(names, parts, strict=True)), count=count)
            if not known:
                finite_here = finite_mask(batch, finite)
                kept = [torch.where(finite_here, n, o) for n, o in zip(new, old, strict=True)]
                parts = list(kept[0].unbind()) if batch.packed else kept
            batch.store(remembered, parts)

    def fill_unobserved(self) -> list[str]:
        """Give tensors that never had a gradient the memory of gradients of zero.

        The loss does not depend on them. Not if other tensors have had too few gradients to know,
        nor if a tensor does not require gradients, because the loss may depend on it then.

        Returns:
            The names of these tensors.
        """
        if not self.active or max(self.counts.values(), default=0) < _ENOUGH:
            return []
        missing = {
            tensor.name: tensor
            for tensor in self._all
            if tensor.name not in self.memory
            and tensor.name not in self._left_out
            and tensor.parameter.requires_grad
        }
        for name, tensor in missing.items():
            wide = torch.promote_types(tensor.weight.dtype, torch.float32)
            self._memory(name, tensor.weight, wide)
        return list(missing)

    @torch.inference_mode(False)  # tensors made in that mode could not be written to later
    def _memory(
        self, name: str, weight: torch.Tensor, dtype: torch.dtype
    ) -> dict[str, torch.Tensor]:
        """Return the memory of a tensor in this type, on the tensor's device."""
        memory = self.memory.get(name)
        if memory is None:
            memory = {key: torch.zeros_like(weight, dtype=dtype) for key in self.score.memory_names}
        else:
            memory = {key: value.to(weight.device, dtype) for key, value in memory.items()}
        self.memory[name] = memory
        return memory
