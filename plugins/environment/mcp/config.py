"""Options of `environment.mcp`."""

from __future__ import annotations

from pydantic import model_validator

from stackloom.core.config import ComponentConfig, option


class MCPConfig(ComponentConfig):
    """A server over standard input and output, started per attempt, or one at an address, shared by all attempts.

    Example:
        >>> MCPConfig(command=("my-server",), tasks="tasks.jsonl").seconds
        30.0
    """

    command: tuple[str, ...] = option((), "program and arguments; each attempt starts a server of its own")
    url: str = option("", "of a server over streamable HTTP; attempts share its state")
    tasks: str = option(..., "JSON Lines file: id, messages or prompt, and answer or check", min_length=1)
    variables: dict[str, str] = option({}, "environment variables of a started server; no others of ours reach it")
    only: tuple[str, ...] = option((), "names of the tools that the agent sees; all if empty")
    compact: bool = option(True, "show the model one line per tool instead of its JSON Schema")
    held_out: float = option(0.2, "share of the tasks, by a hash of their ids, that is held out", ge=0, le=1)
    seconds: float = option(30.0, "most that connecting or one call may take", unit="s", gt=0, le=3600)
    most_characters: int = option(20_000, "of one answer; the rest is cut", unit="characters", ge=100, le=10_000_000)

    @model_validator(mode="after")
    def _one_way(self) -> MCPConfig:
        if bool(self.command) == bool(self.url):
            raise ValueError("give command or url, one of them")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url must begin with http:// or https://, got {self.url!r}")
        return self
