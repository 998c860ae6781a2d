"""Studies: comparisons of methods on the same dense networks, at equal budget.

``prunus compare`` runs them. A study is stored in one file, ``study.json``, which
:func:`load_study` reads; :class:`Study` documents its fields.
"""

from prunus.studies.cells import Cell
from prunus.studies.record import load_study
from prunus.studies.study import Study, StudyMethod, StudyRun
from prunus.studies.tables import StudyTable, TableRow

__all__ = ["Cell", "Study", "StudyMethod", "StudyRun", "StudyTable", "TableRow", "load_study"]
