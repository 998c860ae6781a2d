"""Griffe extension for the API pages: links for the Sphinx roles of docstrings, and defaults.

``:class:`~prunus.Selection``` becomes a link to the object. A role that names an object without a
page is shown as code; one that names no object is an error. A default that is a constant of the
package is shown as its value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|attr|mod|data):`(?:([^`<]+) <)?(~?)([\w.]+)>?`")


class ApiPages(griffe.Extension):
    """Rewrites the docstrings and signatures of a package once all of it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrite the roles, the headings of the examples and the defaults."""
        for obj in _objects(pkg):
            if isinstance(obj, griffe.Function):
                for parameter in obj.parameters:
                    parameter.default = _value(parameter.default, obj, pkg)
            if obj.docstring is not None:
                text = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
                obj.docstring.value = _ROLE.sub(lambda role, obj=obj: _link(role, obj, pkg), text)  # type: ignore[misc]


def _objects(obj: griffe.Object) -> Iterator[griffe.Object]:
    """Yield an object and all that it defines."""
    yield obj
    for member in obj.members.values():
        if isinstance(member, griffe.Object):
            yield from _objects(member)


def _value(
    default: str | griffe.Expr | None, obj: griffe.Object, package: griffe.Module
) -> str | griffe.Expr | None:
    """Return the value of a default that is a constant, and other defaults as they are."""
    if not isinstance(default, griffe.ExprName) or not default.name.lstrip("_").isupper():
        return default
    try:
        constant = package[_path(default.name, obj, package).removeprefix(f"{package.name}.")]
    except KeyError:  # of another package
        return default
    return constant.value if isinstance(constant, griffe.Attribute) else default


def _link(role: re.Match[str], obj: griffe.Object, package: griffe.Module) -> str:
    """Return the link for one role in the docstring of an object."""
    title, short, target = role.groups()
    text = title or (target.rpartition(".")[2] if short else target)
    path = _path(target, obj, package)
    return f'<autoref identifier="{path}" optional><code>{text}</code></autoref>'


def _path(target: str, obj: griffe.Object, package: griffe.Module) -> str:
    """Return the canonical path of a target, named as seen from an object or from the package.

    Raises:
        LookupError: There is no such object.
    """
    scope: griffe.Object | None = obj
    while scope is not None:
        if (found := _member(scope, target)) is not None:
            return found
        scope = scope.parent if isinstance(scope.parent, griffe.Object) else None
    found = _member(package, target.removeprefix(f"{package.name}."))
    if found is None and target.startswith(f"{package.name}."):
        raise LookupError(f"{obj.path} refers to {target}, which does not exist")
    return target if found is None else found


def _member(scope: griffe.Object, target: str) -> str | None:
    """Return the canonical path of a member, or None if there is none of this name."""
    try:
        found = scope.get_member(target)
        if found.is_module and found.name in found.members:  # a function named like its module
            found = found[found.name]
    except (KeyError, griffe.AliasResolutionError):
        return None
    return str(found.canonical_path)
