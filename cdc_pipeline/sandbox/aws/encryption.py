"""SSE-KMS without a key id, for which S3 uses the account's own key `aws/s3`.

ministack refuses such requests.
"""

from typing import Any

_SSE = "x-amz-server-side-encryption"
_KEY_ID = "x-amz-server-side-encryption-aws-kms-key-id"


def install_managed_key(s3: Any) -> None:
    """Make writes with only `aws:kms` use the account's own key; once per process."""
    from ministack.core.responses import get_account_id, get_region

    original = s3._resolve_sse_write_headers

    def resolve(headers: dict[str, str], bucket: str) -> Any:
        if headers.get(_SSE) == "aws:kms" and not headers.get(_KEY_ID):
            key = f"arn:aws:kms:{get_region()}:{get_account_id()}:key/aws-s3"
            headers = {**headers, _KEY_ID: key}
        return original(headers, bucket)

    s3._resolve_sse_write_headers = resolve
