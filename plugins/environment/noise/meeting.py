"""How a noisy user opens the conversation, and what they tell later."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stackloom.environments.chains import Known
from stackloom.environments.distortions import altered, mistyped, without
from stackloom.environments.tape import Kind, Tape
from stackloom.environments.users import CHATTER, Script, ScriptedUser, opened
from stackloom.environments.wording import Request


@dataclass(frozen=True)
class Meeting:
    """A user under a tape.

    Attributes:
        opening: what they say first.
        script: how they go on; None for a user who is not there to be asked.
        kinds: of the noise that there is.
    """

    opening: str
    script: Script | None
    kinds: tuple[Kind, ...]

    @property
    def user(self) -> ScriptedUser | None:
        """The user; None where an attempt ends at its first message without a call."""
        return ScriptedUser(self.script) if self.script else None


def meet(opening: str, request: Request | None, tape: Tape) -> Meeting:
    """Distort an opening and say how its user goes on.

    Without a request nobody knows which words are details: only typing errors and chatter are possible then.

    Args:
        opening: as the task has it.
        request: what its user knows and withholds.
        tape: what happens.
    """
    met: list[Kind] = []
    kinds = tape.user()
    known = request.known if request else ()
    withheld = list(request.withheld) if request else []
    wrong: tuple[Known, str] | None = None
    text, strict = opening, False
    for kind in kinds:
        candidates = [item for item in known if item not in withheld and not (wrong and wrong[0] == item)]
        candidates.sort(key=lambda item, kind=kind: tape.draw("detail", kind, item.noun))  # type: ignore[misc]
        if kind in ("U1", "U5"):
            for item in candidates:
                if (shorter := without(text, item)) is not None:
                    text, strict = shorter, strict or kind == "U5"
                    withheld.append(item)
                    met.append(kind)
                    break
        elif kind == "U4":
            for item in candidates:
                if text.count(item.text) == 1 and (other := altered(item, tape)) is not None:
                    wrong = item, other
                    met.append(kind)
                    break
    if "U2" in kinds and (typed := mistyped(text, tape, [item.text for item in known])) != text:
        text = typed
        met.append("U2")
    chats = "U3" in kinds
    if chats:
        met.append("U3")
    script = Script(tuple(withheld), wrong, chats, strict, tape.key)
    if request is not None:
        text = opened(replace(request, opening=text), script)
    elif chats:
        text = f"{text} {CHATTER[tape.below(len(CHATTER), 'chatter')]}"
    return Meeting(text, script if withheld or wrong else None, tuple(met))
