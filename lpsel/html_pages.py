"""Render self-contained HTML pages from Jinja templates in the folder `templates` of a package."""

import base64
import hashlib
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def render(package: str, template: str, **values: Any) -> str:
    """Render a page; all text is escaped.

    Templates insert files next to them with `asset`, and only allow scripts and styles whose `sha256` is in the content
    security policy.
    """
    loader = PackageLoader(package, "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["asset"] = lambda name: Markup((files(package) / "templates" / name).read_text("utf-8"))
    environment.filters["sha256"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    environment.filters["decimals"] = lambda value: "–" if value is None else f"{value:.3f}"
    return environment.get_template(template).render(**values)
