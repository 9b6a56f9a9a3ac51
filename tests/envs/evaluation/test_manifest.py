"""A number that carries its origin can be made again."""

import sys

from envs.evaluation import manifest


def test_the_command_can_be_pasted_into_a_shell(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/ccr", "evaluate", "--json", "my file.json"])

    assert manifest.origin()["command"] == "ccr evaluate --json 'my file.json'"


def test_outside_a_checkout_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(manifest, "_HERE", tmp_path)

    assert manifest.commit() == ""


def test_nested_facts_become_lines():
    assert manifest.flat({"a": {"b": 1, "c": {"d": [2, 3]}}, "e": 0, "none": "", "empty": {}}) == {
        "a.b": "1", "a.c.d": "2, 3", "e": "0",
    }  # fmt: skip
