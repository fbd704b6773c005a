"""A conversation, its commands, and where it is saved. No terminal in here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from agents._ask import with_files
from agents.buyer import Purchase
from penstock.errors import ConfigError
from penstock.units import format_amount

HELP = """\
/model NAME    ask this model from now on: a name, NAME@PROVIDER, auto, cheapest, fastest, NAME@local
/models        what can be had now
/system TEXT   the system prompt; without TEXT: none
/file PATH     send a text or picture along with the next question
/retry         ask the last question again
/undo          forget the last question and its answer
/cost          what this conversation has cost
/save FILE     write the conversation to a file, .json or .md
/load FILE     go on with one that was saved as .json
/clear         begin anew
/quit          leave; so does Ctrl-D. Ctrl-C stops an answer"""


class Saved(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    messages: list[dict[str, Any]]


@dataclass
class Conversation:
    model: str = "auto"
    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    """Without the system prompt."""
    files: list[str] = field(default_factory=list)
    """That go with the next question."""
    totals: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By token's symbol: base units spent, and its decimals."""
    tokens: int = 0
    """Completion tokens bought."""

    def asks(self, text: str) -> list[dict[str, Any]]:
        """The messages of a question, which is the last of them. ConfigError where a file cannot be sent."""
        self.messages.append({"role": "user", "content": with_files(text, self.files)})
        self.files.clear()
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.messages]

    def answered(self, text: str) -> None:
        """What came, if only in part: the next question builds on it. Nothing: the question is taken back."""
        if text:
            self.messages.append({"role": "assistant", "content": text})
        elif self.messages:
            self.messages.pop()

    def bought(self, purchases: Sequence[Purchase]) -> None:
        for one in purchases:
            spent, _ = self.totals.get(one.token.symbol, (0, 0))
            self.totals[one.token.symbol] = spent + one.cost, one.token.decimals
            self.tokens += one.completion_tokens

    @property
    def cost(self) -> str:
        amounts = [format_amount(spent, decimals, symbol) for symbol, (spent, decimals) in self.totals.items()]
        return " + ".join(amounts) or "nothing"

    def last_question(self) -> str | None:
        """Taken back, with its answer; None where there is none."""
        while self.messages:
            message = self.messages.pop()
            if message["role"] == "user":
                content = message["content"]
                return content if isinstance(content, str) else str(content[0]["text"])
        return None

    def save(self, name: str) -> None:
        path = Path(name).expanduser()
        if path.suffix == ".md":
            parts = [*([f"*{self.system}*"] if self.system else [])]
            names = {"user": "You", "assistant": "Answer"}
            parts += [f"**{names.get(m['role'], m['role'])}:** {_text(m['content'])}" for m in self.messages]
            path.write_text("\n\n".join(parts) + "\n")
            return
        if path.suffix != ".json":
            raise ConfigError(f"{path} is neither .json nor .md; name it so")
        system = [{"role": "system", "content": self.system}] if self.system else []
        saved = Saved(self.model, [*system, *self.messages])
        path.write_bytes(msgspec.json.format(msgspec.json.encode(saved), indent=2) + b"\n")

    def load(self, name: str) -> None:
        path = Path(name).expanduser()
        try:
            saved = msgspec.json.decode(path.read_bytes(), type=Saved)
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is no saved conversation: {error}") from error
        system = [m for m in saved.messages if m.get("role") == "system"]
        self.model, self.system = saved.model, system[0]["content"] if system else None
        self.messages = [m for m in saved.messages if m.get("role") != "system"]


def command(conversation: Conversation, line: str, say: Callable[[str], None]) -> str:
    """Do a line that begins with `/`. Returns "quit", "models" or "retry" where more is to be done, else nothing."""
    name, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    match name, rest:
        case (("/quit" | "/exit" | "/bye" | "/q"), _):
            return "quit"
        case (("/help" | "/?"), _):
            for row in HELP.splitlines():
                say(row)
        case "/models", _:
            return "models"
        case "/model", "":
            say(f"asking {conversation.model}; /model NAME changes it")
        case "/model", _:
            conversation.model = rest
            say(f"asking {rest} from now on")
        case "/system", _:
            conversation.system = rest or None
            say("the system prompt is set" if rest else "no system prompt")
        case "/file", "":
            raise ConfigError("name a file: /file PATH")
        case "/file", _:
            with_files("", [rest])  # so that a mistake is told now
            conversation.files.append(rest)
            say(f"{rest} goes with the next question")
        case "/retry", _:
            return "retry"
        case "/undo", _:
            say("forgotten" if conversation.last_question() is not None else "there is nothing to forget")
        case "/cost", _:
            say(f"{conversation.cost} for {conversation.tokens} tokens; `penstock history` has each purchase")
        case (("/save" | "/load"), ""):
            raise ConfigError(f"name a file: {name} FILE")
        case "/save", _:
            conversation.save(rest)
            say(f"saved to {rest}")
        case "/load", _:
            conversation.load(rest)
            say(f"{len(conversation.messages)} messages; asking {conversation.model}")
        case "/clear", _:
            conversation.messages.clear()
            conversation.files.clear()
            say("a new conversation")
        case _:
            say(f"{name} is no command; /help lists them")
    return ""


def _text(content: Any) -> str:
    return content if isinstance(content, str) else str(content[0]["text"])
