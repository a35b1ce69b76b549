"""The package's description: README.md with links that work on any page. The rest is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup

FOLDER = Path(__file__).resolve().parent
_TARGET = re.compile(r"(!?)(\[(?:[^\[\]]|\[[^\[\]]*\]\([^()]*\))*\])\((?!https?://)([^()\s]+)\)")


def absolute_links(readme: str, repository: str, revision: str) -> str:
    """Replace relative links and pictures by addresses in the repository; package pages have neither files nor anchors.

    Args:
        readme: text in Markdown.
        repository: address of the repository on GitHub.
        revision: branch, tag or commit.
    """

    def replace(found: re.Match[str]) -> str:
        picture, text, target = found.groups()
        path = f"README.md{target}" if target.startswith("#") else target
        return f"{picture}{text}({repository}/{'raw' if picture else 'blob'}/{revision}/{path})"

    return _TARGET.sub(replace, readme)


def _value(file: str, name: str) -> str:
    """Return the text that a line of a file assigns to a name."""
    (value,) = re.findall(rf'^{name} = "(.+)"$', (FOLDER / file).read_text(encoding="utf-8"), re.MULTILINE)
    return str(value)


if __name__ == "__main__":
    setup(
        long_description=absolute_links(
            (FOLDER / "README.md").read_text(encoding="utf-8"),
            _value("pyproject.toml", "Source"),
            f"v{_value('san/__init__.py', '__version__')}",
        ),
        long_description_content_type="text/markdown",
    )
