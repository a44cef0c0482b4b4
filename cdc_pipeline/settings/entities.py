"""Settings of the kinds of items in a table of single-table design."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StrictInt, StrictStr, model_validator

from cdc_pipeline.core.items.attributes import canonical_number
from cdc_pipeline.core.items.entities import MAX_DEPTH, Condition, Entity
from cdc_pipeline.settings.field_types import Strict


class Match(Strict):
    """Condition on a top-level attribute of an entity's items: exactly one of these."""

    equals: list[StrictStr | StrictInt] = Field(
        [], description="one of these values: texts, or whole numbers for attributes of type N"
    )
    prefix: str = Field("", description="a text that begins with this")
    regex: str = Field(
        "", description="a text that this regular expression (Python's) matches in full"
    )

    @model_validator(mode="after")
    def _one_way(self) -> "Match":
        if sum(map(bool, (self.equals, self.prefix, self.regex))) != 1:
            raise ValueError("give exactly one of a value, a list of values, {prefix: }, {regex: }")
        try:
            re.compile(self.regex)
        except re.error as error:
            raise ValueError(f"{self.regex!r} is no regular expression: {error}") from None
        if any(isinstance(value, int) and abs(value) >= 10**38 for value in self.equals):
            raise ValueError("DynamoDB's numbers have 38 digits at most")
        return self

    def condition(self, attribute: str) -> Condition:
        """Convert to the condition of `core.items.entities`."""
        equals = tuple(
            ("S", value) if isinstance(value, str) else ("N", canonical_number(str(value)))
            for value in self.equals
        )
        return Condition(attribute, equals, self.prefix, self.regex)


def _values(condition: Any) -> Any:
    if isinstance(condition, Mapping | Match):
        return condition
    values = condition if isinstance(condition, list) else [condition]
    if not all(isinstance(v, str | int) and not isinstance(v, bool) for v in values):
        raise ValueError(
            "give a text, a whole number, a list of these, {prefix: ...} or {regex: ...}"
        )
    return {"equals": values}


When = Annotated[
    Match,
    BeforeValidator(
        _values, json_schema_input_type=StrictStr | StrictInt | list[StrictStr | StrictInt] | Match
    ),
]


class Flatten(Strict):
    """Nested maps as columns of an entity."""

    depth: int = Field(1, ge=1, le=MAX_DEPTH, description="number of levels of maps")


class EntityRule(Strict):
    """One kind of item in a table of single-table design."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")] = Field(
        description="name of the view, and of the asset if it is a table"
    )
    when: Annotated[dict[str, When], Field(min_length=1)] = Field(
        description="conditions on its items, by top-level attribute: a value, a list of values, "
        "{prefix: ...} or {regex: ...}; all must hold"
    )
    table: bool = Field(
        False, description="keep it as an Iceberg table and asset of its own beside the view"
    )
    flatten: Flatten | None = Field(None, description="nested maps become columns")

    def entity(self) -> Entity:
        """Convert to the entity of `core.items.entities`."""
        conditions = tuple(match.condition(name) for name, match in self.when.items())
        return Entity(self.name, conditions, self.flatten.depth if self.flatten else 0)
