"""A task of ours as an MCP server: its tools, its request as a prompt, and a tool that ends the attempt.

One server is one attempt: its world starts fresh with the process, and all sessions of one process share it. The
official `mcp` package speaks the protocol; over standard input and output, or streamable HTTP on the loopback
interface.
"""

from __future__ import annotations

from typing import Any

import anyio
import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

from stackloom.core.chat import Message, ToolCall
from stackloom.core.slots.environment import Episode, Task, ToolError
from stackloom.environments.users import User

FINISH, ASK, PROMPT = "finish_task", "ask_user", "task"


def _saying(name: str, description: str) -> types.Tool:
    return types.Tool(
        name=name,
        description=description,
        input_schema={
            "type": "object",
            "properties": {"message": {"type": "string", "description": "what the user reads"}},
            "required": ["message"],
            "additionalProperties": False,
        },
    )


_FINISH = _saying(FINISH, "End the task with the final message to the user; nothing can be done afterwards")
_ASK = _saying(ASK, "Ask the user something and read the answer")


class Attempt:
    """What one server serves.

    Args:
        task: its tools are offered, its messages are the prompt "task".
        episode: its state.
        judged: whether `finish_task` tells the verdict; otherwise it only thanks.
    """

    def __init__(self, task: Task, episode: Episode, *, judged: bool = True) -> None:
        self.task, self.episode, self.judged = task, episode, judged
        self._user: User | None = getattr(episode, "user", None)
        self._said: list[Message] = []
        self._over = False
        self._one_at_a_time = anyio.Lock()

    async def list_tools(self, context: Any, params: Any) -> types.ListToolsResult:
        """Answer tools/list."""
        ours = [
            types.Tool(name=tool.name, description=tool.description, input_schema=dict(tool.input_schema))
            for tool in self.task.tools
        ]
        return types.ListToolsResult(tools=[*ours, *([_ASK] if self._user else []), _FINISH])

    async def call_tool(self, context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        """Answer tools/call; what the caller got wrong is an error that it reads."""
        call = ToolCall(params.name, dict(params.arguments or {}), f"call_{len(self._said)}")
        async with self._one_at_a_time:
            if self._over:
                return _text("the task is over", error=True)
            if call.name == FINISH or (call.name == ASK and self._user):
                message = call.arguments.get("message")
                if not isinstance(message, str) or set(call.arguments) != {"message"}:
                    return _text("give a message, and nothing else", error=True)
                self._said.append(Message("assistant", message))
                return self._finish() if call.name == FINISH else await self._ask()
            try:
                text, error = await anyio.to_thread.run_sync(self.episode.call, call), False
            except ToolError as refused:
                text, error = str(refused), True
            heard = f"Error: {text}" if error else text
            self._said += [
                Message("assistant", "", (call,)),
                Message("tool", heard, tool_call_id=call.id, name=call.name),
            ]
            return _text(text, error=error)

    async def _ask(self) -> types.CallToolResult:
        assert self._user
        reply = await self._user.reply(tuple(self._said))
        if reply is None:
            return _text("the user says nothing")
        self._said.append(Message("user", reply))
        return _text(reply)

    def _finish(self) -> types.CallToolResult:
        self._over = True
        if not self.judged:
            return _text("thank you")
        reward = self.episode.reward(tuple(self._said))
        verdict = {"reward": reward.value, "valid": reward.valid, "reason": reward.reason}
        return types.CallToolResult(
            content=[types.TextContent(text=f"reward {reward.value:g}: {reward.reason}")], structured_content=verdict
        )

    async def list_prompts(self, context: Any, params: Any) -> types.ListPromptsResult:
        """Answer prompts/list."""
        return types.ListPromptsResult(prompts=[types.Prompt(name=PROMPT, description="what the user wants")])

    async def get_prompt(self, context: Any, params: types.GetPromptRequestParams) -> types.GetPromptResult:
        """Answer prompts/get: the user's messages; the system prompt is what the server says of itself."""
        if params.name != PROMPT:
            raise ValueError(f"there is no prompt {params.name!r}; there is {PROMPT!r}")
        messages = [
            types.PromptMessage(role="user", content=types.TextContent(text=message.content))
            for message in self.task.messages
            if message.role == "user"
        ]
        return types.GetPromptResult(messages=messages)

    def server(self) -> Server[Any]:
        """Return the server."""
        system = "\n\n".join(message.content for message in self.task.messages if message.role == "system")
        return Server(
            "stackloom",
            title=self.task.id,
            instructions=system or None,
            on_list_tools=self.list_tools,
            on_call_tool=self.call_tool,
            on_list_prompts=self.list_prompts,
            on_get_prompt=self.get_prompt,
        )


def _text(text: str, *, error: bool = False) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=text)], is_error=error)


async def serve_stdio(attempt: Attempt) -> None:
    """Serve over standard input and output until the client goes."""
    server = attempt.server()
    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())


async def serve_http(attempt: Attempt, port: int, host: str = "127.0.0.1") -> None:
    """Serve streamable HTTP at http://host:port/mcp until cancelled."""
    import uvicorn

    app = attempt.server().streamable_http_app(host=host)
    await uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning")).serve()
