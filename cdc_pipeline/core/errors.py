"""Errors that this project raises: message with the affected thing, and a fix."""


class CdcPipelineError(Exception):
    """Base of all errors that a user can act on.

    `message`: what happened, and to what; `fix`: the remedy. Neither contains item contents or
    secrets.
    """

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message if fix is None else f"{message}\n  Fix: {fix}")
        self.message = message
        self.fix = fix


class SettingsError(CdcPipelineError):
    """The settings file is missing or invalid."""


class SourceError(CdcPipelineError):
    """DynamoDB, its stream or its backups are unreachable, or not set up as capture needs them."""


class ExportError(CdcPipelineError):
    """A PITR export failed, or its files do not match its manifest."""


class FailedExportError(ExportError):
    """AWS reported a failed export; another attempt may succeed."""


class RunningExportError(ExportError):
    """An export is still running after the time that the settings allow."""


class UnusableExportError(ExportError):
    """An export that cannot be used: expired in AWS, filtered, or of another table."""


class LakeError(CdcPipelineError):
    """The lake cannot be read or written, or contains files that this project did not write."""


class UnsortedFilesError(LakeError):
    """Files of a published state are not sorted by key: another engine has written them."""


class CaptureConflictError(CdcPipelineError):
    """Another writer advanced the capture log of the same table first."""


class NotReadyError(CdcPipelineError):
    """An input of this step does not exist yet; nothing is broken."""


class SchemaContractError(CdcPipelineError):
    """The data no longer has the columns that the settings promise to readers."""


class QueryError(CdcPipelineError):
    """A SQL statement cannot be run on the lake."""


class UnreadableError(Exception):
    """A record or line that cannot be parsed; it is quarantined, never dropped.

    `reason`: short, without values, the same text for the same kind of mistake.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ExpiredIteratorError(Exception):
    """A shard iterator is older than 15 minutes; a new one at the checkpoint replaces it."""


class TrimmedDataError(Exception):
    """The stream no longer has the data at the checkpoint (24 h retention)."""


class HeadTrimmedError(TrimmedDataError):
    """A shard's oldest records may have been trimmed before its first read."""


class ShardGoneError(Exception):
    """The shard or its whole stream no longer exists."""


class NotCoveredError(CdcPipelineError):
    """A day whose changes neither the lake, the stream nor a backup holds."""


class EraseRefusedError(CdcPipelineError):
    """An item cannot be erased in the present state; nothing was changed."""


class CannotHealError(CdcPipelineError):
    """A gap that incremental exports cannot heal; it needs a new baseline."""


class WorkersError(CdcPipelineError):
    """A Spark job did not start, ended early, or failed for a reason that is not the data's."""
