"""Settings of the catalogue of the Iceberg tables."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cdc_pipeline.settings.field_types import Strict

_CATALOG_SECRET = re.compile(
    r"token$|credential|password|secret|authorization|(access|api|private)[-_.]?key", re.IGNORECASE
)
_URI_PASSWORD = re.compile(r"://[^/@]*:[^/@]+@|[?&;]password=", re.IGNORECASE)
_TABLE_BUCKET = re.compile(r"arn:aws[a-z-]*:s3tables:[a-z0-9-]+:[0-9]{12}:bucket/[a-z0-9-]+")
_CATALOG_KEYS = {
    "glue": {"glue.skip-archive"},
    "glue-rest": {"uri", "warehouse"},
    "s3tables": {"uri", "warehouse"},
    "sql": {"uri", "init_catalog_tables"},
}
_CATALOG_NEEDS = {"s3tables": "warehouse", "rest": "uri"}
AWS_CATALOGS = {"glue", "glue-rest", "s3tables"}
_FILE_KEYS = ("s3.", "client.", "gcs.", "adls.", "hf.", "py-io-impl", "py-catalog-impl", "type")


class Catalog(Strict):
    """Catalogue of the Iceberg tables; access to the lake's files depends on `lake` alone."""

    type: Literal["glue", "glue-rest", "s3tables", "rest", "sql"] = Field(
        description="Glue, by its own calls or by its Iceberg REST endpoint; a table bucket of S3 "
        "Tables; any Iceberg REST catalogue; a SQL database"
    )
    properties: dict[str, str] = Field(
        {},
        description="properties by PyIceberg's names: `uri`, `warehouse` (for s3tables the table "
        "bucket's ARN), for rest also `scope`, `oauth2-server-uri`, `header.X-...`, "
        "`rest.sigv4-enabled` and others",
    )
    secrets: dict[str, Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]] = Field(
        {},
        description="secret properties, each with the environment variable that contains it, "
        "such as `credential: CATALOG_CREDENTIAL`",
    )

    @model_validator(mode="after")
    def _known(self) -> "Catalog":
        given = [*self.properties, *self.secrets]
        allowed = _CATALOG_KEYS.get(self.type)
        for name in given:
            if allowed is not None and name not in allowed:
                raise ValueError(
                    f"{self.type} has no property {name!r}; allowed: {', '.join(allowed)}"
                )
            if name.startswith(_FILE_KEYS):
                raise ValueError(
                    f"property {name!r}: access to files depends on `lake`, `endpoint_url` and "
                    "AWS's credential chain, not on the catalogue; remove it"
                )
        needed = _CATALOG_NEEDS.get(self.type)
        if needed and needed not in given:
            raise ValueError(f"{self.type} needs the property {needed!r}")
        for name, value in self.properties.items():
            if name in self.secrets:
                raise ValueError(f"{name!r} is in `properties` and in `secrets`")
            if _CATALOG_SECRET.search(name) or _URI_PASSWORD.search(value):
                raise ValueError(
                    f"property {name!r} holds a secret: put it into an environment variable, and "
                    f"the variable's name into `secrets: {{{name}: NAME}}`"
                )
        if self.type == "s3tables" and not _TABLE_BUCKET.fullmatch(
            self.properties.get("warehouse", "")
        ):
            raise ValueError(
                "the warehouse of s3tables is the ARN of a table bucket, "
                "arn:aws:s3tables:REGION:ACCOUNT:bucket/NAME"
            )
        return self
