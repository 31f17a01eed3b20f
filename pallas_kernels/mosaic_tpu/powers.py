"""Powers of floats by integers, which Mosaic does not lower.

Adam has them: JAX 0.10.2 makes a `math.powf` of what it says is `vector<256xi32>`.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend import core

__all__ = ["with_float_powers"]

_CALLS = ("jit", "pjit")


def with_float_powers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make integer exponents of floats floats, as XLA does.

    Args:
      function: of pytrees of arrays; traced at every call.

    Returns:
      The same function otherwise.

    >>> import jax.numpy as jnp
    >>> with_float_powers(lambda x, n: 0.5 * x**n)(jnp.float32(2), jnp.int32([1, 3]))
    Array([1., 4.], dtype=float32)
    """

    def changed(*arguments: Any) -> Any:
        traced, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        out = _evaluate(traced, jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return changed


def _evaluate(traced: core.ClosedJaxpr, arguments: list[Any]) -> list[Any]:
    """Run what was traced, equation by equation, calls written out."""
    jaxpr = traced.jaxpr
    known: dict[core.Var, Any] = dict(zip(jaxpr.constvars, traced.consts, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    for equation in jaxpr.eqns:
        values = [read(atom) for atom in equation.invars]
        if equation.primitive is lax.pow_p:
            base, exponent = values
            out = [lax.pow(base, lax.convert_element_type(exponent, base.dtype))]
        elif equation.primitive.name in _CALLS:
            out = _evaluate(equation.params["jaxpr"], values)
        else:
            own = {
                atom: known[atom]
                for atom in equation.invars
                if not isinstance(atom, core.Literal)
            }
            alone = jaxpr.replace(
                constvars=[],
                invars=[*own],
                outvars=equation.outvars,
                eqns=[equation],
            )
            out = core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*own.values())
        known.update(zip(equation.outvars, out, strict=True))
    return [read(atom) for atom in jaxpr.outvars]
