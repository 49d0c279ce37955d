"""A reward behind a URL. Each batch is one POST of JSON, answered with JSON:

    {"id": 7, "count": 2, "shape": [2, 512, 512, 3], "dtype": "png", "prompts": [...], "sample_ids": [40, 41],
     "images": ["<PNG file in base64>", ...]}
    {"sample_ids": [41, 40], "rewards": [0.1, 0.7]}

null standing for no reward; the answer may also be {"error": "what is wrong"}. Other keys, and those that are null, say
nothing.
"""

import base64
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

import torch
from torch import Tensor

from pgraft_fast.errors import InputError, RewardError
from pgraft_fast.rewards.answers import MAX_ANSWER_BYTES, parse, question, rewards_in_order
from pgraft_fast.rewards.pixels import to_file, to_pil
from pgraft_fast.rewards.protocol import RewardMisuseError, RewardTimeoutError, of_samples, one_line
from pgraft_fast.rewards.urls import HIDDEN, is_this_machine, without_secrets

_BUSY = 429
_KEPT = "/%:@!$&'()*+,;=~-._?[]"


class HttpReward:
    """url: http or https, perhaps with user:password@. timeout_seconds: for the answer to one batch, tries included.

    A connection that fails, status 429 and status 500 and above are tried again, at most `retries` times, after
    `backoff_seconds`, twice that, and so on. Redirects are not followed. The proxies of the environment are used, but
    not to reach this machine. The password and the values of the query are in no message. Raises InputError.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "http",
        timeout_seconds: float = 300.0,
        retries: int = 2,
        backoff_seconds: float = 0.5,
    ) -> None:
        self.url = without_secrets(url)
        wrong = InputError(f"url = {self.url!r}: must begin with http:// or https:// and name a host")
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            # Its text may quote the password.
            raise wrong from None
        if parts.scheme not in ("http", "https") or not host:
            raise wrong
        self.name, self.timeout_seconds = name, timeout_seconds
        self.retries, self.backoff_seconds = retries, backoff_seconds
        self._host, self._scheme = host, parts.scheme
        user, at, place = parts.netloc.rpartition("@")
        path, query = quote(parts.path, safe=_KEPT), quote(parts.query, safe=_KEPT)
        self._target = urlunsplit((parts.scheme, place, path, query, ""))
        self._headers = {"Content-Type": "application/json"}
        if at:
            self._headers["Authorization"] = f"Basic {base64.b64encode(unquote(user).encode()).decode()}"
        # Short values of a query are words rather than keys, and may stand in any text.
        secrets = [user, user.partition(":")[2], *(value for _, value in parse_qsl(parts.query) if len(value) > 7)]
        forms = {form for secret in secrets for form in (secret, unquote(secret), quote(secret))}
        self._secrets = sorted(form for form in forms if len(form) > 2)
        self._number = 0

    @property
    def longest_call_seconds(self) -> float:
        """Of one call, retries included."""
        return self.timeout_seconds

    def __call__(self, samples: Tensor, prompts: Sequence[str], sample_ids: Sequence[int] | None = None) -> Tensor:
        """samples: (B, C, H, W) in [-1, 1], C = 1 or 3. Returns (B,) float32 on their device.

        Raises RewardError in one line that names the samples.
        """
        try:
            return self._score(samples, prompts, sample_ids)
        except RewardError as error:
            # An answer may quote what it was asked with.
            text = str(error)
            for secret in self._secrets[::-1]:
                text = text.replace(secret, HIDDEN)
            raise type(error)(text) from error.__cause__

    @cached_property
    def _opener(self) -> urllib.request.OpenerDirector:
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if self._proxy is None:
            handlers.append(urllib.request.ProxyHandler({}))
        return urllib.request.build_opener(*handlers)

    @cached_property
    def _proxy(self) -> str | None:
        """That the environment names for this host."""
        proxy = urllib.request.getproxies().get(self._scheme)
        unused = proxy is None or urllib.request.proxy_bypass(self._host) or is_this_machine(self._host)
        return None if unused else proxy

    def _score(self, samples: Tensor, prompts: Sequence[str], sample_ids: Sequence[int] | None) -> Tensor:
        if HIDDEN in self._target or HIDDEN in self._secrets:
            raise RewardMisuseError(
                f"reward {self.name!r}: {self.url} was saved without its secrets; name an environment variable that "
                "holds each in its place, as in https://user:${NAME}@host"
            )
        self._number += 1
        ids = list(range(samples.shape[0])) if sample_ids is None else list(sample_ids)
        pictures = to_pil(samples)
        body = question(self._number, (len(ids), *samples.shape[2:], 3), "png", prompts, ids)
        body["images"] = [base64.b64encode(to_file(p, "png", compress_level=1)).decode() for p in pictures]
        answer = self._post(json.dumps(body).encode(), f"(at {of_samples(ids)})")
        if answer.get("id") is None:
            answer["id"] = self._number
        rewards = rewards_in_order(answer, ids, self._number, self.name)
        return torch.tensor(rewards, dtype=torch.float32, device=samples.device)

    def _post(self, body: bytes, where: str) -> dict[str, Any]:
        deadline = time.monotonic() + self.timeout_seconds
        for attempt in range(self.retries + 1):
            try:
                return parse(self._once(body, deadline), self.name)
            except TimeoutError as error:
                raise RewardTimeoutError(
                    f"reward {self.name!r}: {self.url} did not answer within {self.timeout_seconds:g} s {where}"
                ) from error
            except urllib.error.HTTPError as error:
                with error:
                    said = one_line(error.read(400).decode(errors="replace"), 120)
                problem = f"answered {error.code} {error.reason}" + (f": {said}" if said else "")
                again, cause = error.code >= 500 or error.code == _BUSY, error
            except (OSError, http.client.HTTPException) as failed:
                reason = getattr(failed, "reason", failed)
                by = "" if self._proxy is None else f" by the proxy {without_secrets(self._proxy)}"
                problem, again = f"cannot be reached{by} ({one_line(reason) or type(failed).__name__})", True
                cause = failed  # type: ignore[assignment]
            pause = self.backoff_seconds * 2**attempt
            if not again or attempt == self.retries or time.monotonic() + pause >= deadline:
                break
            time.sleep(pause)
        tried = f", tried {attempt + 1} times" if attempt else ""
        raise RewardError(f"reward {self.name!r}: {self.url} {problem} {where}{tried}") from cause

    def _once(self, body: bytes, deadline: float) -> bytes:
        """Raises TimeoutError, OSError (HTTPError, URLError), HTTPException; RewardError where the answer is long."""
        request = urllib.request.Request(self._target, body, self._headers, method="POST")
        try:
            # The time-out is of each wait for the network; the deadline is of the whole.
            with self._opener.open(request, timeout=max(0.001, deadline - time.monotonic())) as reply:
                answer = b""
                while chunk := reply.read1(1 << 16):
                    answer += chunk
                    if time.monotonic() > deadline:
                        raise TimeoutError
                    if len(answer) > MAX_ANSWER_BYTES:
                        raise RewardError(f"reward {self.name!r}: {self.url} sent more than {MAX_ANSWER_BYTES} bytes")
                return answer
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise TimeoutError from error
            raise


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: object) -> None:
        """A POST that is redirected would become a GET without its body."""
        return None
