"""Segments a picture with a running `san serve`; needs the standard library only.

python examples/serve_client.py http://127.0.0.1:8000 photo.jpg "cat, dog" "sofa|couch, floor"

The picture is sent and encoded once. SAN_SERVE_KEY is the server's API key, if it has one.
"""

import json
import os
import secrets
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


def send(url: str, fields: dict, picture: bytes | None = None, name: str = "picture", key: str = "") -> bytes:
    """Post a form and return the answer; after 429 or 503 it is sent again."""
    boundary = secrets.token_hex(16)
    parts = [f'name="{field}"\r\n\r\n{value}'.encode() for field, value in fields.items()]
    if picture is not None:
        parts.append(f'name="image"; filename="{name}"\r\n\r\n'.encode() + picture)
    start, end = f"--{boundary}\r\nContent-Disposition: form-data; ".encode(), f"--{boundary}--\r\n".encode()
    body = b"".join(start + part + b"\r\n" for part in parts) + end
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    for _ in range(10):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=120) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            detail = json.load(error)["detail"]
            if error.code not in (429, 503):
                raise ValueError(f"{error.code}: {detail}") from None
            time.sleep(int(error.headers.get("Retry-After", 1)))
    raise ValueError(f"the server was full ten times: {detail}")


if __name__ == "__main__":
    server, path, *vocabularies = sys.argv[1:]
    key, picture = os.environ.get("SAN_SERVE_KEY", ""), Path(path)
    kept = json.loads(send(f"{server}/v1/images", {}, picture.read_bytes(), key=key))
    for number, words in enumerate(vocabularies):
        fields = {"image_id": kept["image_id"], "vocabulary": words}
        overlay = picture.with_name(f"{picture.stem}_{number}.png")
        overlay.write_bytes(send(f"{server}/v1/segment", {**fields, "format": "overlay"}, key=key))
        result = json.loads(send(f"{server}/v1/segment", {**fields, "format": "json"}, key=key))
        print(overlay, ", ".join(f"{each['name']} {each['share']:.1%}" for each in result["classes"]))
