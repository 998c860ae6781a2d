"""prunus trains PyTorch networks into sparse ones.

Training: :class:`Pruner` attaches a :class:`RelevancePenalty` and a schedule, such as
:class:`IterativePruning`, to an optimizer; :func:`select` chooses the tensors, :class:`Masks` are
what is kept of them. For other people's trainers there are ``prunus.integrations.transformers``,
``prunus.integrations.lightning`` and ``prunus.integrations.accelerate``.

After it: :func:`save_sparse` and :func:`load_sparse` for files without the zeros, :func:`compact`
for a smaller dense network, :func:`speed_up` for sparse layers on the CPU, ``prunus.export`` for
ONNX and other forms, and ``prunus.bench`` to time them all. ``prunus.compaction`` and
``prunus.runtime`` also say what was done, and hold the files of compact networks.
"""

from prunus.coefficients import Coefficient, Constant, Exponential, Linear
from prunus.compaction import compact
from prunus.errors import (
    CheckpointError,
    DataError,
    FloorNotReachedError,
    NonFiniteError,
    PeerError,
    SparseFileError,
    UserError,
)
from prunus.export.sparse_file import SparseFile, load_sparse, save_sparse
from prunus.masks import Masks
from prunus.penalty import RelevancePenalty
from prunus.pruner import Pruner, Validation
from prunus.runtime import speed_up
from prunus.schedules import GradualPruning, IterativePruning, OneShot, Schedule
from prunus.scores import Magnitude, Random, Score, Taylor
from prunus.selection import Selection, select
from prunus.strengths import ConstantStrength, FollowLearningRate, LinearDecay, Strength
from prunus.version import VERSION

__version__ = VERSION

__all__ = [
    "CheckpointError",
    "Coefficient",
    "Constant",
    "ConstantStrength",
    "DataError",
    "Exponential",
    "FloorNotReachedError",
    "FollowLearningRate",
    "GradualPruning",
    "IterativePruning",
    "Linear",
    "LinearDecay",
    "Magnitude",
    "Masks",
    "NonFiniteError",
    "OneShot",
    "PeerError",
    "Pruner",
    "Random",
    "RelevancePenalty",
    "Schedule",
    "Score",
    "Selection",
    "SparseFile",
    "SparseFileError",
    "Strength",
    "Taylor",
    "UserError",
    "Validation",
    "__version__",
    "compact",
    "load_sparse",
    "save_sparse",
    "select",
    "speed_up",
]
