"""The Dagster layer: thin bodies that call use cases, and metadata with numbers for plots."""

import warnings

import dagster as dg

# Two Beta notices would appear at every start: one for backfill policies, used on purpose here, and
# one for a parameter that Dagster itself passes when it copies a sensor.
for _parameter in ("backfill_policy", "owners"):
    warnings.filterwarnings(
        "ignore", message=f"Parameter `{_parameter}` of", category=dg.BetaWarning
    )
