"""HTML pages from templates."""

from __future__ import annotations

import base64
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render_template(template: str, **values: Any) -> str:
    """A page from its template. Text is escaped; a missing value is an error."""
    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def data_url(media_type: str, data: bytes) -> str:
    """A file's content as a URL, so that a page needs no other file."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
