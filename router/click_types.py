"""Types of command-line options that several commands share."""

from typing import Any
from urllib.parse import urlsplit

import click

from ccr.settings import seconds


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    """``30s``, ``250ms``, ``2m`` or a number of seconds; seconds inside."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds, >= 0."""
        try:
            found = float(seconds(value))  # type: ignore[arg-type]  # a number of one kind or another by now
        except (TypeError, ValueError) as error:
            self.fail(str(error), param, ctx)
        if not 0.0 <= found < float("inf"):
            self.fail(f"{value!r} is no duration: it must be finite and not negative", param, ctx)
        return found


class BaseUrl(click.ParamType):  # type: ignore[type-arg]  # as above
    """``http://host:port`` of a router or a node."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The URL without a slash, or ``/v1``, at its end."""
        text = str(value).rstrip("/").removesuffix("/v1")
        try:
            parts = urlsplit(text)
            usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            self.fail(f"{value!r} is no base URL; give one such as http://127.0.0.1:8090", param, ctx)
        return text


DURATION = Duration()
BASE_URL = BaseUrl()
