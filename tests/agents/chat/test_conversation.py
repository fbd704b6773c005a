"""A conversation's commands, what is sent of it, and what is saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agents.chat._conversation import HELP, Conversation, command
from penstock.errors import ConfigError
from tests.agents.gateway.rig import purchase


def test_a_question_goes_with_all_before_it_and_the_system_prompt() -> None:
    talk = Conversation(system="Be brief.")
    assert talk.asks("One?") == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?"}]
    talk.answered("1")
    assert [one["content"] for one in talk.asks("Two?")] == ["Be brief.", "One?", "1", "Two?"]
    talk.answered("")  # nothing came: the question is taken back
    assert [one["content"] for one in talk.messages] == ["One?", "1"]
    assert talk.last_question() == "One?"
    assert talk.messages == []
    assert talk.last_question() is None


def test_a_file_goes_with_one_question(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("alpha")
    talk, said = Conversation(), list[str]()
    command(talk, f"/file {tmp_path / 'a.txt'}", said.append)
    (message,) = talk.asks("What?")
    assert message["content"] == "a.txt:\n```\nalpha\n```\n\nWhat?"
    talk.answered("A")
    assert talk.asks("And?")[-1]["content"] == "And?"
    with pytest.raises(ConfigError, match="cannot read"):
        command(talk, "/file /nowhere", said.append)


def test_commands() -> None:
    talk, said = Conversation(), list[str]()
    assert command(talk, "/model fastest", said.append) == ""
    assert talk.model == "fastest"
    command(talk, "/system You are a pirate.", said.append)
    assert talk.system == "You are a pirate."
    command(talk, "/system", said.append)
    assert talk.system is None
    talk.asks("x")
    command(talk, "/clear", said.append)
    assert talk.messages == []
    talk.bought([purchase(), purchase(cost=5 * 10**12)])
    command(talk, "/cost", said.append)
    assert said[-1].startswith("0.000015 BNB for 4 tokens")
    command(talk, "/nope", said.append)
    assert said[-1] == "/nope is no command; /help lists them"
    assert [command(talk, line, said.append) for line in ("/quit", "/models", "/retry")] == ["quit", "models", "retry"]
    said.clear()
    command(talk, "/help", said.append)
    assert said == HELP.splitlines()  # a line each: what is said at once is shown as one
    for line in HELP.splitlines():
        said.clear()
        if line.split()[0] not in ("/file", "/save", "/load"):
            command(talk, line.split()[0], said.append)
            assert not any("is no command" in one for one in said), line


def test_saved_and_loaded(tmp_path: Path) -> None:
    talk = Conversation("tiny", "Be brief.")
    talk.asks("One?")
    talk.answered("1")
    talk.save(str(tmp_path / "a.json"))
    again = Conversation()
    again.load(str(tmp_path / "a.json"))
    assert (again.model, again.system, again.messages) == (talk.model, talk.system, talk.messages)
    assert json.loads((tmp_path / "a.json").read_text())["messages"][0]["role"] == "system"
    talk.save(str(tmp_path / "a.md"))
    assert (tmp_path / "a.md").read_text() == "*Be brief.*\n\n**You:** One?\n\n**Answer:** 1\n"
    with pytest.raises(ConfigError, match=r"neither \.json nor \.md"):
        talk.save(str(tmp_path / "a.txt"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ConfigError, match="no saved conversation"):
        again.load(str(tmp_path / "bad.json"))
