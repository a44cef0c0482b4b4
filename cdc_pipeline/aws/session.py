"""boto3 sessions of accounts and regions: clients, retries, and AWS errors in plain words."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from boto3.session import Session
from botocore.config import Config
from botocore.credentials import Credentials, DeferredRefreshableCredentials
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError
from botocore.session import get_session

from cdc_pipeline.aws.clock_offset import ClockOffset
from cdc_pipeline.core.errors import CdcPipelineError, SourceError

_SESSION_NAME = "cdc-pipeline"
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
    botocore, which reads the environment and the shared config file. `credentials`: instead of
    those that AWS's chain finds.
    """

    def __init__(
        self,
        *,
        region: str | None = None,
        endpoint_url: str | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        core = get_session()
        if credentials is not None:
            core._credentials = credentials  # type: ignore[attr-defined]
        self.session = Session(botocore_session=core, region_name=region)
        self.clock_offset = ClockOffset()
        self.clock_offset.watch(core)
        self._endpoint_url = endpoint_url
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._account: str | None = None

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

    def elsewhere(
        self,
        *,
        region: str | None = None,
        role_arn: str | None = None,
        external_id: str | None = None,
    ) -> "AwsSession":
        """A session in another region, or of a role that this session's credentials may assume.

        The role is assumed at the first request, and again before its credentials expire; where it
        cannot be, requests raise `SourceError`.
        """
        credentials = None
        if role_arn:
            asked = {"RoleArn": role_arn, "RoleSessionName": _SESSION_NAME}
            asked |= {"ExternalId": external_id} if external_id else {}
            credentials = DeferredRefreshableCredentials(
                refresh_using=lambda: self._assume(asked), method="sts-assume-role"
            )
        return AwsSession(
            region=region or self.session.region_name,
            endpoint_url=self._endpoint_url,
            credentials=credentials,
        )

    def _assume(self, asked: dict[str, str]) -> dict[str, str]:
        """Temporary credentials as botocore's refreshing ones want them."""
        role = asked["RoleArn"]
        fix = (
            f"allow this role to call sts:AssumeRole on {role}, and let that role's trust policy "
            "name it (with the external id, where it asks for one)"
        )
        with aws_errors(f"role {role}", AccessDenied=fix, AccessDeniedException=fix):
            found = self.client("sts").assume_role(**asked)["Credentials"]
        return {
            "access_key": found["AccessKeyId"],
            "secret_key": found["SecretAccessKey"],
            "token": found["SessionToken"],
            "expiry_time": found["Expiration"].isoformat(),
        }

    def account(self) -> str:
        """The twelve digits of the account that the credentials are of; raises `SourceError`."""
        found = self._account
        if found is None:
            with aws_errors("the account of these credentials"):
                found = self._account = self.client("sts").get_caller_identity()["Account"]
        return found

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


def code_behind(error: CdcPipelineError) -> str:
    """The AWS error code that an error of `aws_errors` is about, '' if there was none."""
    cause = error.__cause__
    return error_code(cause) if isinstance(cause, ClientError) else ""


def is_denied(code: str) -> bool:
    """Whether AWS refused a call for want of a permission."""
    return code in _DENIED


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
