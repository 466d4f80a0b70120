"""Pages name files of the repository by their path from docs/; on the site such a link leads to the repository."""

import re
from typing import Any

OUTSIDE = re.compile(r"\]\(\.\./([^)]*)\)")


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    return OUTSIDE.sub(rf"]({config.repo_url}/blob/main/\1)", markdown)
