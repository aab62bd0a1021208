"""The stand-in for S3 that the tests of stores use."""

import re
from http.client import HTTPConnection

from benchmarks.s3_server import s3_server


def test_an_upload_never_has_the_number_of_another() -> None:
    with s3_server() as server:
        connection = HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)

        def asked(method: str, path: str) -> bytes:
            connection.request(method, path, b"")
            return connection.getresponse().read()

        def begun(key: str) -> str:
            found = re.search(rb"<UploadId>(.*?)</UploadId>", asked("POST", f"/bucket/{key}?uploads="))
            assert found is not None
            return found[1].decode()

        first, second = begun("a"), begun("b")
        asked("DELETE", f"/bucket/a?uploadId={first}")
        assert begun("c") not in (first, second)
        connection.close()
