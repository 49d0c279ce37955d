"""Rewards behind a URL: a server in a thread that answers well, late, wrongly or not at all."""

import base64
import io
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from PIL import Image

from pgraft_fast.errors import InputError, RewardError
from pgraft_fast.rewards.http import HttpReward
from pgraft_fast.rewards.protocol import RewardTimeoutError

SAMPLES = torch.linspace(-1, 1, 3).view(3, 1, 1, 1).expand(3, 3, 2, 4)
PROMPTS, IDS = ["a", "bb", "ccc"], [40, 41, 42]


@pytest.fixture
def received():
    """(path, Authorization) of each request."""
    return []


@pytest.fixture
def serve(received):
    """serve([answer, ...]): a reward whose server gives one answer a request, the last for ever, and what it was sent.

    An answer is (status, body) or a function of the request that returns one.
    """
    servers = []

    def make(answers, url="http://127.0.0.1:{}/score", listen="127.0.0.1", **options):
        requests, left = [], list(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                received.append((self.path, self.headers["Authorization"]))
                answer = left.pop(0) if len(left) > 1 else left[0]
                status, body = answer(requests[-1]) if callable(answer) else answer
                if status is None:
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()
                with_pause = body if isinstance(body, list) else [body]
                for part in with_pause:
                    try:
                        self.wfile.write(part if isinstance(part, bytes) else json.dumps(part).encode())
                    except OSError:
                        return
                    time.sleep(0.1 * (len(with_pause) > 1))

            def log_message(self, *_):
                pass

        servers.append(ThreadingHTTPServer((listen, 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return HttpReward(
            url.format(servers[-1].server_port),
            **{"name": "mine", "backoff_seconds": 0.02, "timeout_seconds": 60.0, **options},
        ), requests

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


def mean(request):
    values = []
    for text in request["images"]:
        picture = Image.open(io.BytesIO(base64.b64decode(text)))
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (4, 2))
        values.append(picture.getpixel((0, 0))[0])
    return 200, {"sample_ids": request["sample_ids"][::-1], "rewards": values[::-1]}


def late(request):
    time.sleep(5.0)
    return mean(request)


def test_answers(serve, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    reward, requests = serve([mean])
    assert reward(SAMPLES, PROMPTS, IDS).tolist() == [0.0, 128.0, 255.0]
    assert reward(SAMPLES[:2, :1], PROMPTS[:2]).tolist() == [0.0, 128.0]
    assert {**requests[0], "images": 0} == {
        "id": 1, "count": 3, "shape": [3, 2, 4, 3], "dtype": "png", "prompts": PROMPTS, "sample_ids": IDS, "images": 0,
    }  # fmt: skip


@pytest.mark.parametrize("failure", [(500, b"busy"), (503, b""), (429, b""), (None, b"")])
def test_tried_again(failure, serve):
    reward, requests = serve([failure, failure, mean])
    assert reward(SAMPLES, PROMPTS, IDS).tolist() == [0.0, 128.0, 255.0]
    assert len(requests) == 3


@pytest.mark.parametrize(
    ("answer", "times", "message"),
    [
        (
            (500, b"out of\nmemory"),
            3,
            r"answered 500 Internal Server Error: out of memory \(at samples 40 to 42\), tried 3",
        ),
        ((None, b""), 3, r"cannot be reached \(.*\) \(at samples 40 to 42\), tried 3 times"),
        ((404, b"no such page"), 1, r"answered 404 Not Found: no such page \(at samples 40 to 42\)$"),
        ((302, b""), 1, "answered 302 Found"),
        ((200, b"<html>"), 1, "answered '<html>', which is not a JSON object"),
        ((200, {"sample_ids": [40, 41], "rewards": [1, 2]}), 1, "did not answer for sample 42"),
        ((200, {"sample_ids": IDS, "rewards": [1, 2]}), 1, "gave 2 rewards for 3 sample_ids"),
        ((200, {"error": "no scorer"}), 1, r"raised no scorer \(at samples 40 to 42\)"),
        ((200, {"id": 9, "sample_ids": IDS, "rewards": [1, 2, 3]}), 1, "answered question 9 instead of 1"),
    ],
)
def test_bad_answers(answer, times, message, serve):
    reward, requests = serve([answer])
    with pytest.raises(RewardError, match=message) as caught:
        reward(SAMPLES, PROMPTS, IDS)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("reward 'mine'")
    assert len(requests) == times


@pytest.mark.parametrize("error", [None, "", False, 0, [], {}])
def test_an_error_that_is_none(serve, error):
    """Servers that send every key they know send null for what they have not."""
    reward, _ = serve([(200, {"id": None, "error": error, "sample_ids": IDS, "rewards": [1, None, 3], "more": None})])
    assert torch.isnan(reward(SAMPLES, PROMPTS, IDS)).tolist() == [False, True, False]
    with pytest.raises(RewardError, match="answered without the lists sample_ids and rewards"):
        serve([(200, {"error": error, "sample_ids": None, "rewards": None})])[0](SAMPLES, PROMPTS, IDS)


@pytest.mark.parametrize("error", ["no scorer", ["no scorer"], {"code": 3, "text": "no\nscorer"}, True, 5])
def test_an_error_that_is_one(serve, error):
    """It counts even beside rewards."""
    reward, _ = serve([(200, {"error": error, "sample_ids": IDS, "rewards": [1, 2, 3]})])
    with pytest.raises(RewardError, match=r"reward 'mine' raised .+ \(at samples 40 to 42\)"):
        reward(SAMPLES, PROMPTS, IDS)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000, b"9" * 5000, b"\xff\xfe{", b"{", b"null", b'"x"', b"NaN", b"{}", b'{"id": []}',
        b'{"sample_ids": [40, 41, 42], "rewards": [1, [2], 3]}', b'{"sample_ids": [40, 41, {}], "rewards": [1, 2, 3]}',
        b'{"sample_ids": [40, 41, 42], "rewards": [1, "2", 3]}', b'{"sample_ids": [40.5, 41, 42], "rewards": [1, 2]}',
        b'{"error": "http://a:pass@b"}', b'{"sample_ids": [NaN, 41, 42], "rewards": [1, 2, 3]}',
    ],
)  # fmt: skip
def test_nonsense(serve, body):
    reward, _ = serve([(200, body)])
    with pytest.raises(RewardError, match="reward 'mine'") as caught:
        reward(SAMPLES, PROMPTS, IDS)
    assert "\n" not in str(caught.value) and "pass" not in str(caught.value)


def test_numbers_that_are_too_large(serve):
    body = b'{"sample_ids": [40, 41, 42], "rewards": [1%s, Infinity, 1e999]}' % (b"0" * 400)
    assert torch.isinf(serve([(200, b"\xef\xbb\xbf" + body)])[0](SAMPLES, PROMPTS, IDS)).all()


HERE = socket.gethostname()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.2", "0.0.0.0", HERE])
@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_no_proxy_to_this_machine(serve, monkeypatch, host, variable):
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    reward, requests = serve([mean], url=f"http://{host}:{{}}/score", listen="")
    assert reward(SAMPLES, PROMPTS, IDS).tolist() == [0.0, 128.0, 255.0] and len(requests) == 1


def test_a_proxy_elsewhere(serve, monkeypatch, received):
    """It is used for other machines, unless no_proxy names them, and its password is not told either."""
    reward, _ = serve([mean], url="http://scores.invalid:{}/score")
    port = reward.url.split(":")[2].split("/")[0]
    for name in ("http_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://me:hunter2@127.0.0.1:{port}")
    assert reward(SAMPLES, PROMPTS, IDS).tolist() == [0.0, 128.0, 255.0]
    assert received == [(f"http://scores.invalid:{port}/score", None)]
    monkeypatch.setenv("http_proxy", "http://me:hunter2@127.0.0.1:1")
    with pytest.raises(RewardError, match=r"cannot be reached by the proxy http://\*\*\*@127.0.0.1:1 \(.*refused\)"):
        HttpReward("http://scores.invalid/score", retries=0)(SAMPLES, PROMPTS, IDS)
    monkeypatch.setenv("no_proxy", "scores.invalid")
    with pytest.raises(RewardError, match=r"scores.invalid/score cannot be reached \("):
        HttpReward("http://scores.invalid/score", retries=0)(SAMPLES, PROMPTS, IDS)


SECRET = "http://me:hunter%40%C3%A92@127.0.0.1:{}/score?token=0123456789&mode=fast"


def test_a_password_is_sent(serve, received):
    reward, _ = serve([mean], url=SECRET)
    assert reward(SAMPLES, PROMPTS, IDS).tolist() == [0.0, 128.0, 255.0]
    wanted = base64.b64encode("me:hunter@é2".encode()).decode()
    assert received == [("/score?token=0123456789&mode=fast", f"Basic {wanted}")]


@pytest.mark.parametrize(
    "answer",
    [
        (500, b"/score?token=0123456789"), (404, b"no hunter%40%C3%A92"), (401, "hunter@é2".encode()), (None, b""),
        (200, b"token=0123456789"), (200, {"error": "hunter@é2 at /score?token=0123456789"}), (302, b""), late,
        (200, {"sample_ids": IDS, "rewards": ["0123456789", 1, 2]}),
    ],
)  # fmt: skip
def test_secrets_of_a_url_are_not_told(serve, answer):
    reward, _ = serve([answer], url=SECRET, timeout_seconds=0.4 if answer is late else 60.0)
    with pytest.raises(RewardError) as caught:
        reward(SAMPLES, PROMPTS, IDS)
    text = str(caught.value)
    assert "hunter" not in text and "0123456789" not in text and "reward 'mine'" in text
    if answer[0] != 200 if isinstance(answer, tuple) else True:
        assert "http://***@127.0.0.1" in text and "/score?token=***" in text


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2@",
        "ftp://me:hunter2@h",
        "http://me:hunter2@h:port",
        "http://me:hunter2@[::1",
        "http://me:hun/ter2@h",
    ],
)
def test_secrets_of_a_wrong_url_are_not_told(url):
    with pytest.raises(InputError, match="must begin with http") as caught:
        HttpReward(url)
    assert "hun" not in str(caught.value) and caught.value.__cause__ is None


