"""Methods: named combinations of penalty, score, allocation and growth, each with its source.

A method is what shrinks weights, what is removed first, how that is spread over the tensors, and
whether it may return. When, and how many, is the choice of the schedule; the record names the one
that the source used. The command, the documentation and the tests read the methods from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypedDict

from prunus._utils.checks import number_problem, raise_problems, type_problem
from prunus._utils.fields import number, validate
from prunus.allocation import Allocation, GlobalAllocation
from prunus.errors import ArgumentError, unknown_name
from prunus.growth import (
    AlternatingGrowth,
    GradientGrowth,
    Growth,
    RandomGrowth,
    SoftGrowth,
)
from prunus.penalties.coefficients import (
    Coefficient,
    ConstantRelevance,
    ExponentialRelevance,
    LinearRelevance,
)
from prunus.penalties.formula import Power
from prunus.penalties.relevance import Apply, RelevancePenalty
from prunus.penalties.strengths import (
    AutomaticStrength,
    ConstantStrength,
    LinearDecayStrength,
    Strength,
    strength_problem,
)
from prunus.schedules import (
    GradualPruning,
    IterativePruning,
    OneShot,
    Schedule,
    ThresholdSearch,
)
from prunus.scores import (
    FisherScore,
    MagnitudeScore,
    MovementScore,
    RandomScore,
    Score,
    SensitivityScore,
    TaylorScore,
)

__all__ = ["DecayOverEpoch", "Method", "MethodArguments", "method", "methods"]


@dataclass(frozen=True)
class DecayOverEpoch:
    """A :class:`~prunus.LinearDecayStrength` over one epoch, of a length that is not known yet.

    Args:
        initial: γ at the start and right after each pruning.

    Raises:
        ArgumentError: ``initial`` is negative, NaN or infinite.

    Example:
        >>> DecayOverEpoch(1e-5).over(steps_per_epoch=500)
        LinearDecayStrength(initial=1e-05, steps=500)
    """

    initial: float = number(least=0)

    def __post_init__(self) -> None:
        validate(self)

    def over(self, steps_per_epoch: int) -> LinearDecayStrength:
        """Return the strength for an epoch of this many optimizer steps."""
        return LinearDecayStrength(self.initial, steps_per_epoch)


class MethodArguments(TypedDict):
    """The arguments of :class:`~prunus.Pruner` and of the callbacks that are a method's."""

    penalty: RelevancePenalty | None
    score: Score
    allocation: Allocation
    growth: Growth | None


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method: the exact parts of penalty, score, allocation and growth, and where they are from.

    Attributes:
        name: The name that :func:`prunus.method` and ``prunus run --method`` accept.
        summary: One line on what it does.
        source: Authors and arXiv number, and which part of the work is meant.
        schedule: The schedule that the source used, or the nearest to it; a method can be combined
            with any other, unless it has a growth that the other does not accept.
        score: The order of removal.
        allocation: The spread of the sparsity over the tensors.
        coefficient: The penalty's irrelevance coefficient; None for no penalty.
        power: The penalty's power of the weight, 2 or 1.
        apply: How the penalty is applied.
        smoothing: The weight of the past in the average of |∂L/∂w|; 0 for each step alone.
        strength: γ. None if the method leaves it open, or has no penalty.
        growth: The type of the growth, whose settings depend on the length of the training; None
            if removed weights stay removed.

    Example:
        >>> methods["lobster"].coefficient
        LinearRelevance(alpha=1.0, relative=False)
    """

    name: str
    summary: str
    source: str
    schedule: type[Schedule]
    score: Score
    allocation: Allocation = field(default_factory=GlobalAllocation)
    coefficient: Coefficient | None = None
    power: Power = 2
    apply: Apply = "gradient"
    smoothing: float = 0.0
    strength: Strength | DecayOverEpoch | None = None
    growth: type[Growth] | None = None

    @property
    def leaves_strength_open(self) -> bool:
        """Whether there is a penalty whose strength depends on the task, and has to be passed."""
        return self.coefficient is not None and self.strength is None

    def arguments(
        self,
        *,
        strength: float | Strength | None = None,
        steps_per_epoch: int | None = None,
        total_steps: int | None = None,
    ) -> MethodArguments:
        """Return the parts of the method as arguments of a pruner or a callback.

        Args:
            strength: γ of the penalty, a number or a :class:`~prunus.Strength`. Default None: the
                method's own. The methods l2 and l1 have none, so that it is required.
            steps_per_epoch: The number of optimizer steps in an epoch, over which the strength of
                the method paper falls. It changes no other method, so that one call fits all.
            total_steps: The number of optimizer steps in the whole training, on which the growth of
                the methods soft, set, rigl and acdc depends. It changes no other method.

        Raises:
            ArgumentError: An argument is out of range or missing, or there is no penalty that a
                strength could apply to.
            ArgumentTypeError: An argument has a type that cannot be used.

        Example:
            >>> method("l2").arguments(strength=1e-4)["penalty"].coefficient
            ConstantRelevance()
            >>> method("paper").arguments(steps_per_epoch=500)["penalty"].strength
            LinearDecayStrength(initial=1e-05, steps=500)
        """
        raise_problems(
            None if strength is None else strength_problem("strength", strength),
            number_problem("steps_per_epoch", steps_per_epoch, whole=True, least=1, optional=True),
            number_problem("total_steps", total_steps, whole=True, least=1, optional=True),
        )
        growth = self._own_growth(total_steps)
        if self.coefficient is None:
            if strength is not None:
                raise ArgumentError(
                    f"the method {self.name} has no penalty, but got strength={strength!r}: leave "
                    "out strength, or choose a method with a penalty"
                )
            return {
                "penalty": None,
                "score": self.score,
                "allocation": self.allocation,
                "growth": growth,
            }
        penalty = RelevancePenalty(
            self._own_strength(steps_per_epoch) if strength is None else strength,
            self.coefficient,
            power=self.power,
            apply=self.apply,
            smoothing=self.smoothing,
        )
        return {
            "penalty": penalty,
            "score": self.score,
            "allocation": self.allocation,
            "growth": growth,
        }

    def _own_growth(self, total_steps: int | None) -> Growth | None:
        if self.growth is None:
            return None
        if total_steps is None:
            raise ArgumentError(
                f"the growth of the method {self.name} depends on the length of the training: pass "
                "total_steps=, the number of optimizer steps in the whole training"
            )
        return self.growth.over(total_steps)

    def _own_strength(self, steps_per_epoch: int | None) -> Strength:
        if self.strength is None:
            raise ArgumentError(
                f"the method {self.name} leaves the strength open: pass strength=, a number or a "
                "Strength"
            )
        if not isinstance(self.strength, DecayOverEpoch):
            return self.strength
        if steps_per_epoch is None:
            raise ArgumentError(
                f"the strength of the method {self.name} falls over an epoch: pass "
                "steps_per_epoch=, the number of optimizer steps in an epoch, or another strength="
            )
        return self.strength.over(steps_per_epoch)


_ALL = (
    Method(
        name="prunus",
        summary="shrinks weights that the loss does not depend on, and removes those with the "
        "smallest estimated effect on it, w²·F",
        source="Bonetta, Ribero, Cancelliere, arXiv 2204.04977: the penalty, here after the step; "
        "LeCun, Denker, Solla, Optimal brain damage, NIPS 1989: the saliency, with the empirical "
        "Fisher information for the second derivative",
        schedule=IterativePruning,
        score=FisherScore(),
        coefficient=ExponentialRelevance(alpha=0.2, relative=True),
        apply="decoupled",
        strength=AutomaticStrength(),
    ),
    Method(
        name="paper",
        summary="shrinks weights by exp(−|∂L/∂w|), and removes the smallest",
        source="Bonetta, Ribero, Cancelliere, arXiv 2204.04977: the penalty and the settings of "
        "the experiments",
        schedule=IterativePruning,
        score=MagnitudeScore(),
        coefficient=ExponentialRelevance(alpha=1.0),
        apply="gradient",
        strength=DecayOverEpoch(1e-5),
    ),
    Method(
        name="lobster",
        summary="shrinks weights by relu(1 − |∂L/∂w|) after each step, and removes the smallest",
        source="Tartaglione, Bragagnolo, Fiandrotti, Grangetto, LOBSTER, arXiv 2011.09905: the "
        "update rule, with λ = 1e-4",
        schedule=ThresholdSearch,
        score=MagnitudeScore(),
        coefficient=LinearRelevance(alpha=1.0),
        apply="decoupled",
        strength=ConstantStrength(5e-5),  # λ is 2γ
    ),
    Method(
        name="magnitude",
        summary="removes the smallest weights, without a penalty",
        source="Zhu, Gupta, arXiv 1710.01878: gradual magnitude pruning",
        schedule=GradualPruning,
        score=MagnitudeScore(),
    ),
    Method(
        name="l2",
        summary="shrinks all weights in proportion to their size, and removes the smallest",
        source="Han, Pool, Tran, Dally, arXiv 1506.02626: L2 regularization and magnitude pruning; "
        "here after the step, as in Loshchilov, Hutter, arXiv 1711.05101",
        schedule=IterativePruning,
        score=MagnitudeScore(),
        coefficient=ConstantRelevance(),
        apply="decoupled",
    ),
    Method(
        name="l1",
        summary="shrinks all weights by the same amount, and removes the smallest",
        source="Han, Pool, Tran, Dally, arXiv 1506.02626: L1 regularization and magnitude pruning; "
        "here after the step",
        schedule=IterativePruning,
        score=MagnitudeScore(),
        coefficient=ConstantRelevance(),
        power=1,
        apply="decoupled",
    ),
    Method(
        name="taylor",
        summary="removes the weights with the smallest |w·∂L/∂w|, averaged over steps",
        source="Molchanov, Tyree, Karras, Aila, Kautz, arXiv 1611.06440: the first-order "
        "criterion, for single weights instead of feature maps",
        schedule=IterativePruning,
        score=TaylorScore(),
    ),
    Method(
        name="sensitivity",
        summary="removes the weights with the smallest sensitivity times its uncertainty",
        source="Zhang et al., PLATON, arXiv 2206.12562: the importance score, with β₁ = 0.85 and "
        "β₂ = 0.95; here without the return of removed weights",
        schedule=GradualPruning,
        score=SensitivityScore(),
    ),
    Method(
        name="movement",
        summary="removes the weights that training moves towards zero",
        source="Sanh, Wolf, Rush, arXiv 2005.07683: the score of movement pruning; here without "
        "the return of removed weights",
        schedule=GradualPruning,
        score=MovementScore(),
    ),
    Method(
        name="random",
        summary="removes weights at random: the baseline",
        source="Blalock, Gonzalez Ortiz, Frankle, Guttag, arXiv 2003.03033: random pruning",
        schedule=OneShot,
        score=RandomScore(),
    ),
    Method(
        name="soft",
        summary="also trains removed weights, and keeps the largest of all, chosen every few steps",
        source="Lin, Stich, Barba, Dmitriev, Jaggi, Dynamic model pruning with feedback, arXiv "
        "2006.07253: gradual pruning with a straight-through gradient; here until three quarters "
        "of the training",
        schedule=GradualPruning,
        score=MagnitudeScore(),
        growth=SoftGrowth,
    ),
    Method(
        name="set",
        summary="exchanges the smallest weights of each tensor for random removed ones",
        source="Mocanu et al., Nature Communications 9, 2018, arXiv 1707.04780: SET; here by "
        "magnitude, and from a pruned network instead of a random sparse one",
        schedule=OneShot,
        score=MagnitudeScore(),
        growth=RandomGrowth,
    ),
    Method(
        name="rigl",
        summary="exchanges the smallest weights of each tensor for removed ones of large gradient",
        source="Evci, Gale, Menick, Castro, Elsen, RigL, arXiv 1911.11134: the exchange, until "
        "three quarters of the training; here from a pruned network instead of a random sparse one",
        schedule=OneShot,
        score=MagnitudeScore(),
        growth=GradientGrowth,
    ),
    Method(
        name="acdc",
        summary="alternates sparse and dense phases, and ends with a sparse one",
        source="Peste, Iofinova, Vladu, Alistarh, AC/DC, arXiv 2106.12379: phases of a twentieth "
        "of the training; the warm-up is the schedule's",
        schedule=OneShot,
        score=MagnitudeScore(),
        growth=AlternatingGrowth,
    ),
)

methods: Mapping[str, Method] = MappingProxyType({record.name: record for record in _ALL})
"""The methods by name."""


def method(name: str) -> Method:
    """Return the method of a name.

    Args:
        name: One of ``prunus.methods``.

    Raises:
        ArgumentError: There is no method of this name.
        ArgumentTypeError: The name is not a text.

    Example:
        >>> import torch
        >>> from prunus import OneShot, Pruner
        >>> model = torch.nn.Linear(100, 10)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> arguments = method("paper").arguments(steps_per_epoch=500)
        >>> pruner = Pruner(model, optimizer, **arguments, schedule=OneShot(sparsity=0.9))
        >>> pruner.step().removed
        900
    """
    raise_problems(type_problem("name", name, str, "the name of a method"))
    if name not in methods:
        raise ArgumentError(unknown_name("method", name, methods))
    return methods[name]
