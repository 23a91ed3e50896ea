"""What boto3 raises, turned into what a store may raise: a type to act on, a sentence to act upon.

The sentences are ours alone. What a store or boto3 says may hold keys, signatures or presigned
links, so of theirs only the code is ever repeated.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from urllib3 import exceptions as urllib3

from storage import ObjectNotFound, StorageMisconfigured, StorageUnavailable
from stores.s3.headers import offset_from
from utils import WorkerError


class PreconditionRefused(WorkerError):
    """409, 412 or a missing key: a conditional write was not carried out, or carried out already
    by the very request whose answer got lost. Never leaves the store."""


class Unsupported(StorageMisconfigured):
    """This store has no such operation."""


class BucketPlace(NamedTuple):
    """Where the store is, for sentences: nothing secret."""

    bucket: str
    #: None: AWS.
    endpoint: str | None
    region: str | None

    def __str__(self) -> str:
        return f"bucket {self.bucket!r} at {self.endpoint or 'AWS'}"


#: Codes that never get better by trying again, and what to change.
_SENTENCES = {
    "NoSuchBucket": "{place} does not exist: create it, or correct S3_BUCKET, S3_ENDPOINT_URL or "
    "S3_REGION",
    "InvalidBucketName": "{place} has a name that no bucket can have: correct S3_BUCKET",
    "InvalidAccessKeyId": "the access key is unknown to {place}: correct BUCKET_ACCESS_KEY_ID (or "
    "AWS_ACCESS_KEY_ID), or S3_ENDPOINT_URL if the key belongs to another store",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key, says {place}: "
    "correct BUCKET_SECRET_ACCESS_KEY (or AWS_SECRET_ACCESS_KEY)",
    "RequestTimeTooSkewed": "{place} refuses requests because this machine's clock is wrong"
    "{offset}: set the clock",
    "ExpiredToken": "the session token has expired: renew AWS_SESSION_TOKEN with its keys",
    "InvalidToken": "the session token is not valid at {place}: correct or unset AWS_SESSION_TOKEN",
    "AccessDenied": "the access key may not {operation} in {place}: allow s3:GetObject, "
    "s3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload, s3:ListMultipartUploadParts on its "
    "objects and s3:ListBucket on the bucket",
    "AuthorizationHeaderMalformed": "{place} is in another region than {region}: set S3_REGION"
    "{right_region}",
    "EntityTooLarge": "{place} takes no object this large in one request",
}
#: Other names for the same.
_ALIASES = {
    "403": "AccessDenied",  # an answer to HEAD, which has no body that names the error
    "InvalidSecurity": "SignatureDoesNotMatch",
    "InvalidSignature": "SignatureDoesNotMatch",
    "TokenRefreshRequired": "ExpiredToken",
    "RequestExpired": "RequestTimeTooSkewed",
    "AllAccessDisabled": "AccessDenied",
    "AccountProblem": "AccessDenied",
    "Forbidden": "AccessDenied",
    "PermanentRedirect": "AuthorizationHeaderMalformed",
    "TemporaryRedirect": "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException": "AuthorizationHeaderMalformed",
}
#: 4xx answers that blame the network or the moment, not the request.
_PASSING = {
    "BadDigest",
    "IncompleteBody",
    "InvalidPart",
    "NoSuchUpload",
    "OperationAborted",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "XAmzContentSHA256Mismatch",
}  # fmt: skip
_PASSING_STATUS = {408, 425, 429}


#: Nothing that could answer was reached.
_UNREACHED = (
    boto.EndpointConnectionError,
    boto.ConnectTimeoutError,
    boto.ProxyConnectionError,
    urllib3.ConnectTimeoutError,
    urllib3.ProxyError,
)
#: The connection broke, on this side or the other.
_BROKEN_OFF = (
    boto.HTTPClientError,
    boto.ConnectionError,
    boto.IncompleteReadError,
    urllib3.HTTPError,
    OSError,
)
#: All that a request by boto3 or a signed call may raise: botocore's and urllib3's own, and the
#: outcome of a malformed answer or setting.
BOTO_ERRORS = (
    boto.ClientError,
    boto.BotoCoreError,
    ResponseParserError,
    urllib3.HTTPError,
    OSError,
    KeyError,
    ValueError,
)


def translate(error: Exception, place: BucketPlace, key: str | None = None) -> WorkerError:
    """What `error`, one of `BOTO_ERRORS` about `key`, means. Gives it back, does not raise it."""
    if isinstance(error, boto.ClientError):
        return _answer(error, place, key)
    if isinstance(error, boto.SSLError | urllib3.SSLError):
        return _tls(error, place)
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return StorageMisconfigured(
            "there are no credentials for the store: set BUCKET_ACCESS_KEY_ID and "
            "BUCKET_SECRET_ACCESS_KEY (or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        )
    if passing := _no_answer(error, place):
        return StorageUnavailable(passing)
    return StorageMisconfigured(
        f"boto3 refuses these settings ({type(error).__name__}): check S3_BUCKET, "
        "S3_ENDPOINT_URL (https://host[:port]), S3_REGION, S3_TLS_BUNDLE and AWS_* variables"
    )


def _no_answer(error: Exception, place: BucketPlace) -> str | None:
    """Why there was no answer, or none that can be read; None: that is not what is wrong."""
    if isinstance(error, _UNREACHED):
        return (
            f"{place} cannot be reached: if this lasts, S3_ENDPOINT_URL is wrong, its name does "
            "not resolve, or a firewall is in the way"
        )
    if isinstance(error, boto.ReadTimeoutError | urllib3.ReadTimeoutError):
        return f"{place} did not answer in time"
    if isinstance(error, boto.CredentialRetrievalError | boto.MetadataRetrievalError):
        return (
            f"boto3 could not fetch credentials for {place}: if this lasts, set "
            "BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY, or mend the role or profile"
        )
    if isinstance(error, _BROKEN_OFF):
        return f"{place} broke off ({type(error).__name__}){_plain(place)}"
    if isinstance(error, ResponseParserError | KeyError):
        return f"{place} gave an answer that is not S3's: if this lasts, correct S3_ENDPOINT_URL"
    return None


def clock_offset(error: BaseException | None) -> float | None:
    """Our clock minus the store's, in seconds, if `error` is an answer that told the time."""
    if not isinstance(error, boto.ClientError):
        return None
    return offset_from(error.response["ResponseMetadata"]["HTTPHeaders"])


