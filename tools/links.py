"""Makes a source tree ready for PyPI, where no file of the repository lies beside the README.

`python -m tools.links https://github.com/OWNER/NAME COMMIT` writes absolute links into README.md
and the URLs of the project into pyproject.toml. For a checkout that is thrown away.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from .requirements import ROOT

# A link that is neither absolute nor a place on the same page.
RELATIVE = re.compile(r"\]\((?![a-z][a-z+.-]*:|#|/)([^()\s]+)\)")
PAPER = 'Paper = "https://arxiv.org/abs/1412.1193"\n'


def absolute(text: str, address: str, commit: str) -> str:
    """Markdown with absolute links in the place of relative ones."""
    return RELATIVE.sub(rf"]({address}/blob/{commit}/\1)", text)


def with_urls(text: str, address: str, commit: str) -> str:
    """pyproject.toml with the URLs that depend on where the repository is."""
    if text.count(PAPER) != 1:
        raise ValueError(f"pyproject.toml has no line {PAPER.strip()!r} to put URLs behind")
    urls = {
        "Source": address,
        "Issues": f"{address}/issues",
        "Changelog": f"{address}/blob/{commit}/CHANGELOG.md",
    }
    lines = "".join(f'{name} = "{url}"\n' for name, url in urls.items())
    return text.replace(PAPER, PAPER + lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite both files; the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if len(arguments) != 2 or not arguments[0].startswith("https://"):
        print(__doc__, file=sys.stderr)
        return 2
    address, commit = arguments[0].rstrip("/"), arguments[1]
    for name, rewrite in {"README.md": absolute, "pyproject.toml": with_urls}.items():
        path = ROOT / name
        path.write_text(rewrite(path.read_text(encoding="utf-8"), address, commit), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
