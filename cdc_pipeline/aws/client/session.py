"""AWS sessions of accounts and regions: clients, retries, and errors with a fix.

They are botocore's: boto3's import costs as much again as botocore's, and nothing here needs it.
"""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from botocore.config import Config
from botocore.credentials import Credentials, DeferredRefreshableCredentials
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    ProxyConnectionError,
    SSLError,
)
from botocore.loaders import JSONFileLoader, Loader, create_loader
from botocore.session import Session, get_session

from cdc_pipeline.aws.client.answers import check_answers
from cdc_pipeline.aws.client.clock_offset import ClockOffset
from cdc_pipeline.aws.client.s3_access import (
    CONNECT_SECONDS,
    READ_SECONDS,
    S3Access,
    authorities,
    s3_access,
)
from cdc_pipeline.core.errors import CdcPipelineError, SourceError

_SESSION_NAME = "cdc-pipeline"
_DENIED = {"AccessDenied", "AccessDeniedException", "403", "UnrecognizedClientException"}


class AwsSession:
    """Cached clients by service name; honours AWS_ENDPOINT_URL and per-service variants.

    `endpoint_url` from the settings overrides the environment; None leaves the choice to
    botocore, which reads the environment and the shared config file. `credentials`: override
    AWS's credential chain.
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
        if region is not None:
            core.set_config_variable("region", region)
        core.register_component("data_loader", _models(core.get_config_variable("data_path")))
        self.session: Session = core
        self.clock_offset = ClockOffset()
        self.clock_offset.watch(core)
        check_answers(core)
        self._endpoint_url = endpoint_url
        self._clients: dict[tuple[str, str | None], Any] = {}
        self._buckets: dict[str | None, S3Access] = {}
        self._lock = threading.Lock()
        self._account: str | None = None

    def client(self, service: str, region: str | None = None) -> Any:
        """Return the client of a service, such as `dynamodb`; default: this session's region."""
        key = (service, region)
        with self._lock:
            if key not in self._clients:
                try:
                    self._clients[key] = self.session.create_client(
                        service,  # type: ignore[call-overload]
                        region_name=region,
                        endpoint_url=self._endpoint_url,
                        config=Config(
                            retries={"mode": "standard", "max_attempts": 5},
                            connect_timeout=CONNECT_SECONDS,
                            read_timeout=READ_SECONDS,
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
            return self._clients[key]

    def elsewhere(
        self,
        *,
        region: str | None = None,
        role_arn: str | None = None,
        external_id: str | None = None,
    ) -> "AwsSession":
        """Return a session in another region, or of a role that this session may assume.

        The role is assumed at the first request, and again before its credentials expire; if this
        fails, requests raise `SourceError`.
        """
        credentials = None
        if role_arn:
            request = {"RoleArn": role_arn, "RoleSessionName": _SESSION_NAME}
            request |= {"ExternalId": external_id} if external_id else {}
            credentials = DeferredRefreshableCredentials(
                refresh_using=lambda: self._assume(request), method="sts-assume-role"
            )
        return AwsSession(
            region=region or self.region,
            endpoint_url=self._endpoint_url,
            credentials=credentials,
        )

    @property
    def region(self) -> str | None:
        """Region of the session; None: nothing names one."""
        return self.session.get_config_variable("region")

    def _assume(self, request: dict[str, str]) -> dict[str, str]:
        """Assume a role; returns credentials in the form of botocore's refreshable ones."""
        role = request["RoleArn"]
        fix = (
            f"allow this role to call sts:AssumeRole on {role}, and let that role's trust policy "
            "name it (with the external id, if it requires one)"
        )
        with aws_errors(f"role {role}", AccessDenied=fix, AccessDeniedException=fix):
            credentials = self.client("sts").assume_role(**request)["Credentials"]
        return {
            "access_key": credentials["AccessKeyId"],
            "secret_key": credentials["SecretAccessKey"],
            "token": credentials["SessionToken"],
            "expiry_time": credentials["Expiration"].isoformat(),
        }

    def account(self) -> str:
        """Return the credentials' account, 12 digits; raises `SourceError`."""
        account = self._account
        if account is None:
            with aws_errors("the account of these credentials"):
                account = self._account = self.client("sts").get_caller_identity()["Account"]
        return account

    @property
    def partition(self) -> str:
        """AWS partition of the region, as in its ARNs: `aws`, `aws-cn`, ...

        `aws` for a region unknown to botocore.
        """
        return self.client("s3").meta.partition

    def s3_access(self, bucket: str | None = None) -> S3Access:
        """Return the access to S3, or to a bucket of any region, with the current credentials.

        Raises `SourceError`. The first access to a bucket sends a request for its region.
        """
        with aws_errors("AWS credentials"):
            credentials = self.session.get_credentials()
            frozen = credentials.get_frozen_credentials() if credentials else None
        access = self._buckets.get(bucket)
        if access is None:
            client = self.client("s3", self._region_of(bucket) if bucket else None)
            access = self._buckets[bucket] = s3_access(client, bucket, self._ca_bundle())
        if frozen is None:
            return access
        return replace(
            access,
            access_key=frozen.access_key,
            secret_key=frozen.secret_key,
            session_token=frozen.token,
        )

    @property
    def ca_file(self) -> str | None:
        """File of certificate authorities (PEM) for servers' certificates."""
        return authorities(self._ca_bundle())

    def _ca_bundle(self) -> str | None:
        return self.session.get_config_variable("ca_bundle")

    def _region_of(self, bucket: str) -> str | None:
        """Return a bucket's region by S3; None: not in the answer."""
        try:
            with aws_errors(f"bucket {bucket}"):
                # botocore follows S3 to the region by itself.
                answer = self.client("s3").head_bucket(Bucket=bucket)
        except SourceError as error:
            cause = error.__cause__
            if not isinstance(cause, ClientError):
                raise
            answer = cause.response
        headers = answer["ResponseMetadata"].get("HTTPHeaders", {})
        return headers.get("x-amz-bucket-region")


class _ModelFiles(JSONFileLoader):
    """Files of service models as plain dictionaries: botocore's ordered ones take twice as long."""

    def load_file(self, file_path: str) -> Any:
        for ending, opener in ((".json", Path.open), (".json.gz", gzip.open)):
            path = Path(file_path + ending)
            if path.is_file():
                with opener(path, "rb") as file:
                    return json.loads(file.read())
        return None


@cache
def _models(data_path: str | None) -> Loader:
    """Return the loader of AWS's service models; sessions that share it parse each only once."""
    loader = create_loader(data_path)
    loader.file_loader = _ModelFiles()
    return loader


def error_code(error: Exception) -> str:
    """Return the AWS error code of a botocore error; '': the request did not reach AWS."""
    return error.response["Error"]["Code"] if isinstance(error, ClientError) else ""


def cause_code(error: CdcPipelineError) -> str:
    """Return the AWS error code of the cause of an `aws_errors` error; '': none."""
    cause = error.__cause__
    return error_code(cause) if isinstance(cause, ClientError) else ""


def is_denied(code: str) -> bool:
    """Whether AWS refused a call for a missing permission."""
    return code in _DENIED


@contextmanager
def aws_errors(
    what: str, kind: type[CdcPipelineError] = SourceError, **fixes: str
) -> Iterator[None]:
    """Convert botocore's errors in the block to `kind`, with operation, AWS's code and fix.

    `what`: the operation, for people. `fixes`: fixes by AWS error code.
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
    except ProxyConnectionError as error:
        fix = "check HTTP_PROXY, HTTPS_PROXY and NO_PROXY"
        raise kind(f"{what}: {error}", fix=fix) from error
    except SSLError as error:
        fix = "set AWS_CA_BUNDLE to the PEM file of the authority that signed the certificate"
        raise kind(f"{what}: {error}", fix=fix) from error
    except BotoCoreError as error:
        raise kind(f"{what}: {error}") from error