def _answer(error: boto.ClientError, place: BucketPlace, key: str | None) -> WorkerError:
    """The store answered, with something else than success."""
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    if status in (409, 412) and code not in _PASSING:
        return PreconditionRefused(f"{key}: {code}")
    if code == "NoSuchKey":
        return ObjectNotFound(f"there is no object {key!r}")
    if status in (405, 501) or code == "NotImplemented":
        return Unsupported(f"{place} cannot {_verb(error)}")
    if code in ("", str(status)) and error.operation_name != "HeadObject":
        # S3 always names its errors: this one was cut short, or something else answered
        return StorageUnavailable(
            f"{place} answered {status} and no more: if this lasts, correct S3_ENDPOINT_URL"
            f"{_plain(place)}"
        )
    if status >= 500 or status in _PASSING_STATUS or code in _PASSING:
        return StorageUnavailable(f"{place} answered {status} {code}, which should pass")
    return StorageMisconfigured(_sentence(error, code, place))


def _sentence(error: boto.ClientError, code: str, place: BucketPlace) -> str:
    """What to change."""
    known = _ALIASES.get(code, code)
    if known == "AccessDenied" and error.operation_name in ("GetObject", "HeadObject"):
        # Without s3:ListBucket, AWS answers 403 for an object that is not there. "Not found"
        # would be a guess, and a wrong one makes a worker run again what has run already.
        return (
            f"{place} will not say whether an object is there: allow the access key s3:GetObject "
            "on its objects and s3:ListBucket on the bucket (without it, a missing object is "
            "answered 403)"
        )
    if known not in _SENTENCES:
        return (
            f"{place} refused to {_verb(error)} ({code or 'without a reason'}): check "
            "S3_ENDPOINT_URL and S3_BUCKET"
        )
    offset = clock_offset(error)
    right_region = _right_region(error)
    return _SENTENCES[known].format(
        place=place,
        operation=_verb(error),
        region=place.region,
        offset=f" by {abs(offset):.0f} s" if offset is not None and abs(offset) > 60 else "",
        right_region=f" to {right_region}" if right_region else "",
    )


def _right_region(error: boto.ClientError) -> str | None:
    """AWS says where a bucket is when asked in the wrong place."""
    told = cast("dict[str, Any]", error.response.get("Error", {})).get("Region")
    headers = error.response["ResponseMetadata"]["HTTPHeaders"]
    return told or headers.get("x-amz-bucket-region")


def _plain(place: BucketPlace) -> str:
    """A hint for an endpoint that is spoken to without TLS."""
    if place.endpoint is None or not place.endpoint.startswith("http://"):
        return ""
    return "; where it expects TLS, S3_ENDPOINT_URL begins with https://"


def _verb(error: boto.ClientError) -> str:
    return f"do {error.operation_name}"


def _tls(error: Exception, place: BucketPlace) -> WorkerError:
    """Certificates do not mend themselves; a broken handshake may."""
    reason = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return StorageMisconfigured(
            f"the TLS certificate of {place} is not trusted: set S3_TLS_BUNDLE to a file with the "
            "certificate of its issuer, or correct S3_ENDPOINT_URL"
        )
    if "WRONG_VERSION_NUMBER" in reason:
        return StorageMisconfigured(f"{place} does not speak TLS: S3_ENDPOINT_URL begins http://")
    return StorageUnavailable(f"{place} broke off the TLS handshake")