@pytest.mark.parametrize("answer", [late, (200, [b" "] * 50)])
def test_late(answer, serve):
    """Silence, and an answer that comes drop by drop."""
    reward, _ = serve([answer], timeout_seconds=0.3)
    with pytest.raises(RewardTimeoutError, match=r"/score did not answer within 0.3 s \(at samples 40 to 42\)"):
        reward(SAMPLES, PROMPTS, IDS)


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(RewardError, match=r"cannot be reached \(.*refused\) \(at sample 0\), tried 2 times"):
        HttpReward(url, retries=1, backoff_seconds=0.01)(SAMPLES[:1], ["a"])
    # No pause goes past the time-out.
    with pytest.raises(RewardError, match=r"refused\) \(at sample 0\)$"):
        HttpReward(url, retries=5, backoff_seconds=9.0, timeout_seconds=8.0)(SAMPLES[:1], ["a"])


def test_a_long_answer(serve, monkeypatch):
    monkeypatch.setattr("pgraft_fast.rewards.http.MAX_ANSWER_BYTES", 100)
    reward, requests = serve([(200, b" " * 200)])
    with pytest.raises(RewardError, match="/score sent more than 100 bytes"):
        reward(SAMPLES, PROMPTS, IDS)
    assert len(requests) == 1


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost:80", "ftp://a", "http://"])
def test_urls(url):
    with pytest.raises(InputError, match="must begin with http"):
        HttpReward(url)
