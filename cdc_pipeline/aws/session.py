"""One boto3 session per deployment: clients, their retries, and AWS errors in plain words."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError

from cdc_pipeline.core.errors import CdcPipelineError, SourceError

_DENIED = {"AccessDenied", "AccessDeniedException", "403", "UnrecognizedClientException"}


@dataclass(frozen=True)
class S3Access:
    """What a non-boto3 S3 client needs; credentials are frozen and may expire."""

    endpoint_url: str | None
    region: str | None
    access_key: str | None
    secret_key: str | None
    session_token: str | None

    def __repr__(self) -> str:
        """Without the secrets."""
        return f"S3Access(endpoint_url={self.endpoint_url!r}, region={self.region!r})"


class AwsSession:
    """Clients by service name, made once; honours AWS_ENDPOINT_URL and per-service variants.

    `endpoint_url` from the settings wins over the environment; None leaves the choice to
    botocore, which reads the environment and the shared config file.
    """

    def __init__(self, *, region: str | None = None, endpoint_url: str | None = None) -> None:
        self.session = Session(region_name=region)
        self._endpoint_url = endpoint_url
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()

    def client(self, service: str) -> Any:
        """The client of a service, such as `dynamodb`."""
        with self._lock:
            if service not in self._clients:
                try:
                    self._clients[service] = self.session.client(
                        service,  # type: ignore[call-overload]
                        endpoint_url=self._endpoint_url,
                        config=Config(
                            retries={"mode": "standard", "max_attempts": 5},
                            connect_timeout=5,
                            read_timeout=60,
                            max_pool_connections=64,
                            # One host per service: an account-id host cannot be reached through
                            # a private endpoint or a local AWS.
                            account_id_endpoint_mode="disabled",
                        ),
                    )
                except (BotoCoreError, ValueError) as error:
                    raise SourceError(
                        f"no AWS client for {service}: {error}",
                        fix="set `region` in the settings, or AWS_DEFAULT_REGION",
                    ) from None
            return self._clients[service]

    def s3_access(self) -> S3Access:
        """Endpoint and present credentials for pyarrow, refreshed by boto3 at each call."""
        client = self.client("s3")
        endpoint = client.meta.endpoint_url
        credentials = self.session.get_credentials()
        frozen = credentials.get_frozen_credentials() if credentials else None
        return S3Access(
            endpoint_url=None if _is_aws_host(endpoint) else endpoint,
            region=client.meta.region_name,
            access_key=frozen.access_key if frozen else None,
            secret_key=frozen.secret_key if frozen else None,
            session_token=frozen.token if frozen else None,
        )


def _is_aws_host(endpoint: str) -> bool:
    return endpoint.rstrip("/").endswith((".amazonaws.com", ".amazonaws.com.cn"))


def error_code(error: Exception) -> str:
    """The AWS error code of a botocore error, '' for errors that never reached AWS."""
    return error.response["Error"]["Code"] if isinstance(error, ClientError) else ""


@contextmanager
def aws_errors(
    what: str, kind: type[CdcPipelineError] = SourceError, **fixes: str
) -> Iterator[None]:
    """Turn botocore's errors inside the block into `kind`: `what` was tried, AWS's code, the fix.

    `fixes` maps AWS error codes to what to do about them.
    """
    try:
        yield
    except ClientError as error:
        code = error_code(error)
        denied = "grant the role this action (docs/aws.md lists them)" if code in _DENIED else None
        message = error.response["Error"].get("Message") or "no message"
        raise kind(f"{what}: AWS says {code}: {message}", fix=fixes.get(code, denied)) from error
    except EndpointConnectionError as error:
        raise kind(
            f"{what}: cannot reach {error.kwargs.get('endpoint_url')}",
            fix="check the network, `endpoint_url` and AWS_ENDPOINT_URL; is the local AWS running?",
        ) from error
    except BotoCoreError as error:
        raise kind(f"{what}: {error}") from error
