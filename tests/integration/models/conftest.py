"""A real S3 server, and a proxy before it."""

from tests.support.faulty_s3 import s3_proxy
from tests.support.seaweed import s3_server

__all__ = ["s3_proxy", "s3_server"]
