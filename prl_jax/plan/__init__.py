"""The cost of a config on a slice of accelerators, asked of their compiler before one is booked."""

from prl_jax.plan.plan import Function, Plan, plan_config
from prl_jax.plan.table import as_json, as_text

__all__ = ["Function", "Plan", "as_json", "as_text", "plan_config"]
