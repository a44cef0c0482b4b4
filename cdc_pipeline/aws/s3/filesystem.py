"""S3 as a file system of pyarrow, for PyIceberg and DuckDB, with credentials that are refreshed."""

import threading
from collections.abc import Mapping
from typing import Any

from pyarrow import PythonFile, fs

from cdc_pipeline.aws.client.s3_access import CONNECT_SECONDS, READ_SECONDS, S3Access
from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.s3.output import S3Output
from cdc_pipeline.core.errors import SourceError


def open_s3(access: S3Access) -> fs.S3FileSystem:
    """A client of pyarrow with credentials that it keeps for good; raises `SourceError`."""
    if access.access_key is None:
        raise SourceError(
            "S3: there are no AWS credentials",
            fix="give the pipeline AWS credentials: `aws sts get-caller-identity` works",
        )
    return fs.S3FileSystem(
        endpoint_override=access.endpoint_url,
        region=access.region,
        access_key=access.access_key,
        secret_key=access.secret_key,
        session_token=access.session_token,
        force_virtual_addressing=access.has_bucket_in_host,
        proxy_options=access.proxy_url,
        tls_ca_file_path=access.ca_file,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=READ_SECONDS,
    )


def s3_filesystem(aws: AwsSession, sse: Mapping[str, str] | None = None) -> fs.FileSystem:
    """S3 by `bucket/key` with credentials that are as fresh as boto3's at each call.

    Reads are pyarrow's own, writes boto3's. `sse`: what writes say of their encryption, as boto3's
    parameters.
    """
    return fs.PyFileSystem(_S3Handler(aws, sse or {}))


class _S3Handler(fs.FileSystemHandler):
    """Hands each call to pyarrow's client of the bucket, made anew when credentials have changed.

    A file that is open stays with the client that opened it, and so with its credentials: botocore
    gives none that end within ten minutes.
    """

    def __init__(self, aws: AwsSession, sse: Mapping[str, str]) -> None:
        self._aws = aws
        self._sse = sse
        self._clients: dict[str, tuple[S3Access, fs.S3FileSystem]] = {}
        self._lock = threading.Lock()

    def _fs(self, path: str) -> fs.S3FileSystem:
        bucket = path.partition("/")[0]
        access = self._aws.s3_access(bucket)
        with self._lock:
            made = self._clients.get(bucket)
            if made is None or made[0] != access:
                made = self._clients[bucket] = (access, open_s3(access))
            return made[1]

    def get_type_name(self) -> str:
        return "s3"

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return [self._fs(path).get_file_info(path) for path in paths]

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        return self._fs(selector.base_dir).get_file_info(selector)

    def open_input_file(self, path: str) -> Any:
        return self._fs(path).open_input_file(path)

    def open_input_stream(self, path: str) -> Any:
        return self._fs(path).open_input_stream(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        bucket, _, key = path.partition("/")
        return PythonFile(S3Output(self._aws.client("s3"), bucket, key, self._sse), mode="w")

    def delete_file(self, path: str) -> None:
        self._fs(path).delete_file(path)

    def normalize_path(self, path: str) -> str:
        return path

    def create_dir(self, path: str, recursive: bool) -> None:
        """S3 has none."""

    def delete_dir(self, path: str) -> None:
        self._refuse(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._refuse(path)

    def delete_root_dir_contents(self) -> None:
        self._refuse("")

    def move(self, src: str, dest: str) -> None:
        self._refuse(src)

    def copy_file(self, src: str, dest: str) -> None:
        self._refuse(src)

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        self._refuse(path)

    def _refuse(self, path: str) -> None:
        raise NotImplementedError(f"s3://{path}: the lake's files are read, created and deleted")
