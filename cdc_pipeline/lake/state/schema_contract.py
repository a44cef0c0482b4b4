"""Column rules of the settings: pinned types, and schema contracts that refuse changes."""

from collections.abc import Iterable

from cdc_pipeline.core.errors import SchemaContractError
from cdc_pipeline.core.items.columns import Column, ColumnChange, column_changes
from cdc_pipeline.settings.table import Table


def pinned_types(table: Table) -> dict[str, str]:
    """Return the column types of the settings, by attribute."""
    return {name: rule.type for name, rule in table.columns.items() if rule.type}


def breaches(table: Table, before: list[Column], after: Iterable[Column]) -> list[ColumnChange]:
    """Return the changes that the table's contract refuses: new attributes, changed types.

    Without earlier columns nothing is refused. Attributes with a rule follow the settings.
    """
    if table.schema_contract != "refuse" or not before:
        return []
    changes = column_changes(before, after)
    return [c for c in changes if c.kind != "gone" and c.attribute not in table.columns]


def require_contract(table: Table, before: list[Column], after: Iterable[Column]) -> None:
    """Raise `SchemaContractError` for breaches."""
    refused = breaches(table, before, after)
    if not refused:
        return
    listed = "; ".join(map(_breach_text, refused))
    name = refused[0].attribute
    raise SchemaContractError(
        f"{table.safe_name}/current_state: schema_contract is 'refuse', and {listed}. "
        "Readers keep the last published version",
        fix="to accept it, set schema_contract: evolve and materialise again; to keep the columns "
        f"as they are, give the attribute a rule, for example columns: {{{name!r}: {{drop: true}}}}"
        " or a type (values that do not fit it go to _rescued)",
    )


def _breach_text(change: ColumnChange) -> str:
    assert change.after is not None  # a removed column is no breach
    if change.before is None:
        return f"attribute {change.attribute!r} is new ({change.after.type})"
    return f"attribute {change.attribute!r} was {change.before.type}, is now {change.after.type}"
