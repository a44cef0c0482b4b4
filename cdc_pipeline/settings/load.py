"""The settings file: find it, read it, report every mistake in it."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cdc_pipeline.core.errors import SettingsError
from cdc_pipeline.settings.model import Settings
from cdc_pipeline.settings.table import Table

PATH_VARIABLE = "CDC_PIPELINE_CONFIG"
DEFAULT_PATH = "cdc_pipeline.yaml"


def settings_path() -> Path:
    """Return the path of the settings file, from the environment or the default."""
    return Path(os.environ.get(PATH_VARIABLE) or DEFAULT_PATH)


def load_settings(path: Path | None = None) -> Settings:
    """Read and check the settings file; raises `SettingsError` with every mistake in it."""
    path = path or settings_path()
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise SettingsError(
            f"no settings file at {path}",
            fix=f"copy cdc_pipeline.example.yaml to {DEFAULT_PATH} and edit it, or set "
            f"{PATH_VARIABLE}; `make demo` needs no settings file",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None
    return read_settings(text, path)


def read_settings(text: str, path: Path) -> Settings:
    """Check the text of a settings file at `path`; raises `SettingsError`."""
    try:
        raw = yaml.load(text, Loader=_UniqueKeys)
    # PyYAML's other exceptions: values that do not fit their tag, and keys that are no scalars.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise SettingsError(f"{path} is not YAML: {_one_line(error)}") from None
    return parse_settings(raw, path)


def parse_settings(raw: Any, path: Path) -> Settings:
    """Check settings read from `path`, which is named in errors; raises `SettingsError`."""
    if not isinstance(raw, Mapping):
        raise SettingsError(f"{path} contains no settings", fix="see cdc_pipeline.example.yaml")
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as error:
        mistakes = "\n".join(f"  - {_mistake(e)}" for e in error.errors(include_url=False))
        raise SettingsError(f"{path}:\n{mistakes}") from None
    settings._folder = path.resolve().parent
    return settings


def parse_table(raw: Mapping[str, Any]) -> Table:
    """Check the settings of one table; raises `SettingsError` with every mistake in them."""
    try:
        return Table.model_validate(raw)
    except ValidationError as error:
        mistakes = "; ".join(_mistake(e, Table) for e in error.errors(include_url=False))
        raise SettingsError(mistakes) from None


_HAS_PARTS = re.compile(r"'(\$ref|additionalProperties)'")


def table_columns() -> list[str]:
    """List the keys of a table with scalar values, the possible columns of a CSV file."""
    properties = Table.model_json_schema()["properties"]
    # Values of other models and of mappings are objects, or references to them.
    return [name for name, schema in properties.items() if not _HAS_PARTS.search(str(schema))]


def settings_schema() -> dict[str, Any]:
    """Return the JSON schema of the settings file, for editors."""
    return Settings.model_json_schema()


def _mistake(error: Any, root: type[BaseModel] | None = None) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "(whole file)"
    value, kind = error["input"], error["type"]
    if kind == "extra_forbidden":
        model: type[BaseModel] = root or Settings
        for part in error["loc"][:-1]:
            model = _submodel(model, part)
        return f"{where}: unknown key; allowed: {', '.join(model.model_fields)}"
    if kind == "missing":
        return f"{where}: required, but missing"
    if kind == "too_short" and where == "tables":
        return "tables: no tables; name at least one"
    message = error["msg"].removeprefix("Value error, ")
    if error["loc"][:1] == ("catalog",):  # the value may be a secret
        return f"{where}: {_lower(message)}"
    return message if where == "(whole file)" else f"{where}: found {value!r}; {_lower(message)}"


def _submodel(model: type[BaseModel], part: str | int) -> type[BaseModel]:
    if isinstance(part, int):
        return model
    if part not in model.model_fields:  # a name chosen by the user
        return model
    annotation = model.model_fields[part].annotation
    arguments = getattr(annotation, "__args__", ())
    for candidate in (*arguments, annotation):
        candidate = getattr(candidate, "__origin__", candidate)  # Annotated[Model, ...]
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return model


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class _UniqueKeys(yaml.SafeLoader):
    """YAML loader that refuses a repeated key, which YAML would silently override."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


# A date stays text until its key is checked, so that errors name the key.
_UniqueKeys.add_constructor("tag:yaml.org,2002:timestamp", yaml.SafeLoader.construct_yaml_str)
