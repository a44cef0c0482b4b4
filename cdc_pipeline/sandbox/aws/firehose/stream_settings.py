"""Settings of a delivery stream: what AWS or the sandbox refuses, and what the rest means."""

from collections.abc import Callable
from typing import Any

from cdc_pipeline.sandbox.aws.dynamodb.responses import Response

_COMPRESSIONS = ("UNCOMPRESSED", "GZIP")
_PROCESSORS = ("Lambda", "AppendDelimiterToRecord")
ERROR_TYPE = "!{firehose:error-output-type}"


def with_checks(original: Callable[..., Response]) -> Callable[..., Response]:
    """Return a CreateDeliveryStream that refuses what AWS or the sandbox does not support."""

    def create(data: dict[str, Any]) -> Response:
        from ministack.core.responses import error_response_json

        config = data.get("ExtendedS3DestinationConfiguration") or {}
        wrong = _wrong(config) or _wrong(config.get("S3BackupConfiguration") or {})
        if wrong:
            return error_response_json("InvalidArgumentException", wrong, 400)
        return original(data)

    return create


def _wrong(config: dict[str, Any]) -> str | None:
    prefix, error_prefix = config.get("Prefix", ""), config.get("ErrorOutputPrefix", "")
    compression = config.get("CompressionFormat", "UNCOMPRESSED")
    hints = config.get("BufferingHints") or {}
    dynamic = config.get("DynamicPartitioningConfiguration") or {}
    if "!{" in prefix and not error_prefix:
        return "ErrorOutputPrefix cannot be null or empty when Prefix contains expressions"
    if "!{" in error_prefix and ERROR_TYPE not in error_prefix:
        return f"ErrorOutputPrefix must contain at least one instance of {ERROR_TYPE}"
    if conversion_of(config) and compression != "UNCOMPRESSED":
        return "CompressionFormat must be UNCOMPRESSED when data format conversion is enabled"
    if conversion_of(config) and int(hints.get("SizeInMBs", 128)) < 64:
        return "SizeInMBs must be at least 64 when data format conversion is enabled"
    if compression not in _COMPRESSIONS:
        return f"the sandbox compresses with one of {', '.join(_COMPRESSIONS)}"
    if _true(dynamic.get("Enabled", False)):
        return "the sandbox has no dynamic partitioning"
    unknown = {p["Type"] for p in processors_of(config)} - set(_PROCESSORS)
    return f"the sandbox has no processors of type {sorted(unknown)}" if unknown else None


def destination_of(stream: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of the S3 destination, empty for another destination."""
    for destination in stream["destinations"]:
        if destination["type"] in ("ExtendedS3", "S3"):
            return destination["config"]
    return {}


def conversion_of(config: dict[str, Any]) -> dict[str, Any] | None:
    """Return the conversion to Parquet, None if it is off."""
    conversion = config.get("DataFormatConversionConfiguration")
    return conversion if conversion and _true(conversion.get("Enabled", True)) else None


def processors_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    """List the processors of records, none if processing is off."""
    processing = config.get("ProcessingConfiguration") or {}
    return processing.get("Processors") or [] if _true(processing.get("Enabled", False)) else []


def parameter_of(processor: dict[str, Any], name: str, default: Any) -> Any:
    """Return a parameter of a processor."""
    for parameter in processor.get("Parameters") or []:
        if parameter["ParameterName"] == name:
            return parameter["ParameterValue"]
    return default


def _true(value: Any) -> bool:
    """Return a boolean of a template, whose values may be text."""
    return str(value).lower() == "true"
