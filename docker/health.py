"""Health check of a container: exit code 0 if `san demo` or `san serve` answers on SAN_PORT (default 7860)."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request


def answers(path: str) -> int:
    """Return the HTTP status of a path; 0 if nothing answers within 5 seconds."""
    url = f"http://127.0.0.1:{os.environ.get('SAN_PORT', '7860')}{path}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
    try:
        with opener.open(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


if __name__ == "__main__":
    status = answers("/health")
    if status == 404:  # the demo has only its page
        status = answers("/")
    sys.exit(status != 200)
