"""The answer of a reward that runs elsewhere: checked, and put in the order of the question."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pgraft_fast.errors import RewardError, is_out_of_memory
from pgraft_fast.rewards.protocol import of_samples, one_line

MAX_ANSWER_BYTES = 16 * 2**20


def question(
    number: int, shape: Sequence[int], dtype: str, prompts: Sequence[str], ids: Sequence[int]
) -> dict[str, Any]:
    """What a reward is told beside the samples."""
    return {
        "id": number,
        "count": len(ids),
        "shape": list(shape),
        "dtype": dtype,
        "prompts": list(prompts),
        "sample_ids": list(ids),
    }


def parse(text: bytes, name: str) -> dict[str, Any]:
    """A JSON object. Raises RewardError that quotes what was there instead."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        shown = one_line(text[:200].decode(errors="replace"), 80)
        raise RewardError(f"reward {name!r} answered {shown!r}, which is not a JSON object")
    return answer


def rewards_in_order(answer: dict[str, Any], question_ids: Sequence[int], number: int, name: str) -> list[float]:
    """The rewards of the samples `question_ids`, in that order; null is nan.

    answer: {"id", "sample_ids", "rewards"}, samples in any order, or {"id", "error"}; an error that is null, empty or
    false is none. Raises RewardError that names the
    samples where it is an error, belongs to another question, or has too few, too many, unknown or repeated samples.
    """
    where = f"(at {of_samples(question_ids)})"
    # Many servers send every key they know, null where it says nothing.
    if answer.get("error"):
        text = str(answer["error"])
        # So that fewer samples are asked for at once, as of a reward in this process.
        full = MemoryError(text) if is_out_of_memory(RuntimeError(text)) or "MemoryError" in text else None
        raise RewardError(f"reward {name!r} raised {one_line(text)} {where}") from full
    if answer.get("id") != number:
        raise RewardError(f"reward {name!r} answered question {answer.get('id')!r} instead of {number} {where}")
    ids, values = answer.get("sample_ids"), answer.get("rewards")
    if not isinstance(ids, list) or not isinstance(values, list):
        raise RewardError(f"reward {name!r} answered without the lists sample_ids and rewards {where}")
    if len(ids) != len(values):
        raise RewardError(f"reward {name!r} gave {len(values)} rewards for {len(ids)} sample_ids {where}")
    _check_ids(ids, question_ids, name)
    by_id = dict(zip(ids, values, strict=True))
    bad = [i for i in question_ids if isinstance(by_id[i], bool) or not isinstance(by_id[i], int | float | None)]
    if bad:
        shown = one_line(repr(by_id[bad[0]]), 60)
        raise RewardError(f"reward {name!r} gave {shown}, not a number, for {of_samples(bad)}")
    return [_number(by_id[i]) for i in question_ids]


def _number(value: float | None) -> float:
    """nan for null, inf for a whole number that no float holds."""
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        return math.inf


def _check_ids(ids: Sequence[Any], question_ids: Sequence[int], name: str) -> None:
    wrong_type = [i for i in ids if isinstance(i, bool) or not isinstance(i, int)]
    if wrong_type:
        raise RewardError(f"reward {name!r} answered with the sample id {wrong_type[0]!r}, which is no whole number")
    counts, questions = Counter(ids), set(question_ids)
    missing = [i for i in question_ids if i not in counts]
    unknown = [i for i in counts if i not in questions]
    repeated = [i for i, n in counts.items() if n > 1]
    problems = [
        f"{text} {of_samples(wrong)}"
        for text, wrong in (("did not answer for", missing), ("was not asked about", unknown), ("repeats", repeated))
        if wrong
    ]
    if problems:
        raise RewardError(
            f"reward {name!r} {', '.join(problems)}; it must answer once for each of {of_samples(question_ids)}"
        )
