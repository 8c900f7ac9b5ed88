"""Options of `environment.remote`."""

from __future__ import annotations

from pydantic import field_validator

from stackloom.core.config import ComponentConfig, option


class RemoteConfig(ComponentConfig):
    """Where the environment is.

    Example:
        >>> RemoteConfig(url="http://127.0.0.1:8100").token_variable
        'STACKLOOM_ENV_TOKEN'
    """

    url: str = option(..., "what `stackloom env serve` prints, such as http://127.0.0.1:8100")
    token_variable: str = option(
        "STACKLOOM_ENV_TOKEN", "environment variable that holds the bearer token; unset: no token"
    )
    seconds: float = option(60.0, "most that one request may take", unit="s", gt=0, le=3600)
    patience: float = option(60.0, "how long to wait for a free lease", unit="s", ge=0, le=86_400)

    @field_validator("url")
    @classmethod
    def _http(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"must begin with http:// or https://, got {url!r}")
        return url.rstrip("/")
