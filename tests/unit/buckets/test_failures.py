"""What errors of obstore mean, and that nothing secret is left in the reasons."""

import pytest
from obstore.exceptions import BaseError, GenericError, PermissionDeniedError

from llmserve.buckets.failures import FailureKind, failure_of


def http(status: str, code: str = "") -> GenericError:
    return GenericError(
        "Generic S3 error: Error performing GET https://host/b/k?X-Amz-Signature=5ecret&sig=5ecret in 1ms - "
        f"Server returned non-2xx status code: {status}: <Error><Code>{code}</Code>"
        "<AWSAccessKeyId>5ecret</AWSAccessKeyId><StringToSign>5ecret</StringToSign></Error>"
    )


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (http("503 Service Unavailable", "SlowDown"), FailureKind.THROTTLED, "HTTP 503 SlowDown"),
        (http("429 Too Many Requests"), FailureKind.THROTTLED, "HTTP 429"),
        (http("503 Service Unavailable", "InternalError"), FailureKind.SERVER, "HTTP 503 InternalError"),
        (http("500 Internal Server Error"), FailureKind.SERVER, "HTTP 500"),
        (
            http("403 Forbidden", "SignatureDoesNotMatch"),
            FailureKind.DENIED,
            "HTTP 403 SignatureDoesNotMatch",
        ),
        (http("404 Not Found", "NoSuchBucket"), FailureKind.GONE, "HTTP 404 NoSuchBucket"),
        (http("400 Bad Request", "InvalidRequest"), FailureKind.REFUSED, "HTTP 400 InvalidRequest"),
        (http("507 Insufficient Storage"), FailureKind.FULL, "HTTP 507"),
        (FileNotFoundError("Object at location p not found"), FailureKind.GONE, "FileNotFoundError"),
        (PermissionDeniedError("not yours"), FailureKind.DENIED, "not yours"),
        (GenericError("Generic S3 error: HTTP error: response body error"), FailureKind.UNREACHABLE, "body"),
        (
            GenericError("Generic S3 error: GET http://h/p?sig=5ecret in 2s - HTTP error: sending"),
            FailureKind.UNREACHABLE,
            "sending",
        ),
        (GenericError("Generic LocalFileSystem error: No space left on device"), FailureKind.FULL, ""),
    ],
)  # fmt: skip
def test_what_it_means(error: BaseError | OSError, kind: FailureKind, said: str) -> None:
    failed = failure_of(error)
    assert failed.kind is kind
    assert said in failed.message
    assert failed.message.startswith(kind)
    assert "5ecret" not in failed.message


def test_to_ask_the_machine_who_it_is_means_that_there_were_no_credentials() -> None:
    asked = GenericError("Error performing PUT http://169.254.169.254/latest in 1ms - HTTP error: x")
    assert failure_of(asked).kind is FailureKind.DENIED
    assert "credentials" in failure_of(asked).message
