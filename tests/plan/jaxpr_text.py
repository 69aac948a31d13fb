"""Jaxprs as text that is the same for the same computation.

JAX's own text depends on what was traced before: on the names of variables, and on which inner functions are shared.
"""

import re
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


def canonical(jaxpr: Jaxpr) -> str:
    """Every equation with its parameters; variables are numbered in the order in which they appear."""
    numbers: dict[Any, int] = {}

    def name(variable: Any) -> str:
        if isinstance(variable, Literal):
            return f"{variable.val}:{variable.aval}"
        return f"v{numbers.setdefault(variable, len(numbers))}:{variable.aval}"

    lines = [f"in {[name(v) for v in (*jaxpr.constvars, *jaxpr.invars)]}"]
    for equation in jaxpr.eqns:
        parameters = {key: _text(value) for key, value in sorted(equation.params.items())}
        inputs, outputs = ([name(v) for v in variables] for variables in (equation.invars, equation.outvars))
        lines.append(f"{outputs} = {equation.primitive.name} {parameters} {inputs}")
    lines.append(f"out {[name(v) for v in jaxpr.outvars]}")
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, ClosedJaxpr):
        return canonical(value.jaxpr)
    if isinstance(value, Jaxpr):
        return canonical(value)
    if isinstance(value, tuple | list):
        return f"({', '.join(_text(part) for part in value)})"
    return re.sub(r"0x[0-9a-f]+", "", str(value))
