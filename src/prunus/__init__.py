"""prunus trains PyTorch networks into sparse ones.

Training: :class:`Pruner` attaches a :class:`RelevancePenalty` and a schedule, such as
:class:`IterativePruning`, to an optimizer, and :func:`fit` has the loop too; :func:`select` returns
the tensors, and :class:`Masks` record which weights are kept. :func:`method` returns a penalty, a
score and an allocation by the name of their method. :class:`SparseTraining` makes the steps of a
sparse network faster on the CPU. ``prunus.integrations`` has adapters for the trainers of
transformers and Lightning, and for accelerate.

After training: :func:`save_sparse` and :func:`load_sparse` for files without zeros,
:func:`compact` for a smaller dense model, :func:`speed_up` for sparse layers on the CPU,
``prunus.export`` for ONNX and other formats, and ``prunus.bench`` to time them all.
"""

from prunus._version import VERSION
from prunus.allocation import (
    Allocation,
    ErdosRenyiAllocation,
    GlobalAllocation,
    TargetAllocation,
    UniformAllocation,
)
from prunus.compaction import compact
from prunus.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    DataError,
    FloorNotReachedError,
    MissingExtraError,
    NonFiniteError,
    PeerError,
    PrunusError,
    RecipeError,
    SparseFileError,
)
from prunus.export.sparse_reader import SparseFile, load_sparse
from prunus.export.sparse_writer import save_sparse
from prunus.fitting import fit
from prunus.growth import (
    AlternatingGrowth,
    GradientGrowth,
    Growth,
    RandomGrowth,
    SoftGrowth,
)
from prunus.history import History
from prunus.masks import Masks
from prunus.methods import Method, method, methods
from prunus.patterns import NM, Block, Channels, Columns, Heads, Pattern, Rows
from prunus.penalties.coefficients import (
    CautiousRelevance,
    Coefficient,
    ConstantRelevance,
    ExponentialRelevance,
    LinearRelevance,
)
from prunus.penalties.relevance import RelevancePenalty
from prunus.penalties.strengths import (
    AutomaticStrength,
    ConstantStrength,
    LearningRateStrength,
    LinearDecayStrength,
    Strength,
    StrengthStep,
    UpdateStrength,
)
from prunus.pruner import Pruner
from prunus.runtime import speed_up
from prunus.schedules import (
    GradualPruning,
    IterativePruning,
    OneShot,
    PruningStatus,
    Restore,
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
from prunus.selection import Selection, select
from prunus.sensitivity import sensitivity
from prunus.sparse_training import SparseTraining
from prunus.validation import PenaltyReport, Validation

__version__ = VERSION

__all__ = [  # noqa: RUF022  (NM is a class, not a constant)
    "Allocation",
    "AlternatingGrowth",
    "ArgumentError",
    "ArgumentTypeError",
    "AutomaticStrength",
    "Block",
    "CautiousRelevance",
    "Channels",
    "CheckpointError",
    "Coefficient",
    "Columns",
    "ConstantRelevance",
    "ConstantStrength",
    "DataError",
    "ErdosRenyiAllocation",
    "ExponentialRelevance",
    "FisherScore",
    "FloorNotReachedError",
    "GlobalAllocation",
    "GradientGrowth",
    "GradualPruning",
    "Growth",
    "Heads",
    "History",
    "IterativePruning",
    "LearningRateStrength",
    "LinearDecayStrength",
    "LinearRelevance",
    "MagnitudeScore",
    "Masks",
    "Method",
    "MissingExtraError",
    "MovementScore",
    "NM",
    "NonFiniteError",
    "OneShot",
    "Pattern",
    "PeerError",
    "PenaltyReport",
    "Pruner",
    "PruningStatus",
    "PrunusError",
    "RandomGrowth",
    "RandomScore",
    "RecipeError",
    "RelevancePenalty",
    "Restore",
    "Rows",
    "Schedule",
    "Score",
    "Selection",
    "SensitivityScore",
    "SoftGrowth",
    "SparseFile",
    "SparseFileError",
    "SparseTraining",
    "Strength",
    "StrengthStep",
    "TargetAllocation",
    "TaylorScore",
    "ThresholdSearch",
    "UniformAllocation",
    "UpdateStrength",
    "Validation",
    "__version__",
    "compact",
    "fit",
    "load_sparse",
    "method",
    "methods",
    "save_sparse",
    "select",
    "sensitivity",
    "speed_up",
]


def __dir__() -> list[str]:
    """Return the public names alone, without the modules that importing them loads."""
    return __all__
