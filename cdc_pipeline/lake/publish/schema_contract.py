"""What the settings promise about columns: pinned types, and contracts that refuse changes."""

from collections.abc import Iterable

from cdc_pipeline.core.errors import SchemaContractError
from cdc_pipeline.core.items.columns import Column, ColumnChange, column_changes
from cdc_pipeline.settings.model import Table


def pinned_types(table: Table) -> dict[str, str]:
    """Column types that the settings say, by attribute."""
    return {name: rule.type for name, rule in table.columns.items() if rule.type}


def breaches(table: Table, before: list[Column], after: Iterable[Column]) -> list[ColumnChange]:
    """Changes that the table's contract refuses: new attributes and types that changed.

    A table that never had columns promises none. Attributes with a rule of their own are what the
    settings say.
    """
    if table.schema_contract != "refuse" or not before:
        return []
    changes = column_changes(before, after)
    return [c for c in changes if c.kind != "gone" and c.attribute not in table.columns]


def require_contract(table: Table, before: list[Column], after: Iterable[Column]) -> None:
    """Raise `SchemaContractError` for breaches."""
    broken = breaches(table, before, after)
    if not broken:
        return
    said = "; ".join(map(_breach, broken))
    name = broken[0].attribute
    raise SchemaContractError(
        f"{table.safe_name}/current_state: schema_contract is 'refuse', and {said}. "
        "Readers keep the last published version",
        fix="to accept it, set schema_contract: evolve and materialise again; to keep the columns "
        f"as they are, give the attribute a rule, for example columns: {{{name!r}: {{drop: true}}}}"
        " or a type (what does not fit it goes to _rescued)",
    )


def _breach(change: ColumnChange) -> str:
    assert change.after is not None  # what is gone breaks nothing
    if change.before is None:
        return f"attribute {change.attribute!r} is new ({change.after.type})"
    return f"attribute {change.attribute!r} was {change.before.type}, is now {change.after.type}"
