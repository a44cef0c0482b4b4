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


def open_rest(kind: str, said: Properties, aws: AwsSession, files: Files) -> Catalog:
    """The REST catalogue with these properties (`kind`: a `type` of the settings' `catalog`).

    Raises `LakeError`, `SourceError`: it is asked for its configuration at once.
    """
    properties = _rest_properties(kind, said, aws)
    with _rest_errors(properties["uri"]):
        return _Rest(files, **properties)


def _rest_properties(kind: str, said: Properties, aws: AwsSession) -> dict[str, Any]:
    """What PyIceberg's REST catalogue wants: endpoint, authorities, who signs requests."""
    found: dict[str, Any] = dict(said)
    if service := _SIGNED_BY.get(kind):
        region = said["warehouse"].split(":")[3] if kind == "s3tables" else None
        client = aws.client(service, region)
        found = {
            "uri": f"{client.meta.endpoint_url.rstrip('/')}/iceberg",
            "rest.sigv4-enabled": "true",
            "rest.signing-name": service,
            "rest.signing-region": client.meta.region_name,
            **found,
        }
        if "warehouse" not in found:
            found["warehouse"] = aws.account()
    if found.get("rest.sigv4-enabled", "false").lower() == "true":
        credentials = aws.session.get_credentials()
        if credentials is None:
            raise SourceError(
                "the catalogue's requests are signed, and there are no AWS credentials",
                fix="give the pipeline AWS credentials: `aws sts get-caller-identity` works",
            )
        # One of its own: PyIceberg sets its region.
        signer = get_session()
        signer._credentials = credentials  # type: ignore[attr-defined]
        found["botocore.session"] = signer
        found.setdefault("rest.signing-region", aws.session.region_name)
    if aws.ca_file:
        found["ssl"] = {"cabundle": aws.ca_file}
    return found


class _Rest(RestCatalog):
    """PyIceberg's REST catalogue with our files, and errors that say what to do.

    The lake's files are reached with the lake's own credentials, so none are asked for.
    """

    def __init__(self, files: Files, **properties: Any) -> None:
        self._files = files
        super().__init__("rest", **properties)
        if _DELEGATION not in {name.removeprefix("header.") for name in properties}:
            self._session.headers.pop(_DELEGATION, None)

    def _load_file_io(
        self, properties: Properties = EMPTY_DICT, location: str | None = None
    ) -> FileIO:
        # Not the catalogue's own properties: they hold its token.
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
                # It was sent, and what became of it is not known.
                raise CommitStateUnknownException(type(error).__name__) from None


@contextmanager
def _rest_errors(where: str) -> Iterator[None]:
    """Raise `LakeError` for what a REST catalogue, or the way to it, refuses.

    What the server says is told; nothing of the request is, which holds the token.
    """
    try:
        with aws_errors("the catalogue", LakeError):
            yield
    except CommitStateUnknownException:
        raise
    except RESTError as error:
        raise LakeError(
            f"catalogue {where}: {type(error).__name__}: {error}",
            fix="see what its own log says; `cdc-pipeline preflight` tries what the lake needs "
            "of it (docs/catalogues.md)",
        ) from None
    except RequestException as error:
        raise LakeError(
            f"catalogue {where} cannot be reached: {type(error).__name__}",
            fix="check `catalog: {properties: {uri: ...}}`, the network, HTTPS_PROXY and "
            "AWS_CA_BUNDLE",
        ) from None
