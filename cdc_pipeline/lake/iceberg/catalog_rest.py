"""Iceberg REST catalogues: Glue's and S3 Tables' endpoints, Polaris, Lakekeeper, Nessie, others."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.session import get_session
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.exceptions import CommitStateUnknownException, RESTError, ServiceUnavailableError
from pyiceberg.io import FileIO
from pyiceberg.typedef import EMPTY_DICT, Properties
from requests import RequestException

from cdc_pipeline.aws.client.session import AwsSession, aws_errors
from cdc_pipeline.core.errors import LakeError, SourceError
from cdc_pipeline.lake.iceberg.catalog import Files

_SIGNED_BY = {"glue-rest": "glue", "s3tables": "s3tables"}
_DELEGATION = "X-Iceberg-Access-Delegation"


def open_rest(kind: str, settings: Properties, aws: AwsSession, files: Files) -> Catalog:
    """Open the REST catalogue with these properties; `kind`: `type` in the settings' `catalog`.

    Requests its configuration at once. Raises `LakeError`, `SourceError`.
    """
    properties = _rest_properties(kind, settings, aws)
    with _rest_errors(properties["uri"]):
        return _Rest(files, **properties)


def _rest_properties(kind: str, settings: Properties, aws: AwsSession) -> dict[str, Any]:
    """Return the properties of PyIceberg's REST catalogue: endpoint, authorities, signing."""
    properties: dict[str, Any] = dict(settings)
    if service := _SIGNED_BY.get(kind):
        region = settings["warehouse"].split(":")[3] if kind == "s3tables" else None
        client = aws.client(service, region)
        properties = {
            "uri": f"{client.meta.endpoint_url.rstrip('/')}/iceberg",
            "rest.sigv4-enabled": "true",
            "rest.signing-name": service,
            "rest.signing-region": client.meta.region_name,
            **properties,
        }
        if "warehouse" not in properties:
            properties["warehouse"] = aws.account()
    if properties.get("rest.sigv4-enabled", "false").lower() == "true":
        credentials = aws.session.get_credentials()
        if credentials is None:
            raise SourceError(
                "requests to the catalogue must be signed, and there are no AWS credentials",
                fix="give the pipeline AWS credentials; test them: `aws sts get-caller-identity`",
            )
        # A separate session, because PyIceberg sets its region.
        signer = get_session()
        signer._credentials = credentials  # type: ignore[attr-defined]
        properties["botocore.session"] = signer
        properties.setdefault("rest.signing-region", aws.region)
    if aws.ca_file:
        properties["ssl"] = {"cabundle": aws.ca_file}
    return properties


class _Rest(RestCatalog):
    """PyIceberg's REST catalogue with the lake's FileIO, and errors with a fix.

    Files are accessed with the lake's own credentials, so none are requested from the catalogue.
    """

    def __init__(self, files: Files, **properties: Any) -> None:
        self._files = files
        super().__init__("rest", **properties)
        if _DELEGATION not in {name.removeprefix("header.") for name in properties}:
            self._session.headers.pop(_DELEGATION, None)

    def _load_file_io(
        self, properties: Properties = EMPTY_DICT, location: str | None = None
    ) -> FileIO:
        # Without the catalogue's own properties, which include its token.
        return self._files(properties)

    def load_table(self, *arguments: Any, **named: Any) -> Any:
        with _rest_errors(self.uri):
            return super().load_table(*arguments, **named)

    def create_table(self, *arguments: Any, **named: Any) -> Any:
        with _rest_errors(self.uri):
            return super().create_table(*arguments, **named)

    def drop_table(self, *arguments: Any, **named: Any) -> Any:
        with _rest_errors(self.uri):
            return super().drop_table(*arguments, **named)

    def create_namespace(self, *arguments: Any, **named: Any) -> Any:
        with _rest_errors(self.uri):
            return super().create_namespace(*arguments, **named)

    def commit_table(self, *arguments: Any, **named: Any) -> Any:
        with _rest_errors(self.uri):
            try:
                return super().commit_table(*arguments, **named)
            except (RequestException, ServiceUnavailableError) as error:
                # The request was sent, and its result is unknown.
                raise CommitStateUnknownException(type(error).__name__) from None


@contextmanager
def _rest_errors(uri: str) -> Iterator[None]:
    """Raise `LakeError` for errors of a REST catalogue or of the connection to it.

    Messages include the server's response and nothing of the request, which has the token.
    """
    try:
        with aws_errors("the catalogue", LakeError):
            yield
    except CommitStateUnknownException:
        raise
    except RESTError as error:
        raise LakeError(
            f"catalogue {uri}: {type(error).__name__}: {error}",
            fix="check the catalogue's own log; `cdc-pipeline preflight` tests the operations that "
            "the lake needs (docs/catalogues.md)",
        ) from None
    except RequestException as error:
        raise LakeError(
            f"catalogue {uri} cannot be reached: {type(error).__name__}",
            fix="check `catalog: {properties: {uri: ...}}`, the network, HTTPS_PROXY and "
            "AWS_CA_BUNDLE",
        ) from None
