"""Mutation rules: mutmut with the operators that suit this library.

``mutants.py`` runs this file in a copy of the library. The rules differ from mutmut's own in three
points:

- Strings: only keys of one word are mutated, once each. The others are messages.
- Calls: no argument of ``zip`` is removed: ``strict`` asserts what cannot happen otherwise.
- Decorators: mutmut skips every decorated function. Those under ``torch.no_grad()`` can be mutated.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from typing import Any

import libcst as cst
import mutmut.__main__ as mutmut
from libcst import matchers
from mutmut.mutation import mutators
from mutmut.mutation.file_mutation import MutationVisitor
from mutmut.runners.harness import PytestRunner

_NO_GRAD = matchers.Decorator(
    matchers.Call(matchers.Attribute(matchers.Name("torch"), matchers.Name("no_grad")), args=[])
)
_PROTOCOL = matchers.Arg(matchers.Name("Protocol"))
_STRICT = matchers.Arg(keyword=matchers.Name("strict"))

_argument_mutants = mutators.operator_arg_removal
_string_mutants = mutators.operator_string
_is_skipped = MutationVisitor._skip_node_and_children
_warm_up = PytestRunner.warm_up


def key_mutants(node: cst.BaseString) -> Iterable[cst.BaseString]:
    """Mutate a string of one word, once."""
    if " " not in getattr(node, "value", " "):
        yield from list(_string_mutants(node))[:1]


def argument_mutants(node: cst.Call) -> Iterable[cst.Call]:
    """Remove arguments of calls, but not of ``zip``."""
    if not matchers.matches(node.func, matchers.Name("zip")):
        yield from _argument_mutants(node)


def is_skipped(visitor: MutationVisitor, node: cst.CSTNode) -> bool:
    """Return whether a node is not mutated: mutmut's rule, plus protocols and ``strict=``."""
    if isinstance(node, cst.ClassDef) and any(matchers.matches(b, _PROTOCOL) for b in node.bases):
        return True
    if matchers.matches(node, _STRICT):
        return True
    if isinstance(node, cst.FunctionDef) and node.decorators:
        only_no_grad = all(matchers.matches(d, _NO_GRAD) for d in node.decorators)
        return not only_no_grad and _is_skipped(visitor, node)
    return _is_skipped(visitor, node)


def warm_up(runner: PytestRunner) -> None:
    """Import all that the tests need, and keep it out of garbage collection.

    Otherwise pytest's collections at the end of every mutant take most of the time.
    """
    _warm_up(runner)
    gc.collect()
    gc.freeze()


def install() -> None:
    """Replace mutmut's rules by these."""
    operators: Any = mutators.mutation_operators  # changed in place: other modules refer to it
    replacements = {_string_mutants: key_mutants, _argument_mutants: argument_mutants}
    operators[:] = [(node, replacements.get(rule, rule)) for node, rule in operators]
    setattr(MutationVisitor, "_skip_node_and_children", is_skipped)  # noqa: B010
    setattr(PytestRunner, "warm_up", warm_up)  # noqa: B010


if __name__ == "__main__":
    install()
    mutmut.cli(["run", *sys.argv[1:]])
