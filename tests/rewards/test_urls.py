"""What is shown of a URL."""

import pytest

from pgraft_fast.errors import InputError
from pgraft_fast.rewards.urls import is_this_machine, with_variables, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://h:80/x", "http://h:80/x"),
        ("http://u:pw@h/x", "http://***@h/x"),
        ("https://key@h", "https://***@h"),
        ("HTTP://u:p@s:s@h:80?a=b", "HTTP://***@h:80?a=***"),
        ("http://u:p/w@h/x", "http://***@h/x"),
        ("http://u:p#w@h", "http://***@h"),
        ("http://h/x?token=abc&&key&y=#top", "http://h/x?token=***&&***&y=#***"),
        ("url = 'http://u:pw@h/x?a=b': bad", "url = 'http://***@h/x?a=***': bad"),
        ("(at http://h/?k=v), and redis://:pw@[::1]:1.", "(at http://h/?k=***), and redis://***@[::1]:1."),
        ("http://h/@me/score", "http://h/@me/score"),
        ("http://me:${PASSWORD}@h/?k=${KEY}", "http://me:${PASSWORD}@h/?k=${KEY}"),
        ("http://me:a${PASSWORD}@h/?k=${KEY}b", "http://***@h/?k=***"),
        ("a@b, http:// and ://x", "a@b, http:// and ://x"),
    ],
)
def test_shown(text, shown):
    assert without_secrets(text) == shown == without_secrets(shown)


def test_variables(monkeypatch):
    monkeypatch.setenv("KEY", "a?/@:b")
    assert with_variables("http://u:${KEY}@h/$x?k=${KEY}") == "http://u:a%3F%2F%40:b@h/$x?k=a%3F%2F%40:b"
    monkeypatch.setenv("SCORER", "http://h:80/x")
    assert with_variables("${SCORER}/y") == "http://h:80/x/y"
    message = r"url = 'http://\*\*\*@h/\$\{NO_SUCH\}': there is no environment variable NO_SUCH"
    with pytest.raises(InputError, match=message):
        with_variables("http://u:pw@h/${NO_SUCH}")


def test_this_machine():
    here = ("localhost", "127.0.0.1", "127.9.9.9", "0.0.0.0")
    assert all(map(is_this_machine, here)) and not any(map(is_this_machine, ("192.0.2.1", "a.invalid", "a..b")))
