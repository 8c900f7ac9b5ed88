"""Tools of any MCP server, for an episode: connected in the background, called from ordinary code.

The official `mcp` package speaks the protocol. Servers are started as processes over standard input and output, or
reached at an http(s) address. What a server says of its tools is data: names that no tool of ours could have are
refused, and its texts are cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from anyio.from_thread import start_blocking_portal
from mcp import Client, MCPError, StdioServerParameters

from stackloom.core.chat import Tool
from stackloom.core.errors import ConfigError
from stackloom.core.slots.environment import ToolError

MOST_TOOLS = 512


class ServerLost(Exception):
    """The MCP server went, hung or broke the protocol: nobody's attempt, and nothing to score."""


class McpTools:
    """A connection to one MCP server.

    Args:
        command: program and arguments of a server over standard input and output.
        url: of a server over streamable HTTP; exactly one of the two.
        environment: variables of the started server; nothing else is inherited but what the mcp package thinks safe.
        seconds: most that connecting, listing or one call may take.
        most_characters: of one answer; the rest is cut.

    Attributes:
        tools: what the server offers.

    Raises:
        ConfigError: neither command nor url, both, or the server cannot be reached or offers what no tool can be.
    """

    def __init__(
        self,
        command: Sequence[str] = (),
        url: str = "",
        *,
        environment: Mapping[str, str] | None = None,
        seconds: float = 30.0,
        most_characters: int = 100_000,
    ) -> None:
        if bool(command) == bool(url):
            raise ConfigError("give a command or a url, one of them", where="mcp")
        self._seconds, self._most = seconds, most_characters
        target: Any = url or StdioServerParameters(
            command=command[0], args=list(command[1:]), env=dict(environment or {})
        )
        self._open = ExitStack()
        try:
            self._portal = self._open.enter_context(start_blocking_portal())
            self._client = self._open.enter_context(
                self._portal.wrap_async_context_manager(Client(target, read_timeout_seconds=seconds))
            )
            self.tools = self._portal.call(self._list)
        except ConfigError:
            self._open.close()
            raise
        except BaseException as cause:
            self._open.close()
            if not isinstance(cause, Exception):
                raise
            what = url or " ".join(command)
            raise ConfigError(f"the MCP server {what!r} cannot be used: {_deepest(cause)}", where="mcp") from cause

    async def _list(self) -> tuple[Tool, ...]:
        found: list[Tool] = []
        cursor: str | None = None
        while len(found) <= MOST_TOOLS:
            page = await self._client.list_tools(cursor=cursor)
            found += [Tool(each.name, (each.description or "")[:4096], dict(each.input_schema)) for each in page.tools]
            cursor = page.next_cursor
            if not cursor:
                return tuple(found)
        raise ConfigError(f"the server offers more than {MOST_TOOLS} tools", where="mcp")

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Call a tool and return its text; other content is named, not shown.

        Raises:
            ToolError: the server says that the call was wrong.
            ServerLost: the server went, hung or broke the protocol.
        """
        try:
            result = self._portal.call(self._client.call_tool, name, dict(arguments))
        except MCPError as refused:
            if refused.error.code == -32602:  # invalid params
                raise ToolError(str(refused)) from None
            raise ServerLost(f"{name}: {refused}") from refused
        except Exception as cause:
            raise ServerLost(f"{name}: {_deepest(cause)}") from cause
        parts = [
            part.text if part.type == "text" else f"({part.type} of {getattr(part, 'mime_type', 'some kind')})"
            for part in result.content
        ]
        text = "\n".join(parts)
        text = text if len(text) <= self._most else f"{text[: self._most]} ... (cut)"
        if result.is_error:
            raise ToolError(text)
        return text

    def close(self) -> None:
        """End the connection, and the server if it was started."""
        self._open.close()


def _deepest(cause: BaseException) -> str:
    while isinstance(cause, BaseExceptionGroup) and cause.exceptions:
        cause = cause.exceptions[0]
    return f"{type(cause).__name__}: {cause}"
