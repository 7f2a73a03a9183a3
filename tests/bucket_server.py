"""A bucket on this machine: gs://runs in programs with `environment`, run by an emulator.

    python tests/bucket_server.py PORT

starts the emulator, to which it adds what programs need and it lacks: writing an object only in
place of a certain generation of it, or of none, and saying which one is read.
"""

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from http import HTTPStatus
from pathlib import Path

BUCKET = "runs"


def environment(port):
    """Variables by which programs see the bucket."""
    address = f"http://127.0.0.1:{port}"
    return {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_CLOUD_PROJECT": "test",
        # There are no credentials here, which is logged at each call.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # It would ask for the bucket's kind.
        "FSSPEC_GS": '{"token": "anon"}',
        "FSSPEC_GCS": '{"token": "anon"}',
    }


@contextlib.contextmanager
def served():
    """Runs the emulator, empty; gives its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, __file__, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/storage/v1/b?project=test").close()
                break
            time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait()


def objects(port):
    """Names and contents of all objects."""
    root = f"http://127.0.0.1:{port}/storage/v1/b/{BUCKET}/o"
    with urllib.request.urlopen(root) as answer:
        listed = json.load(answer).get("items", [])
    found = {}
    for each in listed:
        name = urllib.request.quote(each["name"], safe="")
        with urllib.request.urlopen(f"{root}/{name}?alt=media") as answer:
            found[each["name"]] = answer.read()
    return found


def main():
    from gcp_storage_emulator.exceptions import NotFound
    from gcp_storage_emulator.handlers import objects
    from gcp_storage_emulator.server import create_server

    def generation(storage, request, name):
        """Of an object; 0 if there is none."""
        with contextlib.suppress(NotFound):
            return storage.get_file_obj(request.params["bucket_name"], name)["generation"]
        return "0"

    def checked(upload, name_of):
        def with_precondition(request, response, storage):
            expected = request.query.get("ifGenerationMatch")
            if expected and generation(storage, request, name_of(request)) != expected[0]:
                response.status = HTTPStatus.PRECONDITION_FAILED
                response.json({"error": {"code": 412, "message": "another generation"}})
                return None
            return upload(request, response, storage)

        return with_precondition

    def named(request):
        return request.query["name"][0]

    def described(request):
        return request.query.get("name", [request.data["meta"].get("name")])[0]

    objects._media_upload = checked(objects._media_upload, named)
    objects._multipart_upload = checked(objects._multipart_upload, described)
    download = objects.download

    def with_generation(request, response, storage, *rest, **options):
        found = generation(storage, request, request.params["object_id"])
        if found != "0":
            response["X-Goog-Generation"] = found
        return download(request, response, storage, *rest, **options)

    objects.download = with_generation
    server = create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket=BUCKET)
    server.run()


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).parent))  # Its `programs` and others are no modules here.
    main()
